"""What reaches the trainer: questions in any layout, of any length, and data sets that come later."""

import pytest
import torch
from datasets import Dataset, concatenate_datasets
from transformers import MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM

from hf_calib import CalibratedSFTConfig, CalibratedSFTTrainer, calibration_report, predict_options
from hf_calib.data.questions import PromptFormat, load_questions
from hf_calib.inference.encoding import OPTION_COLUMNS


@pytest.fixture(scope="module")
def questions(world):
    return world.questions(40, seed=0, split="train").remove_columns("target_probabilities")


@pytest.fixture
def make_trainer(tmp_path):
    def make(model, dataset, eval_dataset=None, **settings):
        quiet = {"report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no"}
        args = CalibratedSFTConfig(str(tmp_path), **{"scoring": "text", "max_steps": 2, **quiet, **settings})
        return CalibratedSFTTrainer(model, args, train_dataset=dataset, eval_dataset=eval_dataset)

    return make


def assert_measured(trainer, dataset):
    """`evaluate` finds what `predict_options` finds."""
    predictions = predict_options(
        trainer.model, trainer.processing_class, dataset, prompt_format=PromptFormat("text"), progress=False
    )
    expected = calibration_report(predictions.probabilities, predictions.labels)
    assert trainer.evaluate(dataset)["eval_ece"] == pytest.approx(expected["ece"], abs=1e-5)


def test_other_layouts_are_read(world_model, questions, make_trainer):
    labels = ["1", "2", "3", "4"]
    rows = [
        {
            "question": q["question"],
            "choices": {"text": q["choices"], "label": labels},
            "answerKey": labels[q["answer"]],
        }
        for q in questions
    ]
    read, plain = make_trainer(world_model, Dataset.from_list(rows)), make_trainer(world_model, questions)
    assert read.train_dataset["input_ids"] == plain.train_dataset["input_ids"]
    assert read.train_dataset["option_label"] == plain.train_dataset["option_label"]


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda questions: questions.rename_column("answer", "gold"), "gold"),
        (lambda questions: questions.map(lambda row: {"answer": 7}), "row 0, column 'answer': 7"),
        (lambda questions: questions.map(lambda row: {"choices": row["choices"][:1], "answer": 0}), "1 option"),
    ],
)
@pytest.mark.parametrize("objective", ["cft", "rcft"])
def test_malformed_questions_are_named(world_model, questions, make_trainer, objective, spoil, named):
    with pytest.raises(ValueError, match=named):
        make_trainer(world_model, spoil(questions), objective=objective)


def test_a_whole_batch_of_questions_may_be_too_long(world_model, questions, make_trainer):
    long = questions.map(lambda row: {"question": " ".join([row["question"]] * 20)})
    trainer = make_trainer(
        world_model, concatenate_datasets([*[long] * 25, questions]), objective="cft", max_length=32
    )
    assert len(trainer.train_dataset) == len(questions)


def test_no_question_is_longer_than_the_models_context(world_model, questions, make_trainer):
    """TRL's default max_length is 1024, the world's model knows 64 positions."""
    long = questions.select(range(5)).map(lambda row: {"question": " ".join([row["question"]] * 20)})
    trainer = make_trainer(world_model, concatenate_datasets([long, questions]), objective="cft")
    assert trainer.args.max_length == trainer.model.config.max_position_embeddings == 64
    assert len(trainer.train_dataset) == len(questions)
    with pytest.raises(ValueError, match="max_length=64"):
        make_trainer(world_model, long)


@pytest.mark.parametrize("objective", ["cft", "rcft"])
def test_a_later_data_set_may_have_more_options(world_model, questions, make_trainer, objective):
    others = sorted({choice for row in questions for choice in row["choices"]})
    wide = questions.map(
        lambda row: {"choices": row["choices"] + [c for c in others if c not in row["choices"]][: 1 + len(row) % 3]}
    )
    assert_measured(make_trainer(world_model, questions, objective=objective), wide)


