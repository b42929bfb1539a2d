"""The `evaluate` metric `ece_regime`: calibration errors with their uncertainty, and the calibration regime."""

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

from ..measures.validation import as_labels, as_matrix, as_outcomes, as_probabilities, as_vector, shown
from .evaluate import EvaluationOptions, evaluate_confidences, evaluate_probabilities


_DESCRIPTION = """\
How far the confidence of a model and its accuracy lie apart (expected calibration error), how far that number can be
trusted (interval, debiased value, noise floor), and whether the model can be calibrated at the accuracy it has (regime).
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of lists of float, or list of float):
        Option probabilities of each question, summing to 1; questions may have different numbers of options. Or the
        confidence of each prediction alone, in [0, 1].
    references (list of int):
        Index of the right option of each question. With confidences: 1 where the prediction is right and 0 where it is
        wrong; may be given as `correct` instead.
    n_bins (`int`, *optional*, defaults to `10`):
        Number of bins of the binned measures.
    binning (`str`, *optional*, defaults to `"equal_width"`):
        `"equal_width"` or `"equal_mass"`.
    target_probs (list of lists of float, *optional*):
        Option probabilities of a calibrated reference for the same questions, taken as the truth. Adds `tce` and decides
        the regime by the critical accuracy.
    reference_probs (list of lists of float, *optional*):
        Option probabilities of another model, such as the one before its alignment, which need not be calibrated.
    critical_accuracy (`float`, *optional*):
        The critical accuracy, where it is known from elsewhere.
    num_options (`int`, *optional*):
        With confidences: how many options the questions have. Without it, or a critical accuracy, nothing can be said of
        their regime.
    alpha (`float`, *optional*, defaults to `0.05`):
        Significance level of the regime test.
    n_bootstrap (`int`, *optional*, defaults to `1000`):
        Number of draws behind the interval, and behind the noise floor.
    seed (`int`, *optional*, defaults to `0`):
        Seed of everything that is drawn, the halves of the regime test without a target among it.
    sample_weight (list of float, *optional*):
        Importance weight of each question.
    groups (list of str, *optional*):
        Group of each question, e.g. its subject; adds the measures of every group.

Returns:
    `dict` of floats and strings. `n`, `accuracy`, `confidence`, `overconfidence`; `ece` with `ece_low` and `ece_high` (95%
    interval of the calibration error), `ece_noise_floor`, `ece_noise_floor_p95` and `ece_p_value` (what a calibrated model
    shows on as many questions); `debiased_ece`, `ece_equal_mass`, `ece_sweep`, `smooth_ece`, `cw_ece`, `mce`; `nll`, `brier`,
    `brier_calibration`, `brier_refinement`; `auroc`, `aurc`; `ece_lower_bound`, `ece_upper_bound`; `regime` ("calibratable",
    "non-calibratable" or "undetermined"), `explanation` (a sentence), `test` (what decided), `p_value`, `alpha`,
    `recommended_method` ("cft" or "rcft"); what needs a target, such as `tce`, `critical_accuracy` and `border_distance`, where
    there is one. With groups also
    `n_groups`, `n_groups_miscalibrated` and, for each group, `group/<name>/ece` and so on.

Examples:
    >>> ece_regime = evaluate.load("ece_regime")
    >>> results = ece_regime.compute(
    ...     predictions=[[0.9, 0.1], [0.8, 0.1, 0.1], [0.3, 0.7], [0.6, 0.4]], references=[0, 1, 1, 1]
    ... )
    >>> round(results["accuracy"], 2), round(results["confidence"], 2), round(results["ece"], 2)
    (0.5, 0.75, 0.45)
    >>> results["regime"]
    'undetermined'

    Confidences alone:

    >>> results = ece_regime.compute(predictions=[0.9, 0.8, 0.7, 0.6], correct=[True, False, True, False])
    >>> round(results["overconfidence"], 2)
    0.25

    With a calibrated reference, the regime is decided by the critical accuracy:

    >>> results = ece_regime.compute(
    ...     predictions=[[0.99, 0.01]] * 100, references=[0] * 100, target_probs=[[0.6, 0.4]] * 100
    ... )
    >>> results["regime"], results["recommended_method"], round(results["critical_accuracy"], 2)
    ('non-calibratable', 'rcft', 0.6)
"""

