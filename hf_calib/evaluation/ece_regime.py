"""The `evaluate` metric `ece_regime`: calibration errors, their uncertainty and the calibration regime."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import datasets
import evaluate
import numpy as np
import pyarrow as pa

from ..measures.checked import is_flat
from ..measures.paired import comparison_report
from ..measures.validation import as_labels, as_matrix, as_outcomes, as_vector, iterate_columns, shown
from .evaluate import evaluate_confidences, evaluate_probabilities
from .options import EvaluationOptions


_DESCRIPTION = """\
Expected calibration error of a model (the gap between its confidence and its accuracy), the uncertainty of that number
(interval, debiased value, noise floor), and whether the model can be calibrated at its accuracy (regime).
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of lists of float, or list of float):
        Option probabilities of each question, summing to 1. Questions may have different numbers of options. Or the
        confidence of each prediction, in [0, 1].
    references (list of int):
        Index of the right option of each question, from 0. With confidences: 1 where the prediction is right, else 0.
    correct (list of bool, *optional*):
        With confidences, in place of `references`: whether each prediction is right.
    n_bins (`int`, *optional*, defaults to `10`):
        Number of bins of the binned measures.
    binning (`str`, *optional*, defaults to `"equal_width"`):
        `"equal_width"` or `"equal_mass"`.
    target_probs (list of lists of float, *optional*):
        Option probabilities of a calibrated target for the same questions, taken as the truth. Adds `tce` and decides
        the regime by the critical accuracy.
    reference_probs (list of lists of float, *optional*):
        Option probabilities of another model, e.g. the one before alignment, that may be miscalibrated. Decides the
        regime.
    critical_accuracy (`float`, *optional*):
        Critical accuracy in (0, 1), if it is known. Decides the regime.
    num_options (`int`, *optional*):
        With confidences: number of options of the questions. The regime needs it or a critical accuracy.
    alpha (`float`, *optional*, defaults to `0.05`):
        Significance level of the regime test, in (0, 0.5).
    n_bootstrap (`int`, *optional*, defaults to `1000`):
        Number of draws behind the interval, and of simulations behind the noise floor.
    seed (`int`, *optional*, defaults to `0`):
        Seed of all draws.
    sample_weight (list of float, *optional*):
        Importance weight of each question.
    groups (list of str, *optional*):
        Group of each question, e.g. its subject. Adds the measures of every group.
    other_predictions (list of lists of float, or list of float, *optional*):
        Predictions of another model for the same questions, to compare with. Adds its measures and the differences.
    other_correct (list of bool, *optional*):
        With confidences: whether each of the other predictions is right.
    details (`bool`, *optional*, defaults to `False`):
        Whether to add kernel tests of calibration, the CORP split of Brier score and log-likelihood, and the gain of a
        cross-fitted recalibration.
    risks (list of float, *optional*):
        Error rates at which the coverage is computed: how many questions can be answered.
    coverages (list of float, *optional*):
        Shares of answered questions at which the error rate is computed.
    target_accuracy (`float`, *optional*):
        Accuracy for which a confidence threshold with a guarantee is sought.

Returns:
    `dict` of floats and strings:

    - `n`, `accuracy`, `confidence`, `overconfidence`;
    - `ece` with `ece_low` and `ece_high` (95% interval), `ece_noise_floor`, `ece_noise_floor_p95` and `ece_p_value`
      (the ECE of a calibrated model on as many questions);
    - `debiased_ece`, `ece_equal_mass`, `ece_sweep`, `smooth_ece`, `cw_ece`, `mce`, `ece_lower_bound`,
      `ece_upper_bound`;
    - `nll`, `brier`, `auroc`, `aurc`, each with its 95% interval (`nll_low`, `nll_high`, ...), `brier_calibration`,
      `brier_refinement`, `e_aurc`, `augrc`;
    - `regime` ("calibratable", "non-calibratable", "target-contradicted" or "undetermined"), `explanation` (a
      sentence), `test` (the test that decides), `p_value`, `alpha`, `recommended_method` ("cft" or "rcft"),
      `border_distance_detectable` (the distance that the test finds with probability 0.8);
    - with a target, a reference or a critical accuracy `critical_accuracy` and `border_distance`; with a target or a
      reference `expected_accuracy` and `expected_accuracy_p_value`; with a target `tce`;
    - with groups `n_groups`, `n_groups_miscalibrated` and the measures of each group as `group/<name>/<measure>`;
    - with other predictions `other/<measure>` and `difference/<measure>` (of `predictions` less that of the others)
      with `difference/<measure>_low`, `difference/<measure>_high` (95% interval) and `difference/<measure>_p_value`;
    - with risks `coverage_at_risk/<risk>`, with coverages `risk_at_coverage/<coverage>`, each with `_low` and `_high`;
      with a target accuracy `threshold`, `threshold_coverage`, `threshold_accuracy` and the like;
    - with details `skce`, `option_skce`, `corp_brier`, `corp_nll` and `recalibration_gain` with their parts.

