"""`restore` of questions without options: the model learns to say whether its own answers are right."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset

from hf_calib.data.prompts import ANSWER_TEMPLATE, PromptFormat
from hf_calib.data.questions import load_questions
from hf_calib.data.short_answers import short_questions
from hf_calib.inference.answer_confidence import predict_answers
from hf_calib.inference.model_loading import load_model, process_state
from hf_calib.training import judged_answers, restore_recipe
from hf_calib.training.judged_answers import with_judged_answers
from hf_calib.training.restore import run_restore
from hf_calib.training.restore_data import load_restore_records
from hf_calib.training.restore_options import RestoreOptions
from hf_calib.training.restore_plan import Plan, describe_cut, fit_budget
from hf_calib.training.restore_stages import StageRecord


N = 90


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizers, tiny_llama):
    """A random model, and questions to half of which its own answer is accepted."""
    folder = tmp_path_factory.mktemp("judged")
    tiny_llama(tiny_tokenizers["qwen"]).save_pretrained(folder / "model")
    tiny_tokenizers["qwen"].save_pretrained(folder / "model")
    rows = [{"question": f"What is {i} + {i}?", "answers": ["?"]} for i in range(N)]
    found = predict_answers(
        *load_model(str(folder / "model")),
        short_questions(Dataset.from_list(rows)),
        confidences=("likelihood",),
        prompt_format=PromptFormat("text", ANSWER_TEMPLATE),
        batch_size=32,
        progress=False,
    )
    for place, (row, answer) in enumerate(zip(rows, found.answers, strict=True)):
        row["answers"] = [answer if place % 2 and answer else "no such answer"]
    (folder / "short.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "more.jsonl").write_text(
        "\n".join(json.dumps({"question": f"{i} * 2", "answers": []}) for i in range(9))
    )
    return folder


@pytest.fixture
def options(folder, tmp_path):
    return RestoreOptions(
        model=str(folder / "model"),
        dataset=str(folder / "short.jsonl"),
        unlabelled=str(folder / "more.jsonl"),
        output_dir=str(tmp_path / "out"),
        batch_size=32,
    )


def judged_options(options):
    record = StageRecord(Path(options.output_dir), not options.no_resume, process_state())
    record.path.parent.mkdir(exist_ok=True)
    return with_judged_answers(options, load_restore_records(options), record)[0]


def test_questions_become_judgements(options, capsys):
    judged = judged_options(options)
    assert judged.scoring == "letter"
    labelled = load_questions(judged.dataset)
    assert len(labelled) == N and 0 < sum(labelled["answer"]) < N
    assert labelled["choices"][0] == ["True", "False"]
    assert len(load_questions(judged.unlabelled, labelled=False)) == 9
    assert f"dataset: {N} answers, " in capsys.readouterr().out
    assert judged_options(judged) is judged  # option questions stay


def test_answers_of_other_weights_are_not_kept(options, tmp_path, tiny_tokenizers, tiny_llama):
    options = replace(
        options, model=str(shutil.copytree(options.model, tmp_path / "model")), limit=40, unlabelled=None
    )
    judged_options(options)
    tiny_llama(tiny_tokenizers["qwen"], seed=1).save_pretrained(options.model)
    with pytest.raises(ValueError, match="holds answers with other"):
        judged_options(options)


def test_limits_are_applied_once(options):
    judged = judged_options(replace(options, limit=30, unlabelled_limit=4))
    assert judged.limit is None and judged.unlabelled_limit is None
    assert len(load_questions(judged.dataset)) == 30
    assert len(load_questions(judged.unlabelled, labelled=False)) == 4


def test_unlabelled_questions_need_no_answers(options, tmp_path):
    (tmp_path / "bare.jsonl").write_text("\n".join(json.dumps({"question": f"{i} * 3"}) for i in range(7)))
    judged = judged_options(replace(options, unlabelled=str(tmp_path / "bare.jsonl")))
    assert len(load_questions(judged.unlabelled, labelled=False)) == 7


def test_columns_are_of_questions_of_one_kind(options, tmp_path):
    row = {"question": "Ice is", "choices": ["hot", "cold"], "answer": 2}
    (tmp_path / "test.jsonl").write_text("\n".join(json.dumps(row) for _ in range(9)))
    with pytest.raises(ValueError, match="test has options and the rest none"):
        judged_options(replace(options, test=str(tmp_path / "test.jsonl"), answers_from=1))


def test_all_wrong_is_an_error(options, tmp_path):
    (tmp_path / "wrong.jsonl").write_text(
        "\n".join(json.dumps({"question": f"{i}", "answer": "x y"}) for i in range(50))
    )
    with pytest.raises(ValueError, match="all 50 answers .* are wrong"):
        judged_options(replace(options, dataset=str(tmp_path / "wrong.jsonl"), unlabelled=None))


@pytest.fixture
def slow(monkeypatch):
    """Each question seems to take a second to answer and a millisecond to judge."""
    seconds = iter([1.0, 0.001] * 10)
    monkeypatch.setattr(judged_answers, "seconds_per_question", lambda *given: next(seconds))


def test_a_budget_counts_the_writing_of_answers(options, slow, tmp_path, capsys):
    judged = judged_options(replace(options, budget=1.9))
    written = sum(len(path.read_text().splitlines()) for path in (tmp_path / "out").glob("answers/*/answers.jsonl"))
    assert 60 < written < N and len(load_questions(judged.dataset)) == written and judged.unlabelled is None
    printed = capsys.readouterr().out
    assert "To fit the budget of 2 min: " in printed and "of 60 labels, 0 of 9 questions without answers." in printed
    # The times of a second run are those of the first, and nothing is written again.
    assert judged_options(replace(options, budget=1.9)) == judged
    assert "answers of a budget: kept" in (printed := capsys.readouterr().out) and "answers: kept" in printed


def test_a_budget_that_is_too_small_is_an_error_before_the_writing(options, slow, tmp_path):
    with pytest.raises(ValueError, match=r"--budget [\d.]+ or more"):
        judged_options(replace(options, budget=0.5))
    assert not (tmp_path / "out" / "answers").exists()


def test_the_plan_counts_what_was_spent():
    plan = Plan(400, 1000, 800, 4, 0.1, 3, 0, False, False)
    assert replace(plan, spent=80).seconds == pytest.approx(plan.seconds + 80)
    assert replace(plan, seconds_per_answer=0.1).seconds == pytest.approx(plan.seconds + 220)
    assert "(writing answers 80 s, evaluation" in replace(plan, spent=80).describe(None)
    found = describe_cut(plan, fit_budget(plan, 8), 8)
    assert found.startswith("To fit the budget of 8 min: ") and "1 of 4 epochs" in found
    assert describe_cut(plan, plan, 8) == ""


def test_restore_takes_them(options, tmp_path, monkeypatch):
    monkeypatch.setattr(restore_recipe, "CLOSING_STEPS", {"full": 1, "lora": 1})
    stages = run_restore(replace(options, unlabelled=None))
    assert {stage["stage"] for stage in stages} >= {"aligned", "restored"}
    assert all(0 < stage["ece"] < 1 for stage in stages)
    assert (tmp_path / "out" / "model" / "config.json").is_file()


def test_restore_with_a_test_set_of_wrong_answers_alone(options, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(restore_recipe, "CLOSING_STEPS", {"full": 1, "lora": 1})
    (tmp_path / "wrong.jsonl").write_text(
        "\n".join(json.dumps({"question": f"{i}", "answer": "x y"}) for i in range(30))
    )
    stages = run_restore(replace(options, unlabelled=None, test=str(tmp_path / "wrong.jsonl")))
    assert "all 30 answers to" in caplog.text and "wrong: measures that need both kinds" in caplog.text
    assert {stage["stage"] for stage in stages} >= {"aligned", "restored"}
