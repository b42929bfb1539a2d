"""Questions of `hf-calib restore`: labels, test questions and questions without answers, without shared ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from datasets import Dataset, disable_progress_bars, enable_progress_bars
from datasets.utils import are_progress_bars_disabled

from ..data.files import load_records
from ..data.questions import deduplicate_questions, load_questions, split_questions
from ..data.text_files import TextRecords
from ..inference.encoding import OptionEncoder, QuestionTooLongError
from .restore_options import RestoreOptions


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Records: TypeAlias = Dataset | TextRecords
LEAST_LABELS = 40  # a fifth is held out, and cross-validation has five folds
LEAST_TEST = 20
TEST_FRACTION, MOST_TEST = 1 / 3, 1000


@dataclass
class RestoreQuestions:
    """
    Questions of a restoration.

    Attributes:
        labels (`Dataset`): Labelled questions to train and calibrate on.
        test (`Dataset`): Labelled questions to test on.
        unlabelled (`Dataset`, *optional*): Questions to train on without answers.
        notes (`list[str]`): How they were chosen, in sentences.
    """

    labels: Dataset
    test: Dataset
    unlabelled: Dataset | None = None
    notes: list[str] = field(default_factory=list)


def load_restore_records(options: RestoreOptions) -> dict[str, Records]:
    """Read the data sets of the options, by the name of the option: `dataset`, `test` and `unlabelled`."""
    splits = {"dataset": options.split, "test": "test", "unlabelled": "train"}
    named = {name: getattr(options, name) for name in splits}
    return {name: load_records(path, options.dataset_config, splits[name]) for name, path in named.items() if path}


def load_restore_questions(options: RestoreOptions, records: Mapping[str, Records] | None = None) -> RestoreQuestions:
    """
    Load and split the questions. No question is on two sides, also not with its options in another order.

    Args:
        options ([`~hf_calib.training.restore_options.RestoreOptions`]):
            Names and limits.
        records (`Mapping`, *optional*):
            The rows of [`load_restore_records`], if they are read already.

    Raises:
        `ValueError`: if there are too few questions, or a question is malformed.
        `OSError`: if a data set cannot be loaded.
    """
    records = records or load_restore_records(options)
    given = _load(options, records, "dataset", options.limit)
    distinct, notes = deduplicate_questions(given), []
    if doubles := len(given) - len(distinct):
        notes.append(f"{doubles:,} questions of {_name(options.dataset)} are duplicates and were left out.")
    if options.test:
        test = _load(options, records, "test", options.test_limit)
        labels = deduplicate_questions(distinct, exclude=test)
        if shared := len(distinct) - len(labels):
            notes.append(f"{shared:,} labelled questions are test questions, too, and were left out of the labels.")
        _check_numbers(options, len(labels), len(test))
    else:
        _check_numbers(options, len(distinct))
        number = min(max(round(TEST_FRACTION * len(distinct)), LEAST_TEST), MOST_TEST)
        parts = split_questions(distinct, train=None, calibration=0, test=number, seed=options.seed)
        labels, test = parts["train"], parts["test"]
        notes.append(f"{number:,} of {len(distinct):,} questions of {_name(options.dataset)} were kept for the test.")
    unlabelled = None
    if options.unlabelled:
        given = _load(options, records, "unlabelled", options.unlabelled_limit, labelled=False)
        unlabelled = deduplicate_questions(deduplicate_questions(given, exclude=test), exclude=labels)
        if shared := len(given) - len(unlabelled):
            notes.append(
                f"{shared:,} of {len(given):,} questions without answers are duplicates, labels or test questions, "
                "and were left out."
            )
        if not len(unlabelled):
            raise ValueError(f"{options.unlabelled} has no question that is not among the labels or test questions.")
    return RestoreQuestions(labels, test, unlabelled, notes)


@contextmanager
def without_bars() -> Iterator[None]:
    """Hide the progress bars of datasets, for what takes a moment."""
    hidden = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            enable_progress_bars()


def _load(
    options: RestoreOptions, records: Mapping[str, Records], name: str, limit: int | None, labelled: bool = True
) -> Dataset:
    return load_questions(
        getattr(options, name),
        records=records[name],
        limit=limit,
        seed=options.seed,
        drop_invalid=options.drop_invalid,
        labelled=labelled,
        **options.reading,
    )


def _name(dataset: str) -> str:
    return Path(dataset).name if Path(dataset).exists() else dataset


def _check_numbers(options: RestoreOptions, labels: int, test: int | None = None) -> None:
    """Raise a `ValueError` if there are too few questions; `labels` without `test` are to be split."""
    least = LEAST_LABELS + (LEAST_TEST if test is None else 0)
    if labels < least:
        other = "" if test is None else " that are no test questions"
        needed = f"{LEAST_LABELS} for training and calibration"
        needed += f" and {LEAST_TEST} for the test; with --test, {LEAST_LABELS} are enough" if test is None else ""
        raise ValueError(
            f"{_name(options.dataset)} has {labels} different labelled questions{other}; at least {least} are needed "
            f"({needed}). `hf-calib calibrate` needs only 10."
        )
    if test is not None and test < LEAST_TEST:
        raise ValueError(f"{_name(options.test)} has {test} questions; the test needs at least {LEAST_TEST}.")


def possible_scorings(
    options: RestoreOptions, tokenizer: PreTrainedTokenizerBase, labels: Dataset
) -> tuple[list[str], str]:
    """
    Find the kinds of scoring to compare, the slowest last.

    Args:
        options ([`~hf_calib.training.restore_options.RestoreOptions`]):
            Its scoring, if there is one, is the only one.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
        labels (`Dataset`):
            Labelled questions.

    Returns:
        `tuple[list[str], str]`: one or two kinds, and a sentence why there is only one that nobody named.

    Raises:
        `ValueError`: if the named scoring is not possible.
    """
    longest = max(labels, key=lambda row: len(row["choices"]))

    def check(scoring: str) -> None:
        encoder = OptionEncoder(tokenizer, replace(options, scoring=scoring).prompt_format())
        encoder.encode(longest)

    if options.scoring:
        check(options.scoring)
        return [options.scoring], ""
    check("text")
    try:
        check("letter")
    except QuestionTooLongError:
        raise
    except ValueError as error:
        reason = str(error).partition(". ")[0].rstrip(".")
        return ["text"], f"Scoring: the texts of the options, because letters are not possible: {reason}."
    return ["letter", "text"], ""