Examples:
    >>> ece_regime = evaluate.load("ece_regime")
    >>> results = ece_regime.compute(
    ...     predictions=[[0.9, 0.1], [0.8, 0.1, 0.1], [0.3, 0.7], [0.6, 0.4]], references=[0, 1, 1, 1]
    ... )
    >>> round(results["accuracy"], 2), round(results["confidence"], 2), round(results["ece"], 2)
    (0.5, 0.75, 0.45)
    >>> results["regime"]
    'undetermined'

    Confidences without option probabilities:

    >>> results = ece_regime.compute(predictions=[0.9, 0.8, 0.7, 0.6], correct=[True, False, True, False])
    >>> round(results["overconfidence"], 2)
    0.25

    With a calibrated target the critical accuracy decides the regime:

    >>> results = ece_regime.compute(
    ...     predictions=[[0.99, 0.01]] * 100, references=[0] * 100, target_probs=[[0.6, 0.4]] * 100
    ... )
    >>> results["regime"], results["recommended_method"], round(results["critical_accuracy"], 2)
    ('non-calibratable', 'rcft', 0.6)

    Two models on the same questions:

    >>> results = ece_regime.compute(
    ...     predictions=[[0.6, 0.4]] * 100, references=[0] * 60 + [1] * 40, other_predictions=[[0.9, 0.1]] * 100
    ... )
    >>> round(results["difference/nll"], 2), results["difference/nll_p_value"] < 0.05
    (-0.31, True)