def test_a_later_data_set_may_have_longer_options(make_trainer, tiny_tokenizers, tiny_llama, shared_data, tmp_path):
    """The training questions have options of one token, the later ones need branches, which pass max_length together."""
    tokenizer = tiny_tokenizers["gpt2"]
    tiny_llama(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    short = [{"question": f"{i} is", "choices": ["A", "B", "C"], "answer": i % 3} for i in range(10)]
    trainer = make_trainer(str(tmp_path / "model"), Dataset.from_list(short), max_length=256)
    long = load_questions(shared_data / "arc_easy_train.parquet", limit=12, seed=0)
    assert_measured(trainer, long)
    encoded = trainer._prepare_dataset(long, trainer.processing_class, trainer.args, False, None, "eval")
    trainer.args.max_length = max(map(len, encoded["input_ids"])) - 1
    again = trainer._prepare_dataset(encoded, trainer.processing_class, trainer.args, False, None, "eval")
    assert again["input_ids"] == encoded["input_ids"]  # what is encoded stays whole


def test_a_later_data_set_is_not_packed_where_that_fails(make_trainer, tiny_tokenizers, shared_data, tmp_path):
    """The training questions need no branches; those of `evaluate` do, and are longer than the window."""
    tokenizer = tiny_tokenizers["gpt2"]
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    window = {"num_key_value_heads": 2, "sliding_window": 16, "initializer_range": 0.3}
    model = MistralForCausalLM(MistralConfig(vocab_size=len(tokenizer), **sizes, **window))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    short = [{"question": f"{i} is", "choices": ["A", "B", "C"], "answer": i % 3} for i in range(10)]
    trainer = make_trainer(str(tmp_path / "model"), Dataset.from_list(short), objective="cft")
    assert trainer.option_head.packed
    assert_measured(trainer, load_questions(shared_data / "arc_easy_train.parquet", limit=12, seed=0))
    assert not trainer.option_head.packed


def test_experts_are_balanced_over_branches(make_trainer, tiny_tokenizers, shared_data, tmp_path):
    """The auxiliary loss of a mixture of experts reads the attention mask, which is not the one of the branches."""
    tokenizer = tiny_tokenizers["qwen"]
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_local_experts": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    MixtralForCausalLM(MixtralConfig(vocab_size=len(tokenizer), **sizes, **heads)).save_pretrained(tmp_path / "moe")
    tokenizer.save_pretrained(tmp_path / "moe")
    dataset = load_questions(shared_data / "arc_easy_train.parquet", limit=10, seed=0)
    trainer = make_trainer(str(tmp_path / "moe"), dataset, max_steps=1, logging_steps=1, per_device_train_batch_size=2)
    trainer.train()
    assert any(entry.get("aux_loss", 0) > 0 and "em_ece" in entry for entry in trainer.state.log_history)


def test_texts_alone_may_be_evaluated(world_model, world, questions, make_trainer):
    # A set may bear the name "train" and is evaluated all the same, by a trainer that itself needs no other options.
    eval_dataset = {"train": questions, "text": world.pretraining_statements(8)}
    trainer = make_trainer(world_model, questions, objective="cft", eval_dataset=eval_dataset)
    metrics = trainer.evaluate()
    assert "eval_train_ece" in metrics and "eval_text_loss" in metrics and "eval_text_ece" not in metrics


def test_the_e_step_keeps_its_workers_to_itself(world_model, questions, make_trainer):
    settings = {"dataloader_persistent_workers": True, "dataloader_num_workers": 1}
    trainer = make_trainer(world_model, questions, eval_dataset=questions, **settings)
    trainer.e_step()
    assert trainer.evaluate()["eval_n"] == len(questions)


def test_the_e_step_moves_no_random_state(world_model, questions, make_trainer):
    trainer = make_trainer(world_model, questions)
    before = torch.get_rng_state()
    trainer.e_step()
    assert torch.equal(torch.get_rng_state(), before)
    assert set(OPTION_COLUMNS) <= set(trainer.estep_dataset.column_names)


def long_pairs(pairs, number):
    """Pairs, some of which have a prompt that fills the context."""
    return pairs.map(
        lambda row, place: {"prompt": " ".join([row["prompt"]] * 20) if place < number else row["prompt"]},
        with_indices=True,
    )


def test_pairs_that_are_too_long_are_counted(make_dpo_trainer, pairs, caplog):
    few = pairs.select(range(24))
    make_dpo_trainer(few, max_length=64)
    assert "left out" not in caplog.text
    trainer = make_dpo_trainer(long_pairs(few, 4), max_length=64, lambda_pref=0)
    assert len(trainer.train_dataset) == 20
    assert "4 of 24 train pairs are left out, because their prompts fill max_length=64; 0 others" in caplog.text
    with pytest.raises(ValueError, match="None of the 24 train pairs fits in max_length=64"):
        make_dpo_trainer(long_pairs(few, 24), max_length=64)
    with pytest.raises(ValueError, match="train_dataset has no rows"):
        make_dpo_trainer(few.select([]))
    longest = max(len(row["prompt_ids"]) + len(row["chosen_ids"]) for row in make_dpo_trainer(few).train_dataset)
    caplog.clear()
    make_dpo_trainer(few, max_length=longest - 1)
    assert "0 of 24 train pairs are left out" in caplog.text and "what is longer is cut" in caplog.text


def test_texts_that_are_too_long_are_counted(world_model, questions, make_trainer, caplog):
    rows = [{"prompt": row["question"], "completion": " " + row["choices"][0]} for row in questions] + [
        {"prompt": " ".join([row["question"]] * 20), "completion": " " + row["choices"][0]}
        for row in questions.select(range(8))
    ]
    trainer = make_trainer(world_model, Dataset.from_list(rows), objective="cft", max_length=64)
    assert len(trainer.train_dataset) == 40
    assert "8 of 48 train texts are left out, because their prompts fill max_length=64; 0 others" in caplog.text
    with pytest.raises(ValueError, match="None of the 8 train texts fits in max_length=64"):
        make_trainer(world_model, Dataset.from_list(rows[-8:]), objective="cft", max_length=64)
    with pytest.raises(ValueError, match="train_dataset has no rows"):
        make_trainer(world_model, Dataset.from_list(rows).select([]), objective="cft")
