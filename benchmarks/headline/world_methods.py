"""The methods of headline_world.py: each takes a world and a number of labels, and returns an outcome."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adaptive_temperature import AdaptiveTemperature, confidence_features
from averages import SHARES, ProbabilityAverage, average_weights, choose_share
from batch_calibration import BatchCalibration, option_priors
from datasets import Dataset
from headline_stages import train

from hf_calib import CalibratedSFTConfig, CalibratedSFTTrainer, load_questions, predict_options
from hf_calib.hub.recipe import read_recipe
from hf_calib.inference.model_loading import load_model
from hf_calib.inference.predictions import OptionPredictions
from hf_calib.inference.preference_scores import score_pairs
from hf_calib.paths import recipe_path
from hf_calib.posthoc import fit_calibrator
from hf_calib.training.quickstart import PROMPT_FORMAT, STAGES, Stage, make_world
from hf_calib.training.restore_recipe import closing_options


STYLE_AGREEMENT = 2.0
EPOCHS = {100: 20, 500: 8, 2000: 4}  # by the number of labels
LEAST_MARGIN = 0.95  # of the aligned model's


@dataclass
class Outcome:
    """
    What a method makes of a world.

    Args:
        probabilities (`np.ndarray` of shape `(N, K)`):
            Of the test questions.
        scores (`np.ndarray` of shape `(pairs, 2)`):
            Log-likelihoods of the style pairs.
        seconds (`float`, *optional*, defaults to `0.0`):
            Of the training.
        chosen (`str`, *optional*):
            Settings that the method has chosen.
    """

    probabilities: np.ndarray
    scores: np.ndarray
    seconds: float = 0.0
    chosen: str = ""


@dataclass(eq=False)
class WorldData:
    """
    A world, its parent and its aligned model, and their predictions. The models are trained where they are missing.

    Args:
        folder (`Path`):
            Folder of the world.
        seed (`int`):
            Its seed.
        num_test (`int`), num_pairs (`int`):
            Number of test questions and of style pairs.
    """

    folder: Path
    seed: int
    num_test: int
    num_pairs: int

    def __post_init__(self):
        if not (self.folder / "world").is_dir():
            make_world(self.folder / "world", self.seed, self.num_test, STYLE_AGREEMENT)
        for stage in STAGES:
            if not (self.folder / stage.name / "model.safetensors").is_file():
                self._train_stage(stage)
        self.test = load_questions(self.folder / "world" / "test.parquet").select(range(self.num_test))
        self.pool = load_questions(self.folder / "world" / "train.parquet").shuffle(seed=self.seed)
        pairs = Dataset.from_parquet(str(self.folder / "world" / "style_pairs.parquet"))
        self.pairs = pairs.select(range(self.num_pairs))

    def _train_stage(self, stage: Stage) -> None:
        """The recipe of the quickstart, in this process."""
        parent = "world/untrained" if stage.parent == "untrained" else stage.parent
        data = self.folder / "world" / f"{stage.data}.parquet"
        changes = {"model_name_or_path": str(self.folder / parent), "dataset_name": str(data), "seed": self.seed}
        (self.folder / stage.name).mkdir(exist_ok=True)
        train(read_recipe(recipe_path(f"quickstart/{stage.name}.yaml")) | changes, self.folder / stage.name)

    def labels(self, budget: int) -> Dataset:
        """The labelled questions: the first of the pool."""
        return self.pool.select(range(budget))

    @cached_property
    def questions(self) -> Dataset:
        """All questions of the pool without their answers."""
        return self.pool.remove_columns("answer")

    def predict(self, model, questions: Dataset) -> OptionPredictions:
        options = {"prompt_format": PROMPT_FORMAT, "batch_size": 256, "progress": False}
        return predict_options(model, self.tokenizer, questions, **options)

    def score(self, model) -> np.ndarray:
        return score_pairs(model, self.tokenizer, self.pairs, batch_size=256)

    @cached_property
    def tokenizer(self):
        return load_model(str(self.folder / "dpo"))[1]

    def load(self, share: float):
        """The average of weights with this share of the parent: 0 is the aligned model, 1 the parent."""
        model = load_model(str(self.folder / ("pretrain" if share == 1 else "dpo")))[0]
        return average_weights(model, load_model(str(self.folder / "pretrain"))[0], share) if 0 < share < 1 else model

    @cache  # noqa: B019
    def tested(self, share: float) -> OptionPredictions:
        return self.predict(self.load(share), self.test)

    @cache  # noqa: B019
    def pooled(self, share: float) -> OptionPredictions:
        return self.predict(self.load(share), self.pool)

    @cache  # noqa: B019
    def scored(self, share: float) -> np.ndarray:
        return self.score(self.load(share))

    @cache  # noqa: B019
    def features(self, part: str) -> np.ndarray:
        """Confidence features of the aligned model and its last hidden state at the answer, `(N, F)`."""
        questions, predictions = (self.test, self.tested(0.0)) if part == "test" else (self.pool, self.pooled(0.0))
        model, states = self.load(0.0).eval(), []
        with torch.no_grad():
            for start in range(0, len(questions), 500):  # all prompts have the same number of words
                inputs = self.tokenizer(questions[start : start + 500]["question"], return_tensors="pt")
                states.append(model.base_model(inputs["input_ids"]).last_hidden_state[:, -1].numpy())
        return np.hstack([confidence_features(predictions.option_logits), np.concatenate(states)])

    def margins(self, scores: np.ndarray) -> np.ndarray:
        """Margins of the style pairs over those of the parent."""
        return (scores - self.scored(1.0)) @ [1.0, -1.0]

    def retained(self, scores: np.ndarray) -> float:
        """Mean margin over that of the aligned model."""
        return float(self.margins(scores).mean() / self.margins(self.scored(0.0)).mean())


def as_is(world: WorldData, budget: int, share: float = 0.0) -> Outcome:
    """The aligned model, or with share 1 its parent."""
    return Outcome(world.tested(share).probabilities, world.scored(share))


def posthoc(world: WorldData, budget: int, method: str, share: float = 0.0) -> Outcome:
    """A calibrator of the aligned model, or with share 1 of its parent, fitted on the labels."""
    known, test = world.pooled(share), world.tested(share)
    logits, labels = known.option_logits[:budget], known.labels[:budget]
    fitted = fit_calibrator(method, logits, labels, groups=known.subjects[:budget])
    return replace(as_is(world, budget, share), probabilities=test.recalibrated(fitted).probabilities)


def adaptive(world: WorldData, budget: int) -> Outcome:
    """A temperature as a function of confidence features and hidden states."""
    known = world.pooled(0.0)
    fitted = AdaptiveTemperature()
    fitted.fit(known.option_logits[:budget], world.features("pool")[:budget], known.labels[:budget])
    probabilities = fitted.transform(world.tested(0.0).option_logits, world.features("test"))
    return Outcome(probabilities, world.scored(0.0), chosen=f"penalty {fitted.penalty:g}")


def batch_calibration(world: WorldData, budget: int) -> Outcome:
    """Batch calibration from all questions of the pool, and a temperature."""
    known, choices, subjects = world.pooled(0.0), world.pool["choices"], world.pool["subject"]
    fitted = BatchCalibration(option_priors(known.option_logits, choices, subjects))
    fitted.fit(known.option_logits[:budget], known.labels[:budget], choices[:budget], subjects[:budget])
    test = world.tested(0.0)
    probabilities = fitted.transform(test.option_logits, world.test["choices"], world.test["subject"])
    return Outcome(probabilities, world.scored(0.0), chosen=f"strength {fitted.strength:.1f}")


def agreement(world: WorldData, budget: int) -> Outcome:
    """DACA: a temperature from the parent, on all questions of the pool."""
    logits = [world.pooled(share).option_logits for share in (0.0, 1.0)]
    fitted = fit_calibrator("agreement", logits[0], None, logits[1])
    return replace(as_is(world, budget), probabilities=world.tested(0.0).recalibrated(fitted).probabilities)


def weight_average(world: WorldData, budget: int, keeps_margin: bool = False) -> Outcome:
    """An average of weights; with `keeps_margin` only shares that keep the margin of the style pairs."""
    logits = {share: world.pooled(share).option_logits[:budget] for share in SHARES}
    allowed = [s for s in SHARES if not keeps_margin or world.retained(world.scored(s)) >= LEAST_MARGIN]
    share, calibrator = choose_share(logits, world.pooled(0.0).labels[:budget], allowed)
    found = as_is(world, budget, share)
    if calibrator is not None:
        found.probabilities = world.tested(share).recalibrated(calibrator).probabilities
    return replace(found, chosen=f"share {share:.1f}" + " and T" * (calibrator is not None))


def probability_average(world: WorldData, budget: int) -> Outcome:
    """An average of option probabilities."""
    known, test = ([part(share) for share in (0.0, 1.0)] for part in (world.pooled, world.tested))
    fitted = ProbabilityAverage().fit(*(side.option_logits[:budget] for side in known), known[0].labels[:budget])
    probabilities = fitted.transform(*(side.option_logits for side in test))
    scores = fitted.scores(*(world.scored(share) for share in (0.0, 1.0)))
    return Outcome(probabilities, scores, chosen=f"share {fitted.share:.1f}")


def trained(
    world: WorldData,
    budget: int,
    changes: dict[str, Any],
    epochs: dict[int, int] = EPOCHS,
    unlabelled: bool = False,
    temperature: bool = False,
) -> Outcome:
    """The recipe of the quickstart with changes; with `temperature` a fifth of the labels fits one."""
    labels = world.labels(budget or len(world.pool))
    num_kept = len(labels) * 4 // 5 if temperature else len(labels)
    recipe = read_recipe(recipe_path("quickstart/rcft.yaml"))
    recipe = {k: v for k, v in recipe.items() if k not in ("model_name_or_path", "dataset_name", "output_dir")}
    recipe |= {"seed": world.seed, "disable_tqdm": True, "logging_strategy": "no"}
    recipe |= {"num_train_epochs": epochs[budget or 2000]} | changes
    if recipe["closing_step"]:  # as many steps as `hf-calib restore` takes
        held_out, batch = recipe["em_holdout"], recipe["per_device_train_batch_size"]
        steps = epochs[budget] * ceil((1 - held_out) * budget / batch)
        recipe["closing_step"] = closing_options("full", steps) | recipe["closing_step"]
    if "reference_model_name_or_path" in recipe:
        recipe["reference_model_name_or_path"] = str(world.folder / "pretrain")
    with tempfile.TemporaryDirectory() as folder:
        args = CalibratedSFTConfig(folder, **recipe, use_cpu=not torch.cuda.is_available())
        data = {"train_dataset": labels.select(range(num_kept))}
        data |= {"unlabelled_dataset": world.questions} if unlabelled else {}
        trainer = CalibratedSFTTrainer(world.load(0.0), args, processing_class=world.tokenizer, **data)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    model = trainer.model.eval()
    found, report = world.predict(model, world.test), trainer.closing_report or {}
    if temperature:
        held_out = world.predict(model, labels.select(range(num_kept, budget)))
        found = found.recalibrated(fit_calibrator("temperature", held_out.option_logits, held_out.labels))
    return Outcome(found.probabilities, world.score(model), seconds, report.get("closing_method", ""))


@dataclass(frozen=True)
class Method:
    """
    A method of the comparison.

    Args:
        run (`Callable`):
            Function of a world and a number of labels.
        sees (`str`):
            What it gets besides the aligned model: `"labels"`, `"questions"` without answers, the `"parent"`.
        options (`dict`, *optional*):
            Further arguments of `run`.
    """

    run: Callable[..., Outcome]
    sees: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def uses_labels(self) -> bool:
        return "labels" in self.sees

    def __call__(self, world: WorldData, budget: int) -> Outcome:
        return self.run(world, budget, **self.options)