"""

_CITATION = """\
@inproceedings{xiao2025restoring,
  title     = {Restoring Calibration for Aligned Large Language Models: A Calibration-Aware Fine-Tuning Approach},
  author    = {Xiao, Jiancong and Hou, Bojian and Wang, Zhanliang and Jin, Ruochen and Long, Qi and Su, Weijie J. and
               Shen, Li},
  booktitle = {Proceedings of the 42nd International Conference on Machine Learning},
  series    = {Proceedings of Machine Learning Research},
  volume    = {267},
  pages     = {68364--68390},
  year      = {2025}
}
"""


# arguments of the metric, and their names in evaluate_probabilities
_TARGETS = {"target_probs": "target_probabilities", "reference_probs": "reference_probabilities"}
_OTHER = ("other_predictions", "other_correct")
_PER_QUESTION = (*_TARGETS, "sample_weight", "groups", *_OTHER)
_CONFIGURATIONS = {"default": "predictions", "prediction_scores": "prediction_scores"}


_SHARED = {field.name for field in fields(EvaluationOptions)} | {"sample_weight", "groups"}
_OPTIONS = _SHARED | {*_TARGETS, "other_predictions"}
_OPTIONS_OF_CONFIDENCES = _SHARED | {*_OTHER, "num_options"}


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class ECERegime(evaluate.Metric):
    def _info(self):
        # As in evaluate's roc_auc, the scores may have another name, so that `evaluate.combine` gives the scores to
        # this metric and the predicted options to others.
        if self.config_name not in _CONFIGURATIONS:
            known = ", ".join(_CONFIGURATIONS)
            raise ValueError(f"ece_regime has no configuration {self.config_name!r}; the configurations are {known}.")
        self._scores = _CONFIGURATIONS[self.config_name]
        self._added = None  # "probabilities" or "confidences", after the first batch
        # One schema for both: a confidence is stored as a row of one number.
        scores, references = datasets.Sequence(datasets.Value("float64")), datasets.Value("int64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({self._scores: scores, "references": references}),
            reference_urls=["https://arxiv.org/abs/2505.01997", "https://arxiv.org/abs/1706.04599"],
        )

    def compute(self, *, predictions=None, references=None, correct=None, **kwargs):
        """Compute the metric."""  # evaluate appends the description of the inputs
        if unknown := set(kwargs) - _OPTIONS - _OPTIONS_OF_CONFIDENCES - {self._scores}:
            known = ", ".join(sorted(_OPTIONS | _OPTIONS_OF_CONFIDENCES))
            raise ValueError(f"Unknown option {sorted(unknown)[0]!r}; the options are {known}.")
        scores = kwargs.pop(self._scores, predictions)
        before = len(self)
        if correct is not None and references is not None:
            raise ValueError("`correct` and `references` exclude each other: give one of them.")
        if correct is not None:
            self._add(scores, correct, "correct")
        elif scores is not None or references is not None:
            self._add(scores, references)
        try:
            return super().compute(**kwargs)
        except Exception:
            # keep the batches added before, drop what came with this call
            self._put_back(before)
            raise

    def add(self, *, prediction=None, reference=None, predictions=None, references=None, **kwargs):
        """Add one prediction."""  # evaluate appends the description of the inputs
        # `evaluate.combine` uses the names of the batch here
        score = kwargs.pop(self._scores, prediction if predictions is None else predictions)
        reference = reference if references is None else references
        if score is None or reference is None:
            raise ValueError("`prediction` and `reference` are needed together.")
        self.add_batch(**{self._scores: [score]}, references=[reference], **kwargs)

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Add a batch."""  # evaluate appends the description of the inputs
        scores = kwargs.pop(self._scores, predictions)
        if wrong := [name for name, value in kwargs.items() if value is not None]:
            raise ValueError(
                f"`{wrong[0]}` is not an argument of a batch, which has `{self._scores}` and `references`. Give "
                f"options to `compute`; {', '.join(_PER_QUESTION)} in the order in which the questions were added."
            )
        self._add(scores, references)

    def _add(self, scores, references, name: str = "references") -> None:
        """Check a batch and write it as a whole. Encoding row by row takes minutes for 10 million rows."""
        if scores is None or references is None:
            raise ValueError(f"`{self._scores}` and `{name}` are needed together.")
        scores, references = _sequence(scores, self._scores), _sequence(references, name)
        if len(scores) or len(references):
            kind, values, lengths, references = self._check(scores, references, name)
            if self._added not in (None, kind):
                raise ValueError(
                    f"All batches must hold {self._added} like the first one, but this batch holds {kind}."
                )
            self._added = kind
            self._write(values, lengths, references)

    def _check(self, scores, references, name: str) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
        """Check a batch. Returns its kind, the concatenated rows, the lengths of the rows and the references."""
        if is_flat(scores):
            with _called({"confidences": self._scores, "correct": name}):
                confidences, correct = as_outcomes(scores, references, binary=True)
            return "confidences", confidences, np.ones(len(correct), np.int64), correct.astype(np.int64)
        if name == "correct":
            raise ValueError(
                "`correct` is for confidences. Option probabilities need `references`, the index of the right option."
            )
        matrix, num_options = as_matrix(scores, self._scores)
        for _ in iterate_columns(matrix, self._scores):  # checks every row
            pass
        references = as_vector(references, "references")
        if references.dtype.kind == "b":
            raise ValueError(
                "`references` must be indices of the right option for option probabilities, not true and false."
            )
        # float64 holds whole numbers exactly up to 2^53
        if references.dtype.kind == "f" and ((references == np.rint(references)) & (abs(references) < 2**53)).all():
            references = references.astype(np.int64)
        references = as_labels(references, len(matrix), num_options, "references").astype(np.int64)
        if np.ndim(num_options) == 0:
            return "probabilities", matrix.ravel(), np.full(len(matrix), num_options), references
        values = matrix[np.arange(matrix.shape[1]) < num_options[:, None]]
        return "probabilities", values, num_options, references

    def _write(self, values: np.ndarray, lengths: np.ndarray, references: np.ndarray) -> None:
        if self.writer is None:
            self.selected_feature_format = self.features
            self._init_writer()
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        step = max(1, 2**30 // int(lengths.max(initial=1)))  # rows in an Arrow chunk, whose offsets have 32 bits
        for start in range(0, len(references), step):
            ends = offsets[start : start + step + 1]
            rows = pa.ListArray.from_arrays(
                (ends - ends[0]).astype(np.int32), pa.array(values[ends[0] : ends[-1]], pa.float64())
            )
            table = pa.table({self._scores: rows, "references": references[start : start + step]})
            self.writer.write_table(table.cast(self.selected_feature_format.arrow_schema))

    def _finalize(self):
        if self.writer is None:
            if self.num_process == 1:
                raise ValueError("No predictions were added.")
            self._write(np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64))  # this process has no predictions
        super()._finalize()
        self._added = None
        if self.process_id == 0:
            self.data = _Columns(self.data)

    def _compute(self, *, references, predictions=None, prediction_scores=None, **options) -> dict[str, Any]:
        scores = predictions if prediction_scores is None else prediction_scores
        self._stored = (scores, references)
        if len(references) == 0:
            raise ValueError("No process added predictions.")
        kinds = ["option probabilities", "confidences"]
        if is_flat(scores):
            measure, known, names = evaluate_confidences, _OPTIONS_OF_CONFIDENCES, {"confidences": self._scores}
        else:
            measure, known, names = evaluate_probabilities, _OPTIONS, {"probabilities": self._scores}
            kinds.reverse()
        if wrong := sorted(name for name in set(options) - known if options[name] is not None):
            raise ValueError(f"`{wrong[0]}` is for {kinds[0]}, not for {kinds[1]}.")
        options = {
            _TARGETS.get(name, name): _sequence(value, name) if name in _PER_QUESTION and value is not None else value
            for name, value in options.items()
            if name in known
        }
        other, right = (options.pop(name, None) for name in _OTHER)
        with _called(names | {ours: given for given, ours in _TARGETS.items()}):
            results = measure(scores, references, **options)
        if other is not None or right is not None:
            results |= _compared((scores, references), other, right, options)
        self._stored = None
        # Leave out None and NaN, so that every value is valid JSON.
        return {key: value for key, value in results.items() if value is not None and value == value}

    def _put_back(self, rows: int) -> None:
        """Clean up after an error: remove files and locks, and restore the first `rows` rows."""
        stored, self._stored = getattr(self, "_stored", None), None
        if self.writer is not None:  # nothing has been read
            return
        self.data = None
        for lock, path in zip(self.filelocks or [], self.file_paths or [], strict=False):
            if os.path.exists(path):
                os.remove(path)
            lock.release()
        self.filelocks = self.file_paths = None
        self.writer = self.buf_writer = None
        if stored is not None and rows and self.num_process == 1:
            self.add_batch(**{self._scores: stored[0][:rows]}, references=stored[1][:rows])