_CITATION = """\
@inproceedings{xiao2025restoring,
  title     = {Restoring Calibration for Aligned Large Language Models: A Calibration-Aware Fine-Tuning Approach},
  author    = {Xiao, Jiancong and Hou, Bojian and Wang, Zhanliang and Jin, Ruochen and Long, Qi and Su, Weijie J. and Shen, Li},
  booktitle = {Proceedings of the 42nd International Conference on Machine Learning},
  series    = {Proceedings of Machine Learning Research},
  volume    = {267},
  pages     = {68364--68390},
  year      = {2025}
}
"""


# Names of the inputs that evaluate_probabilities and evaluate_confidences call otherwise.
_TARGETS = {"target_probs": "target_probabilities", "reference_probs": "reference_probabilities"}
_PER_QUESTION = (*_TARGETS, "sample_weight", "groups")
_CONFIGURATIONS = {"default": "predictions", "prediction_scores": "prediction_scores"}


_SHARED = {field.name for field in fields(EvaluationOptions)} | {"sample_weight", "groups"}
_OPTIONS = _SHARED | set(_TARGETS)
_OPTIONS_OF_CONFIDENCES = _SHARED | {"num_options"}


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class ECERegime(evaluate.Metric):
    def _info(self):
        # As in evaluate's roc_auc, the scores can have a name of their own. It lets `evaluate.combine` give them to this
        # metric and the predicted options, as `predictions`, to others such as accuracy.
        if self.config_name not in _CONFIGURATIONS:
            known = ", ".join(_CONFIGURATIONS)
            raise ValueError(f"ece_regime has the configurations {known}; there is no {self.config_name!r}.")
        self._scores = _CONFIGURATIONS[self.config_name]
        self._added = None  # "probabilities" or "confidences", once there are any
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
            raise ValueError(f"there is no option {sorted(unknown)[0]!r}; there are {known}.")
        scores = kwargs.pop(self._scores, predictions)
        before = len(self)
        if correct is not None and references is not None:
            raise ValueError("`correct` and `references` say the same of confidences: give one of them.")
        if correct is not None:
            self._add(scores, correct, "correct")
        elif scores is not None or references is not None:
            self._add(scores, references)
        try:
            return super().compute(**kwargs)
        except Exception:
            # What was added batch by batch is not lost to a misspelt option; what came with this call is left out.
            self._put_back(before)
            raise

    def add(self, *, prediction=None, reference=None, predictions=None, references=None, **kwargs):
        """Add one prediction."""  # evaluate appends the description of the inputs
        # evaluate's own metrics take the names of the batch here too, and `evaluate.combine` uses them
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
                f"`{wrong[0]}` cannot be added: a batch is `{self._scores}` and `references`. Options go to `compute`, those "
                f"of each question ({', '.join(_PER_QUESTION)}) in the order in which the questions were added."
            )
        self._add(scores, references)

    def _add(self, scores, references, name: str = "references") -> None:
        """Check a batch and write it as it comes, whole. evaluate encodes row by row, which for ten million takes minutes."""
        if scores is None or references is None:
            raise ValueError(f"`{self._scores}` and `{name}` are needed together.")
        scores, references = _as_numpy(scores, self._scores), _as_numpy(references, name)
        if len(scores) or len(references):
            kind, values, lengths, references = self._check(scores, references, name)
            if self._added not in (None, kind):
                raise ValueError(f"{self._added} were added before, and these are {kind}.")
            self._added = kind
            self._write(values, lengths, references)

    def _check(self, scores, references, name: str) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
        """Kind of the predictions, their numbers in one row after the other, the lengths of the rows, the references."""
        if _is_flat(scores):
            with _called({"confidences": self._scores, "correct": name}):
                confidences, correct = as_outcomes(scores, references, binary=True)
            return "confidences", confidences, np.ones(len(correct), np.int64), correct.astype(np.int64)
        if name == "correct":
            raise ValueError(
                "`correct` goes with confidences; option probabilities want `references`, the index of the right option."
            )
        matrix, num_options = as_matrix(scores, self._scores)
        as_probabilities(matrix, self._scores)
        if matrix.dtype.itemsize < 4:  # rows of half precision sum to 1 only roughly
            matrix = matrix / matrix.sum(axis=1, keepdims=True, dtype=np.float64)
        references = as_vector(references, "references")
        if references.dtype.kind == "b":
            raise ValueError(
                "`references` of option probabilities are indices of the right option, not true and false."
            )
        # beyond 2^53 a float cannot tell a whole number from the next
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
        step = max(1, 2**30 // int(lengths.max(initial=1)))  # rows in a chunk of Arrow, whose offsets have 32 bits
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
                raise ValueError("there is nothing to measure: no predictions were added.")
            self._write(np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64))  # this process had no share
        super()._finalize()
        self._added = None
        if self.process_id == 0:
            self.data = _Columns(self.data)

    def _compute(self, *, references, predictions=None, prediction_scores=None, **options) -> dict[str, Any]:
        scores = predictions if prediction_scores is None else prediction_scores
        self._stored = (scores, references)
        if len(references) == 0:
            raise ValueError("there is nothing to measure: no process added predictions.")
        kinds = ["option probabilities", "confidences"]
        if _is_flat(scores):
            measure, known, names = evaluate_confidences, _OPTIONS_OF_CONFIDENCES, {"confidences": self._scores}
        else:
            measure, known, names = evaluate_probabilities, _OPTIONS, {"probabilities": self._scores}
            kinds.reverse()
        if wrong := sorted(name for name in set(options) - known if options[name] is not None):
            raise ValueError(f"`{wrong[0]}` goes with {kinds[0]}, not with {kinds[1]}.")
        options = {
            _TARGETS.get(name, name): _as_numpy(value, name) if name in _PER_QUESTION and value is not None else value
            for name, value in options.items()
            if name in known
        }
        with _called(names | {ours: given for given, ours in _TARGETS.items()}):
            results = measure(scores, references, **options)
        self._stored = None
        # What cannot be said (None without a target, NaN for an AUROC of right answers alone) is left out, so that what
        # is there is a number or a word, and valid JSON.
        return {key: value for key, value in results.items() if value is not None and value == value}

    def _put_back(self, rows: int) -> None:
        """After an error: no file and no lock left behind, and the rows that were there before still there."""
        stored, self._stored = getattr(self, "_stored", None), None
        if self.writer is not None:  # nothing was read yet
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


