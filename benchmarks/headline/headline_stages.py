"""Stages of benchmarks/headline/headline.py: work that is done once, and the kinds of it."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from datasets import Dataset
from headline_config import Source
from scipy.special import softmax
from transformers import PreTrainedTokenizerBase

from hf_calib import __version__, load_questions
from hf_calib.cli.main import main as hf_calib
from hf_calib.data.questions import PromptFormat, deduplicate_questions, split_questions
from hf_calib.evaluation.tables import write_json
from hf_calib.inference.encoding import OptionEncoder
from hf_calib.inference.model_loading import load_merged
from hf_calib.inference.predictions import OptionPredictions
from hf_calib.posthoc import PostHocCalibrator, cross_validate, fit_calibrator


sys.path.append(str(Path(__file__).parents[1] / "rivals"))  # trainers that a recipe may name


@dataclass(eq=False)
class Stage:
    """
    A piece of work with a folder. It is done where the folder holds `stage.json` with the key: a digest of all that
    the result is made of, the keys of the stages it builds on included.
    """

    folder: Path
    kind: str
    made_of: Any
    work: Callable[[Path], None]
    needs: tuple[Stage, ...] = ()

    @cached_property
    def key(self) -> str:
        made_of = [__version__, self.kind, self.made_of, [stage.key for stage in self.needs]]
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def done(self) -> bool:
        marker = self.folder / "stage.json"
        return marker.exists() and json.loads(marker.read_text())["key"] == self.key

    def chain(self) -> Iterator[Stage]:
        """All that it builds on, in order, and itself."""
        for stage in self.needs:
            yield from stage.chain()
        yield self

    def make(self) -> None:
        """Do the work, unless it is done. What an unfinished or another run left in the folder is removed."""
        if not self.done:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            start = time.perf_counter()
            self.work(self.folder)
            seconds = round(time.perf_counter() - start, 2)
            write_json(self.folder / "stage.json", {"key": self.key, "kind": self.kind, "seconds": seconds})


def train(arguments: dict[str, Any], folder: Path) -> None:
    """Run `hf-calib train` on the arguments, kept as a recipe in the folder; its output goes to train.log."""
    from rival_trainers import register_rivals

    register_rivals()
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**arguments, "output_dir": str(folder), "disable_tqdm": True}, sort_keys=False))
    with (folder / "train.log").open("w", buffering=1) as log, redirect_stdout(log):
        run(["train", "--config", str(recipe)])


def run(command: list[str]) -> None:
    """A command of `hf-calib`, in this process."""
    if hf_calib(command):
        raise RuntimeError(f"hf-calib {shlex.join(command)} failed: the reason stands above.")


def choose(
    predictions: dict[str, OptionPredictions], method: str | None, references: dict[str, OptionPredictions], seed: int
) -> tuple[str, PostHocCalibrator | None]:
    """The normalisation under which the method has the least cross-validated NLL, and the method fitted on it."""
    scores = {}
    for name, fitted in predictions.items():
        logits, labels, groups = fitted.option_logits, fitted.labels, fitted.subjects
        reference = references[name].option_logits if name in references else None
        outcome = softmax(logits.astype(np.float64), axis=-1)
        if method is not None and len(predictions) > 1:
            outcome = cross_validate([method], logits, labels, reference, seed=seed, groups=groups)[method]
        picked = outcome[np.arange(len(labels)), labels]
        calibrator = None if method is None else fit_calibrator(method, logits, labels, reference, groups)
        scores[name] = -np.log(np.maximum(picked, 1e-12)).mean(), calibrator
    chosen = min(scores, key=lambda name: scores[name][0])
    return chosen, scores[chosen][1]


def first_of(predictions: OptionPredictions, count: int) -> OptionPredictions:
    return predictions.select(predictions.ids[:count].tolist())


def load_views(stage: Stage, part: str = ".") -> list[OptionPredictions]:
    """What a stage has predicted (in a part of its folder), once for each order of the options."""
    files = sorted((stage.folder / part).glob("*.npz"), key=lambda path: int(path.stem))
    return [OptionPredictions.load(path) for path in files]


def means(
    summed: OptionPredictions, tokenizer: PreTrainedTokenizerBase, questions: Dataset, prompt_format: PromptFormat
) -> OptionPredictions:
    """Sums of the log-likelihoods of an option's tokens as their means, without asking the model again."""
    encoder, option_logits = OptionEncoder(tokenizer, prompt_format), summed.option_logits.copy()
    for row, question in zip(option_logits, questions, strict=True):
        counts = np.bincount(encoder.encode(question)["option_index"])
        row[: len(counts)] /= counts
    return replace(summed, option_logits=option_logits, metadata={**summed.metadata, "option_normalization": "mean"})


@lru_cache(maxsize=1)
def last_model(path: str, key: str):
    """The last model asked for; `key` tells it from another that was trained in the same place."""
    # An adapter beside its base model is one product more in every layer, for every question of every test.
    return load_merged(path, dtype="float32")


@lru_cache(maxsize=8)
def load_pools(source: Source) -> tuple[Dataset, Dataset]:
    def load(name: str, split: str) -> Dataset:
        questions = load_questions(name, split=split, drop_invalid=True)
        if source.subject is not None:
            subjects = [source.subject] if isinstance(source.subject, str) else source.subject
            questions = questions.filter(lambda subject: subject in subjects, input_columns="subject")
            if not len(questions):
                raise ValueError(f"{name} has no question of the subject {', '.join(subjects)}.")
        return questions

    test = load(source.test, source.test_split)
    if source.train is None:
        parts = split_questions(test, train=source.num_train, calibration=0, test=None)
        train, test = parts["train"], parts["test"]
    else:
        train = load(source.train, source.train_split)
        apart = deduplicate_questions(train, exclude=test)
        if len(apart) < len(deduplicate_questions(train)):  # some are test questions, too
            train = apart
    if source.num_test is not None and source.num_test < len(test):
        test = test.shuffle(seed=0).select(range(source.num_test))
    return train, test


def named(source: Source) -> dict[str, str]:
    return {name: value for name, value in vars(source).items() if name in ("train", "test") and value}


@lru_cache
def identity(path: str) -> str:
    """What tells a file or a folder from another: its contents. A name on the Hub tells itself."""
    local = Path(path).expanduser()
    if not local.exists():
        return path
    files = sorted(file for file in local.iterdir() if file.is_file()) if local.is_dir() else [local]
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def fill(value: Any, filled: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: fill(item, filled) for key, item in value.items()}
    if isinstance(value, list):
        return [fill(item, filled) for item in value]
    if isinstance(value, str):
        for name, text in filled.items():
            value = value.replace("{" + name + "}", text)
    return value
