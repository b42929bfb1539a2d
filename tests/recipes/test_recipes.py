"""The recipes of large models, to the end on random ones of the same architecture and chat style; and what memory they want."""

import copy
import importlib.util
import json

import pytest
import torch
import yaml
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM

from hf_calib.cli.main import main
from hf_calib.paths import recipe_path


ROLES = "{{% for m in messages %}}<|{{{{ m.role }}}}|>\n{{{{ m.content }}}}{end}\n{{% endfor %}}{{% if add_generation_prompt %}}<|assistant|>\n{{% endif %}}"
# Architecture, kind of tokenizer, chat template: Qwen's is that of its tokenizer, Vicuna has none.
STYLES = {
    "tulu3-8b": ("llama", "gpt2", ROLES.format(end="")),
    "olmo2-7b": ("olmo2", "gpt2", "<|endoftext|>" + ROLES.format(end="")),
    "mistral-7b": ("mistral", "llama", ROLES.format(end="</s>")),
    "vicuna-7b": ("llama", "llama", None),
    "qwen2.5-0.5b": ("qwen2", "qwen", "its own"),
}


@pytest.fixture(scope="module")
def models(tiny_tokenizers, tmp_path_factory):
    """Folder of a small model for each recipe."""
    folder = tmp_path_factory.mktemp("models")
    for name, (architecture, kind, template) in STYLES.items():
        tokenizer = copy.deepcopy(tiny_tokenizers[kind])
        if kind == "llama":
            tokenizer.add_tokens(["\n"])  # no part of another token there
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
        config = AutoConfig.for_model(
            architecture, vocab_size=len(tokenizer), num_key_value_heads=2, **sizes, **special
        )
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        if template != "its own":
            settings = json.loads((folder / name / "tokenizer_config.json").read_text())
            settings.pop("chat_template", None)
            (folder / name / "chat_template.jinja").unlink(missing_ok=True)
            if template is not None:
                (folder / name / "chat_template.jinja").write_text(template)
            (folder / name / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Files of questions, and of pairs that are conversations."""
    folder = tmp_path_factory.mktemp("data")
    rows = [
        {"question": f"What colour is the sky on day {i}?", "choices": ["green", "blue", "red"], "answer": i % 3}
        for i in range(24)
    ]
    talks = [
        {
            side: [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": f"{row['choices'][k]}, day {chr(65 + i)}"},
            ]
            for side, k in (("chosen", row["answer"]), ("rejected", row["answer"] - 1))
        }
        for i, row in enumerate(rows)
    ]
    Dataset.from_list(rows).to_json(folder / "questions.jsonl")
    Dataset.from_list(talks).to_json(folder / "pairs.jsonl")
    return {"questions": str(folder / "questions.jsonl"), "pairs": str(folder / "pairs.jsonl")}


@pytest.mark.parametrize(
    "recipe",
    ["tulu3-8b/rcft_paper", "olmo2-7b/rcft", "mistral-7b/dpo_calibrated", "vicuna-7b/dpo_calibrated", "qwen2.5-0.5b/rcft"],
)  # fmt: skip
def test_a_recipe_runs_to_its_end_under_deepspeed(launch, models, data, tmp_path, recipe):
    """Two steps, evaluation, the saved adapter, with names of data and model replaced by what is here."""
    pytest.importorskip("deepspeed")
    path, out = recipe_path(f"{recipe}.yaml"), tmp_path / "out"
    settings = yaml.safe_load(path.read_text())
    rows = data["pairs" if settings.get("trainer") == "calibrated_dpo" else "questions"]
    call = ["--config", path, "--model_name_or_path", models / recipe.split("/")[0], "--output_dir", out]
    call += ["--dataset_name", rows, "--eval_dataset_name", rows, "--max_steps", "2", "--save_steps", "1"]
    call += ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1", "--dtype", "float32"]
    call += ["--lora_r", "4", "--disable_tqdm", "true"]
    if "option_dataset_name" in settings:
        call += ["--option_dataset_name", data["questions"]]
    if "chat_template_path" in settings:
        call += ["--chat_template_path", recipe_path("vicuna-7b/chat_template.jinja")]
    done = launch("deepspeed_zero2", "hf_calib.cli", "train", *call, module=True, processes=1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-6000:]
    assert (out / "adapter_model.safetensors").exists() and (out / "README.md").exists()
    assert (out / "checkpoint-2" / "trainer_state.json").exists()
    measured = json.loads((out / "eval_results.json").read_text())
    assert measured.get("eval_n", measured.get("eval_pair_n")) == 24


def test_a_recipe_asks_vicuna_as_it_was_trained_to_be_asked(models):
    """Its tokenizer has no chat template: the recipe writes the conversation."""
    template = yaml.safe_load(recipe_path("vicuna-7b/rcft.yaml").read_text())["prompt_template"]
    assert template.startswith("A chat between a curious user") and " USER: {question}\n{options}\n" in template
    assert template.endswith(" ASSISTANT:")


@pytest.mark.parametrize(
    "arguments", [["--load_in_4bit", "true"], ["--optim", "paged_adamw_8bit"], ["--load_in_8bit", "true"]]
)
@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is here")
def test_what_wants_bitsandbytes_says_so(models, tmp_path, capsys, arguments):
    call = ["train", "--config", str(recipe_path("qwen2.5-0.5b/rcft.yaml"))]
    call += ["--model_name_or_path", str(models / "qwen2.5-0.5b"), "--output_dir", str(tmp_path / "out"), *arguments]
    assert main(call) == 2
    error = capsys.readouterr().err
    assert "pip install bitsandbytes" in error and arguments[0] in error and "Traceback" not in error


@pytest.fixture(scope="module")
def memory():
    pytest.importorskip("deepspeed")
    spec = importlib.util.spec_from_file_location("memory", recipe_path("memory.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "millions"), [("smollm2-135m", 134.5), ("qwen2.5-0.5b", 494), ("vicuna-7b", 6738), ("olmo2-7b", 7299)]
)
def test_the_estimates_are_of_models_of_the_right_size(memory, name, millions):
    assert sum(p.numel() for p in memory.build(name, None).parameters()) == pytest.approx(millions * 1e6, rel=2e-3)


def test_spreading_and_adapters_save_memory(memory):
    full, lora, qlora = (memory.estimate("mistral-7b", tuning, 8, 128) for tuning in ("full", "lora", "qlora"))
    assert 100 < full["single_gpu, ddp"] < 120  # 16 bytes for each of 7.24 billion weights
    order = ["single_gpu, ddp", "zero1", "zero2", "zero3", "zero3_offload"]
    assert sorted((full[name] for name in order), reverse=True) == [full[name] for name in order]
    for name in order:
        assert lora[name] <= full[name]
    assert qlora["single_gpu, ddp"] < lora["single_gpu, ddp"] / 1.5