def _compared(pair: tuple, other, right, options: dict[str, Any]) -> dict[str, float]:
    """Compare predictions and references with the predictions of another model."""
    if other is None:
        raise ValueError("`other_correct` needs `other_predictions`.")
    flat = is_flat(pair[0])
    if is_flat(other) != flat:
        raise ValueError("`other_predictions` must be option probabilities or confidences, as the predictions are.")
    if flat and right is None:
        raise ValueError("`other_predictions` that are confidences need `other_correct`: whether each is right.")
    shared = {"n_bins", "binning", "n_bootstrap", "seed", "sample_weight", "groups"}
    options = {name: value for name, value in options.items() if name in shared}
    names = {"probabilities": _OTHER[0], "confidences": _OTHER[0], "correct": _OTHER[1], "labels": "references"}
    with _called(names):
        return comparison_report((other, right if flat else pair[1]), pair, **options)


@contextmanager
def _called(names: dict[str, str]) -> Iterator[None]:
    """Rename the arguments in error messages."""
    try:
        yield
    except (TypeError, ValueError) as error:
        error.args = (re.sub(r"`(\w+)`", lambda match: f"`{names.get(match[1], match[1])}`", str(error)),)
        raise


def _sequence(values, name: str):
    """Check that there is one entry per question. Iterables other than arrays and tensors become lists."""
    if hasattr(values, "__array__") and np.ndim(values):
        return values
    if hasattr(values, "__array__") or isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise ValueError(f"`{name}` must be a list or an array with one entry per question, got {shown(values)}.")
    return list(values)


class _Columns:
    """Stored columns as arrays. evaluate requests lists, which are 20 times as large."""

    def __init__(self, data: datasets.Dataset):
        self._table = data.data.table

    def set_format(self, type=None) -> None:
        """Do nothing: evaluate calls it, and arrays are the only format."""

    def __getitem__(self, name: str) -> np.ndarray | list[np.ndarray]:
        column = self._table.column(name)
        if name == "references":
            return column.to_numpy()
        values = np.concatenate([np.empty(0), *(chunk.flatten().to_numpy() for chunk in column.chunks)])
        lengths = np.concatenate([np.empty(0, int), *(chunk.value_lengths().to_numpy() for chunk in column.chunks)])
        shortest, longest = (int(lengths.min()), int(lengths.max())) if len(lengths) else (1, 1)
        if longest == 1:
            return values  # confidences
        if shortest == 1:
            raise ValueError("All processes must add the same kind: confidences or option probabilities.")
        if shortest == longest:
            return values.reshape(-1, longest)
        return np.split(values, np.cumsum(lengths)[:-1])  # rows that know their number of options
