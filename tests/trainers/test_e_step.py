"""Rows held out for the E-step."""

from collections import Counter

import pytest
from datasets import Dataset

from hf_calib import CalibratedDPOConfig, CalibratedSFTConfig
from hf_calib.trainers.e_step import hold_out
from hf_calib.trainers.preference import comparisons


def split(asked, **settings):
    rows = Dataset.from_dict({"question": asked, "row": range(len(asked))})
    args = CalibratedSFTConfig("unused", use_cpu=True, bf16=False, **settings)
    return hold_out(rows, asked, args, "questions")


@pytest.mark.parametrize("seed", range(5))
def test_rows_of_one_question_stay_together(seed):
    asked = [f"question {i % 37}" for i in range(100)]
    kept, held_out = split(asked, em_holdout=0.2, seed=seed)
    assert not set(kept["question"]) & set(held_out["question"])
    assert sorted([*kept["row"], *held_out["row"]]) == list(range(100))
    # Groups of two and three rows: they fill the fraction to the row, or but for one.
    assert 19 <= len(held_out) <= 20


def test_different_questions_are_split_to_the_row_and_by_the_seed():
    asked = [f"question {i}" for i in range(100)]
    kept, held_out = split(asked, em_holdout=0.33)
    assert len(held_out) == 33 and list(held_out["row"]) == sorted(held_out["row"])
    assert split(asked, em_holdout=0.33)[1]["row"][:] == held_out["row"][:]
    assert split(asked, em_holdout=0.33, seed=1)[1]["row"][:] != held_out["row"][:]
    assert len(split(asked, em_holdout=7)[1]) == 7


@pytest.mark.parametrize("asked", [[f"question {i}" for i in range(100)], [f"question {i % 37}" for i in range(100)]])
def test_folds_hold_every_question_out_once(asked):
    folds = [split(asked, em_holdout=0.25, em_fold=fold, seed=1)[1] for fold in range(4)]
    rows = [row for fold in folds for row in fold["row"]]
    # Questions of two and three rows do not fill every part to the row.
    assert len(set(rows)) == len(rows) and len(rows) >= (100 if len(set(asked)) == 100 else 96)
    assert all(len(fold) <= 25 for fold in folds)
    assert folds[0]["row"][:] == split(asked, em_holdout=0.25, seed=1)[1]["row"][:]
    with pytest.raises(
        ValueError, match="em_fold=5 of 100 questions .* leaves 0 for the E-step: .* the folds are 0 to 3"
    ):
        split(asked, em_holdout=0.25, em_fold=5, seed=1)


def test_a_question_too_frequent_to_be_held_out_is_trained_on():
    kept, held_out = split(["the same"] * 90 + [f"question {i}" for i in range(10)])
    assert Counter(held_out["question"]).most_common(1)[0][1] == 1 and len(held_out) == 10


def test_one_question_alone_cannot_be_split():
    with pytest.raises(ValueError, match=r"10 questions leaves 0 for the E-step .* \(1 different questions\)"):
        split(["the same"] * 10)
    kept, held_out = split(["the same"] * 10, em_holdout=0)
    assert len(kept) == len(held_out) == 10


@pytest.mark.parametrize(("num_rows", "held_out"), [(40, 4), (5_120, 512), (20_000, 512)])
def test_dpo_holds_out_a_tenth_at_most_512(num_rows, held_out):
    args = CalibratedDPOConfig("unused", use_cpu=True, bf16=False)
    assert args.num_held_out(num_rows) == held_out
    assert CalibratedDPOConfig("unused", use_cpu=True, bf16=False, em_holdout=0.5).num_held_out(num_rows) > held_out


def test_a_pair_and_its_reverse_ask_the_same():
    rows = {
        "prompt_ids": [[1], [1], [1], [2]],
        "chosen_ids": [[5], [6], [5], [5]],
        "rejected_ids": [[6], [5], [7], [6]],
    }
    first, reverse, other, other_prompt = comparisons(Dataset.from_dict(rows))
    assert first == reverse and len({first, other, other_prompt}) == 3


@pytest.mark.parametrize("settings", [{"em_holdout": 0}, {"em_preset": "paper"}])
def test_an_estep_on_the_training_rows_has_no_folds(settings):
    with pytest.raises(ValueError, match="em_fold=1: em_holdout=0 holds out no rows"):
        split(["a question"], em_fold=1, **settings)
