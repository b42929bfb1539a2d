"""Questions are adapted once on their way from a file to a training."""

import json

import pytest

from hf_calib import CalibratedSFTConfig, CalibratedSFTTrainer, load_questions, predict_options
from hf_calib.data import adapters


@pytest.mark.parametrize("objective", ["cft", "rcft"])
def test_each_question_is_adapted_once(world, world_model, tmp_path, monkeypatch, objective):
    file = tmp_path / "questions.jsonl"
    rows = list(world.questions(40, seed=0, split="train").select_columns(["question", "choices", "answer"]))
    file.write_text("\n".join(map(json.dumps, rows)))
    adapted, original = [], adapters._adapt_row
    monkeypatch.setattr(adapters, "_adapt_row", lambda *call: adapted.append(call[0]["question"]) or original(*call))
    questions = load_questions(file, seed=1)
    quiet = {"report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no"}
    args = CalibratedSFTConfig(str(tmp_path), objective=objective, scoring="text", max_steps=1, **quiet)
    trainer = CalibratedSFTTrainer(world_model, args, train_dataset=questions.select(range(30)))
    trainer.train()
    predict_options(
        trainer.model, trainer.processing_class, questions.select(range(30, 40)), scoring="text", progress=False
    )
    assert adapted == [row["question"] for row in rows]