@contextmanager
def _called(names: dict[str, str]) -> Iterator[None]:
    """Errors name the arguments as they are called here."""
    try:
        yield
    except (TypeError, ValueError) as error:
        error.args = (re.sub(r"`(\w+)`", lambda match: f"`{names.get(match[1], match[1])}`", str(error)),)
        raise


def _as_numpy(values, name: str):
    """Tensors, wherever they are and whatever their type, as arrays, also those in a list; lists stay lists."""
    if hasattr(values, "detach"):
        values = _detached(values)
    elif hasattr(values, "__array__"):
        values = np.asarray(values)
    elif isinstance(values, Iterable) and not isinstance(values, (str, bytes)):
        return [_detached(value) if hasattr(value, "detach") else value for value in values]
    if np.ndim(values) == 0:
        raise ValueError(f"`{name}` has an entry for each question, but is {shown(values)}: give a list or an array.")
    return values


def _detached(tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    # NumPy has no bfloat16; half has all of its digits for numbers between 0 and 1
    return (tensor.half() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()


def _is_flat(scores) -> bool:
    """Whether each prediction is one number, its confidence."""
    if isinstance(scores, np.ndarray) and scores.dtype != object:
        return scores.ndim == 1
    first = next(iter(scores), None)
    return first is not None and np.ndim(first) == 0


class _Columns:
    """The stored columns as arrays. evaluate asks for lists, which are 20 times as large and would be arrays again."""

    def __init__(self, data: datasets.Dataset):
        self._table = data.data.table

    def set_format(self, type=None) -> None:
        """evaluate calls it; arrays are the only format here."""

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
            raise ValueError("some processes added confidences and others option probabilities.")
        if shortest == longest:
            return values.reshape(-1, longest)
        return np.split(values, np.cumsum(lengths)[:-1])  # rows that know their number of options
