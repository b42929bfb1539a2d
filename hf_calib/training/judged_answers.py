"""Short-answer questions of `hf-calib restore`: they become option questions about the model's own answers."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from datasets import Dataset

from ..data.files import load_records
from ..data.layouts import digest
from ..data.prompts import ANSWER_TEMPLATE, PromptFormat
from ..data.short_answers import holds_short_answers, load_short_questions
from ..inference.answer_confidence import AnswerPredictions, predict_answers
from ..inference.model_loading import load_model
from ..inference.predict import predict_options
from .restore_data import LEAST_TEST, MOST_TEST, TEST_FRACTION, Records
from .restore_options import RestoreOptions
from .restore_plan import PROBE, describe_cut, fit_budget, seconds_per_question
from .restore_recipe import full_plan, read_config
from .restore_stages import StageRecord, model_identity


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def with_judged_answers(
    options: RestoreOptions, records: Mapping[str, Records], record: StageRecord
) -> tuple[RestoreOptions, dict[str, Records], list[str]]:
    """
    Replace questions without options by the question whether the model's answer to them is right.

    The aligned model writes its answers to `output_dir/answers/`, where a second run finds them. Those to `dataset`
    and `test` are graded by exact match after normalisation; those to `unlabelled` are not graded. For another grader
    or prompt, `hf-calib evaluate` writes such questions to `p_true/questions.parquet`. With a budget, the model is
    timed first, and answers only as many questions as the budget has time for.

    Args:
        options ([`~hf_calib.training.restore_options.RestoreOptions`]):
            Options with questions of any kind.
        records (`Mapping`):
            Their rows, from [`~hf_calib.training.restore_data.load_restore_records`].
        record ([`~hf_calib.training.restore_stages.StageRecord`]):
            Finished stages.

    Returns:
        `tuple`: options with option questions alone, to which their limits are applied; the rows of these; and what
        was done, in sentences. Without a given scoring, letters are scored.

    Raises:
        `ValueError`: if all answers to `dataset` are right, or all are wrong (for `test` it is a warning); if columns
            are named, and some questions have options and others have none; or if the budget is too small.
    """
    short = _short(options, records)
    if not short:
        return options, dict(records), []
    questions = {name: _questions(options, name, records[name]) for name in short}
    writing = _Writing(options, record, questions, {name: len(rows) for name, rows in records.items()})
    notes = writing.fit() if options.budget is not None else []
    writing.write()
    changes = {"scoring": options.scoring or "letter", "columns": None, "answers_from": None}
    judged = dict(records)
    for name in short:
        changes[_limit(name)] = None  # applied
        if name in writing.questions:
            changes[name] = str(writing.file(name))
            judged[name] = load_records(changes[name])
        else:  # the budget leaves none
            changes[name] = None
            del judged[name]
    return replace(options, **changes), judged, notes


def _short(options: RestoreOptions, records: Mapping[str, Records]) -> list[str]:
    """Names of the data sets without options."""
    short = []
    for name, rows in records.items():
        # Questions alone are of the kind of the labelled ones.
        needs_answers = name != "unlabelled" or "dataset" not in short
        if holds_short_answers(rows, options.columns, needs_answers):
            short.append(name)
    with_options = [name for name in records if name not in short]
    if short and with_options and (options.columns or options.answers_from is not None):
        raise ValueError(
            f"--columns and --answers_from would be of {' and '.join([*short, *with_options])}, of which "
            f"{' and '.join(with_options)} {'has' if len(with_options) == 1 else 'have'} options and the rest none: "
            "name the columns in the files as hf-calib does."
        )
    return short


def _limit(name: str) -> str:
    return "limit" if name == "dataset" else f"{name}_limit"


def _questions(options: RestoreOptions, name: str, rows: Records) -> Dataset:
    reading = {"drop_invalid": options.drop_invalid, "labelled": name != "unlabelled", **options.reading}
    drawing = {"limit": getattr(options, _limit(name)), "seed": options.seed, "records": rows}
    return load_short_questions(getattr(options, name), **drawing, **reading)


@dataclass
class _Writing:
    """
    The writing of answers, in stages.

    Attributes:
        options ([`RestoreOptions`]), record ([`StageRecord`]): Options, and finished stages.
        questions (`dict[str, Dataset]`): Questions to answer, in random order, by data set.
        numbers (`dict[str, int]`): Rows of all data sets, also of those with options.
    """

    options: RestoreOptions
    record: StageRecord
    questions: dict[str, Dataset]
    numbers: dict[str, int]

    @property
    def inputs(self) -> dict:
        """What the answers depend on."""
        names = ("revision", "dtype", "use_chat_template", "system_prompt", "max_length", "drop_too_long")
        names += ("budget", "config", "reference")
        given = {name: getattr(self.options, name) for name in names}
        content = {name: digest(json.dumps(rows.to_list(), default=str)) for name, rows in self.questions.items()}
        return {**given, "model": model_identity(self.options.model), "questions": content}

    def file(self, name: str) -> Path:
        """Option questions about the answers."""
        return self.record.path.parent / "answers" / name / "questions.parquet"

    @cached_property
    def loaded(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The aligned model."""
        options = self.options
        dtype = "float32" if options.dtype == "auto" and not torch.accelerator.is_available() else options.dtype
        rest = (options.attn_implementation, options.revision, options.trust_remote_code)
        return load_model(options.model, dtype, *rest)

    def fit(self) -> list[str]:
        """Time the model, and leave out the questions for which the budget has no time; returns what was cut."""
        found = self.record.run("answers of a budget", self.inputs, lambda resume: self._fit())
        numbers = found["numbers"]
        kept = {name: rows.select(range(min(numbers[name], len(rows)))) for name, rows in self.questions.items()}
        self.questions = {name: rows for name, rows in kept.items() if len(rows)}
        if found["cut"] and self.record.state.is_main_process:
            print(found["cut"], flush=True)
        return [found["cut"]] if found["cut"] else []

    def _fit(self) -> dict:
        options, probe = self.options, self.questions.get("dataset", next(iter(self.questions.values())))
        answered = self._predict(probe.select(range(min(PROBE, len(probe)))))
        format_of_judgements = PromptFormat("letter", None, options.use_chat_template, options.system_prompt)
        settings = {"batch_size": options.batch_size, "max_length": options.max_length, "drop_too_long": True}
        settings |= {"prompt_format": format_of_judgements, "labelled": False, "progress": False}
        state = self.record.state
        measured = {
            "seconds_per_answer": seconds_per_question(self._predict, probe, state),
            "seconds_per_question": seconds_per_question(
                lambda rows: predict_options(*self.loaded, rows, **settings), answered.judgements, state
            ),
        }
        given = {name: min(rows, getattr(options, _limit(name)) or rows) for name, rows in self.numbers.items()}
        given |= {name: len(rows) for name, rows in self.questions.items()}
        test = given.get("test") or min(max(round(TEST_FRACTION * given["dataset"]), LEAST_TEST), MOST_TEST)
        labels = given["dataset"] if "test" in given else given["dataset"] - test
        numbers = {"labels": labels, "test": test, "unlabelled": given.get("unlabelled", 0)}
        config, size = read_config(options), self.loaded[0].num_parameters()
        full = full_plan(options, config, size, numbers, chooses_scoring=False, **measured)
        plan = fit_budget(full, options.budget, fixed_epochs="num_train_epochs" in config)
        kept = {"dataset": plan.labels + (0 if "test" in given else plan.test)}
        kept |= {"test": plan.test, "unlabelled": plan.unlabelled}
        return {"numbers": kept, "cut": describe_cut(full, replace(plan, epochs=full.epochs), options.budget)}

    def write(self) -> None:
        """Let the model answer all questions, and write option questions about the answers."""
        files = [self.file(name) for name in self.questions]
        self.record.run("answers", self.inputs, lambda resume: self._write(), files)
        self.__dict__.pop("loaded", None)
        gc.collect()

    def _write(self) -> None:
        for name, questions in self.questions.items():
            found = self._predict(questions, name)
            if self.record.state.is_main_process:
                print(f"{name}: {found.summary()}", flush=True)
                found.judgements.to_parquet(self.file(name))
            self.record.state.wait_for_everyone()
            if name != "unlabelled" and len(set(found.correct)) == 1:
                _all_alike(name, getattr(self.options, name), found.correct)

    def _predict(self, questions: Dataset, name: str | None = None) -> AnswerPredictions:
        """Answers to questions; those of a data set are kept in its folder."""
        options = self.options
        return predict_answers(
            *self.loaded,
            questions,
            confidences=("likelihood",),
            prompt_format=PromptFormat("text", ANSWER_TEMPLATE, options.use_chat_template, options.system_prompt),
            batch_size=options.batch_size,
            max_length=options.max_length,
            drop_too_long=options.drop_too_long,
            output_dir=name and self.file(name).parent,
            resume=not options.no_resume,
            labelled=name not in (None, "unlabelled"),
            progress=name is not None,
        )


def _all_alike(name: str, path: str, correct: Sequence[bool]) -> None:
    """Raise a `ValueError` if the labels are all right or all wrong; warn if those of the test are."""
    message = f"all {len(correct)} answers to {path} are {'right' if correct[0] else 'wrong'}"
    if name == "dataset":
        advice = "" if correct[0] else " Questions with options need the column choices."
        raise ValueError(f"{message}: there is nothing to learn from.{advice}")
    logger.warning(f"{message}: measures that need both kinds are undefined")
