"""The mean of models and of adapters: what it computes, and what it refuses."""

import gc
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from hf_calib.cli.main import main
from hf_calib.inference.model_loading import load_merged, load_model
from hf_calib.training.averaging import average_models


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class Config(LlamaConfig):
    model_type = "own"


class Model(LlamaForCausalLM):
    config_class = Config
"""


@pytest.fixture(scope="module")
def save(tiny_llama, tiny_tokenizers, tmp_path_factory):
    """Function that saves a random model, or a random adapter on a model that is saved."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), tiny_tokenizers["gpt2"]

    def save(name, seed, base=None, dtype=torch.float32, size=32, **lora):
        torch.manual_seed(seed)
        if base is None:
            model = tiny_llama(tokenizer, seed, tie_word_embeddings=True, hidden_size=size).to(dtype)
        else:
            config = LoraConfig(r=lora.pop("r", 4), target_modules=["q_proj", "up_proj"], **lora)
            model = get_peft_model(load_model(str(base))[0], config)
            model.peft_config["default"].base_model_name_or_path = str(base)
            for name_of, parameter in model.named_parameters():
                if "lora_" in name_of:
                    torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        return folder / name

    return save


def weights(path):
    return load_merged(str(path), dtype="float32")[0].state_dict()


def mean(paths):
    states = [weights(path) for path in paths]
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}


def same(left, right, **tolerance):
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def test_adapters_of_any_rank_and_scale_add_the_mean_of_what_they_add(save, tmp_path):
    base = save("base", 0)
    adapters = [
        save("first", 1, base, r=4, lora_alpha=8),
        save("second", 2, base, r=2, lora_alpha=32),
        save("third", 3, base, r=4, lora_alpha=4, rank_pattern={"up_proj": 3}, alpha_pattern={"q_proj": 1}),
    ]
    average_models(adapters, tmp_path)
    same(weights(tmp_path), mean(adapters), rtol=1e-5, atol=1e-6)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 10 and config["base_model_name_or_path"] == str(base)
    # What it adds is not nothing, nor what one of them adds.
    changed, expected = weights(tmp_path), weights(base)
    name = "model.layers.0.self_attn.q_proj.weight"
    for other in (expected, *map(weights, adapters)):
        assert (changed[name] - other[name]).abs().max() > 0.01
    assert [file.name for file in tmp_path.iterdir() if file.is_dir()] == []


def test_whole_models_are_averaged_in_float32_and_saved_in_their_type(save, tmp_path):
    models = [save(f"model-{seed}", seed, dtype=torch.bfloat16) for seed in range(3)]
    average_models(models, tmp_path)
    averaged, _ = load_model(str(tmp_path))
    assert averaged.dtype == torch.bfloat16
    expected = {name: value.bfloat16().float() for name, value in mean(models).items()}
    same(weights(tmp_path), expected, rtol=0, atol=0)
    assert averaged.get_output_embeddings().weight is averaged.get_input_embeddings().weight


def test_two_models_at_most_are_in_memory(save, tmp_path, monkeypatch):
    models, alive = [save(f"counted-{seed}", seed) for seed in range(4)], []

    def count():
        return sum(type(thing) is LlamaForCausalLM for thing in gc.get_objects())

    def load_and_count(*args, **kwargs):
        loaded = load_model(*args, **kwargs)
        alive.append(count() - before)
        return loaded

    gc.collect()
    before = count()
    monkeypatch.setattr("hf_calib.training.averaging.load_model", load_and_count)
    average_models(models, tmp_path)
    assert alive == [1, 2, 2, 2]


def test_code_that_the_models_bring_is_run_where_it_is_trusted(save, tmp_path, capsys):
    models = [save(f"own-{seed}", seed) for seed in range(2)]
    for model in models:
        (model / "own.py").write_text(OWN_CODE)
        config = json.loads((model / "config.json").read_text())
        config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
        (model / "config.json").write_text(json.dumps(config))
    call = ["average", "--models", *map(str, models), "--output_dir", str(tmp_path)]
    assert main(call) == 1 and "trust_remote_code=True" in capsys.readouterr().err
    assert main([*call, "--trust_remote_code", "true"]) == 0
    averaged, *states = (load_model(str(p), trust_remote_code=True)[0].state_dict() for p in (tmp_path, *models))
    same(averaged, {name: (value + states[1][name]) / 2 for name, value in states[0].items()})


def test_what_has_no_mean_is_refused(save, tmp_path):
    base, other = save("base-0", 0), save("other", 1)
    adapter = save("adapter", 2, base)
    for models, message in (
        ([base], "At least two models are needed, got 1"),
        ([base, adapter], "Some of the models are adapters"),
        ([adapter, save("elsewhere", 3, other)], "different base models: .*base-0, .*other"),
        ([adapter, save("stable", 4, base, use_rslora=True)], "stable is not plain LoRA"),
        ([save("dora", 5, base, use_dora=True), adapter], "dora is not plain LoRA"),
        ([adapter, save("head", 6, base, modules_to_save=["lm_head"])], "head is not plain LoRA"),
        ([adapter, save("biased", 8, base, lora_bias=True)], "biased is not plain LoRA"),
        ([adapter, save("tokens", 9, base, trainable_token_indices=[1])], "tokens is not plain LoRA"),
        ([adapter, save("layer", 10, base, layers_to_transform=[1])], "layer adapts other layers than .*adapter"),
        (["org/adapter", "org/other"], "not a folder: org/adapter, org/other"),
        ([base, save("wide", 7, size=64)], "wide and .*base-0 are models of different shape"),
    ):
        with pytest.raises(ValueError, match=message):
            average_models(models, tmp_path)
    assert not list(tmp_path.iterdir())
