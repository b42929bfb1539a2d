"""
Short answers in a synthetic world with a known truth: P(True) by fine-tuning, and everything post-hoc.

    python benchmarks/short_answers/short_answer_world.py --seeds 10 11 12 --output_dir short-answer-world

The model writes a value after "the colour of bavo is", without options. The accepted text of a question is a draw
from the true distribution, so the answer is right with a known probability. The parent has read statements, and
judgements such as "? the colour of bavo is red true"; DPO makes it sure of itself. Models and figures are kept in
OUTPUT_DIR: the same command continues an interrupted run. Prints a table and, last, one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets, disable_progress_bars
from transformers import PreTrainedModel

from hf_calib import (
    AnswerOptions,
    CalibratedSFTConfig,
    CalibratedSFTTrainer,
    PromptFormat,
    predict_answers,
    predict_options,
)
from hf_calib.data.short_answers import short_questions
from hf_calib.data.synthetic_world import World, WorldConfig
from hf_calib.evaluation.tables import write_json
from hf_calib.hub.recipe import read_recipe
from hf_calib.inference.model_loading import load_model
from hf_calib.inference.predictions import OptionPredictions
from hf_calib.paths import recipe_path


sys.path += [str(Path(__file__).parents[1] / name) for name in ("rivals", "headline", "short_answers")]

from calibration_tuning import CalibrationTuning  # noqa: E402
from confidence_rows import TITLES, measure, post_hoc  # noqa: E402
from headline_stages import train  # noqa: E402


STATEMENTS, JUDGEMENTS, PAIRS = 30_000, 30_000, 6_000
FORMAT = PromptFormat("text", "{question}")
OPTIONS = AnswerOptions(
    tuple(TITLES),
    FORMAT,
    FORMAT,
    "? {question} {answer}",
    ("true", "false"),
    max_new_tokens=3,
    num_samples=10,
    batch_size=250,
    progress=False,
)
EPOCHS = {100: 20, 400: 8}  # by the number of labels
CLOSING = {"closing_step": {"learning_rate": 1.0e-3, "num_texts": 0, "num_continuations": 64}}
TRAINED = {
    "CFT of P(True)": {"objective": "cft", "closing_step": False},
    "CFT of P(True), closing step": {"objective": "cft", **CLOSING},
    "RCFT of P(True)": {"objective": "rcft", **CLOSING},
    "RCFT of P(True), own texts kept": {"objective": "rcft", "closing_step": {"learning_rate": 1.0e-3}},
}


TUNED = "calibration-tuning of P(True)"


class ShortAnswerWorld(World):
    """A world whose language has judgements: `?`, a statement, and `true` or `false`."""

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        words = World.vocabulary.func(self)
        return words | {word: len(words) + place for place, word in enumerate(("?", "true", "false"))}

    def judgements(self, n: int, seed: int = 0) -> Dataset:
        """
        Sample judgements of statements, half of them of random values, in the column `text`.

        A statement is true with the true probability of its value.
        """
        rng = self._rng("judgements", seed, n)
        relations, entities = rng.integers(len(self.relations), size=n), rng.integers(len(self.entities), size=n)
        values = self._sample_values(rng, relations, entities)
        values = np.where(rng.random(n) < 0.5, values, rng.integers(len(self.values[0]), size=n))
        true = rng.random(n) < self.probabilities[relations, entities, values]
        rows = zip(relations, entities, values, true, strict=True)
        text = [f"? {self._prompt(r, e)} {self.values[r][v]} {'true' if t else 'false'}" for r, e, v, t in rows]
        return Dataset.from_dict({"text": text})

    def truth(self, questions: Dataset, answers: list[str]) -> np.ndarray:
        """True probability `(N,)` that each answer is right; 0 for an answer that is no value."""
        found = []
        for question, subject, answer in zip(questions["question"], questions["subject"], answers, strict=True):
            relation, entity = self.relations.index(subject), self.entities.index(question.split()[-2])
            values = self.values[relation]
            known = answer in values
            found.append(self.probabilities[relation, entity, values.index(answer)] if known else 0.0)
        return np.array(found)


class Cell:
    """A world with its aligned model, its answers and the labels."""

    def __init__(self, folder: Path, seed: int, num_labels: int, num_test: int):
        self.folder, self.seed, self.num_labels = folder / str(seed), seed, num_labels
        self.world = ShortAnswerWorld(WorldConfig(seed=seed))
        self._train()
        self.model, self.tokenizer = load_model(str(self.folder / "dpo"))
        self.labels = short_questions(self.world.questions(num_labels, seed, split="train"))
        self.test = short_questions(self.world.questions(num_test, seed, split="test"))
        self.known = predict_answers(self.model, self.tokenizer, self.labels, OPTIONS, seed=seed)
        self.asked = predict_answers(self.model, self.tokenizer, self.test, OPTIONS, seed=seed)

    def _train(self) -> None:
        """The parent and the aligned model, by the recipes of the quickstart."""
        if (self.folder / "dpo" / "model.safetensors").is_file():
            return
        untrained = self.folder / "untrained"
        self.world.model(self.seed).save_pretrained(untrained)
        self.world.tokenizer().save_pretrained(untrained)
        texts = [
            self.world.pretraining_statements(STATEMENTS, self.seed),
            self.world.judgements(JUDGEMENTS, self.seed),
        ]
        concatenate_datasets(texts).shuffle(seed=self.seed).to_parquet(self.folder / "texts.parquet")
        self.world.preference_pairs(PAIRS, self.seed).to_parquet(self.folder / "pairs.parquet")
        for name, parent, data in (("pretrain", "untrained", "texts"), ("dpo", "pretrain", "pairs")):
            changes = {
                "model_name_or_path": str(self.folder / parent),
                "dataset_name": str(self.folder / f"{data}.parquet"),
                "seed": self.seed,
            }
            (self.folder / name).mkdir(exist_ok=True)
            train(read_recipe(recipe_path(f"quickstart/{name}.yaml")) | changes, self.folder / name)

    def judged(self, model: PreTrainedModel) -> OptionPredictions:
        """P(True) of a model for the aligned model's answers to the test questions."""
        options = {"prompt_format": FORMAT, "batch_size": 250, "progress": False}
        found = predict_options(model, self.tokenizer, self.asked.judgements, **options)
        found.metadata["answer_confidence"] = "p_true"
        return found

    def fine_tuned(self, changes: dict[str, Any]) -> PreTrainedModel:
        """The model after CFT or RCFT on its own graded answers."""
        recipe = read_recipe(recipe_path("quickstart/rcft.yaml"))
        left_out = ("model_name_or_path", "dataset_name", "output_dir")
        recipe = {name: value for name, value in recipe.items() if name not in left_out}
        recipe |= {"seed": self.seed, "disable_tqdm": True, "logging_strategy": "no"}
        recipe |= {"num_train_epochs": EPOCHS[self.num_labels], **changes}
        with tempfile.TemporaryDirectory() as folder:
            args = CalibratedSFTConfig(folder, **recipe, use_cpu=not torch.cuda.is_available())
            model = load_model(str(self.folder / "dpo"))[0]
            data = {"train_dataset": self.known.judgements, "processing_class": self.tokenizer}
            trainer = CalibratedSFTTrainer(model, args, **data)
            trainer.train()
        return trainer.model.eval()

    def rows(self) -> dict[str, dict[str, Any]]:
        """Figures of every method; kept in the folder."""
        path = self.folder / f"rows-{self.num_labels}.json"
        rows = json.loads(path.read_text()) if path.is_file() else {}
        if not rows:
            for name, predictions in post_hoc(self.known.predictions, self.asked.predictions).items():
                rows[name] = self._row(predictions, self.asked.answers)
        for name in (*TRAINED, TUNED):
            if name not in rows:
                model = self.fine_tuned(TRAINED[name]) if name in TRAINED else self.calibration_tuned()
                rows[name] = self._row(self.judged(model), self.answers(model))
                write_json(path, rows)
        return rows

    def calibration_tuned(self) -> PreTrainedModel:
        """The model after calibration-tuning on its own graded answers."""
        return CalibrationTuning(self.model, self.tokenizer, FORMAT, seed=self.seed).fit(self.known.judgements).model

    def _row(self, predictions: OptionPredictions, written: list[str]) -> dict[str, Any]:
        """Measures of confidences, and of the answers that the model writes."""
        truth = self.world.truth(self.test, self.asked.answers)
        kept = [a == b for a, b in zip(written, self.asked.answers, strict=True)]
        return {
            **measure(predictions, n_bootstrap=100),
            "distance_to_truth": float(np.abs(predictions.outcomes[0] - truth).mean()),
            "answers_kept": float(np.mean(kept)),
            "true_accuracy": float(self.world.truth(self.test, written).mean()),
        }

    def answers(self, model: PreTrainedModel) -> list[str]:
        """Answers that a model writes to the test questions."""
        options = {"confidences": ("likelihood",)}
        return predict_answers(model, self.tokenizer, self.test, OPTIONS, **options).answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12])
    parser.add_argument("--labels", type=int, nargs="+", default=[100, 400], choices=EPOCHS)
    parser.add_argument("--num_test_questions", type=int, default=1000)
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()
    disable_progress_bars()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    summary = {}
    for num_labels in args.labels:
        cells = [Cell(args.output_dir, seed, num_labels, args.num_test_questions).rows() for seed in args.seeds]
        print(
            f"\n{num_labels} labels, {args.num_test_questions} test questions, worlds {args.seeds}: means over worlds"
        )
        names = ("accuracy", "confidence", "ece", "ece_noise_floor", "nll", "auroc", "distance_to_truth")
        names += ("answers_kept", "true_accuracy")
        print(f"{'':<45}" + "".join(f"{name[:17]:>18}" for name in names))
        for row in cells[0]:
            means = {name: float(np.mean([cell[row][name] for cell in cells])) for name in names}
            print(f"{row:<45}" + "".join(f"{means[name]:>18.3f}" for name in names), flush=True)
            summary[f"{num_labels}/{row}"] = round(means["ece"], 4)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
