"""The `evaluate` metric `ece_regime`: calibration errors with their uncertainty, and the calibration regime."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np
import pyarrow as pa

from .evaluation import evaluate_confidences, evaluate_probabilities


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
        Seed of both.
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


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class ECERegime(evaluate.Metric):
    def _info(self):
        # As in evaluate's roc_auc, the scores can have a name of their own. It lets `evaluate.combine` give them to this
        # metric and the predicted options, as `predictions`, to others such as accuracy.
        names = {"default": "predictions", "prediction_scores": "prediction_scores"}
        if self.config_name not in names:
            raise ValueError(
                f"ece_regime has the configurations {', '.join(names)}; there is no {self.config_name!r}."
            )
        self._scores = names[self.config_name]
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=[
                datasets.Features({self._scores: scores, "references": datasets.Value("int64")})
                for scores in (datasets.Sequence(datasets.Value("float64")), datasets.Value("float64"))
            ],
            reference_urls=["https://arxiv.org/abs/2505.01997", "https://arxiv.org/abs/1706.04599"],
        )

    def compute(self, *, predictions=None, references=None, correct=None, **kwargs):
        """Compute the metric."""  # evaluate appends the description of the inputs
        if correct is not None:
            if references is not None:
                raise ValueError("`correct` and `references` say the same of confidences: give one of them.")
            references = correct
        if references is not None and kwargs.get(self._scores, predictions) is None:
            raise ValueError(f"`references` were given without `{self._scores}`.")
        return super().compute(predictions=predictions, references=references, **kwargs)

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Add a batch."""  # evaluate appends the description of the inputs
        scores = kwargs.get(self._scores, predictions)
        if scores is None or references is None:
            raise ValueError(f"`{self._scores}` and `references` (or `correct`) are needed together.")
        if len(scores) != len(references):
            raise ValueError(f"there are {len(scores)} `{self._scores}` and {len(references)} `references`.")
        if len(scores) == 0:
            return  # the empty last batch of a process is no error; nothing at all is one in `compute`
        if not hasattr(scores, "__array__"):  # lists
            super().add_batch(predictions=predictions, references=references, **kwargs)
            return
        # Arrays and tensors go to Arrow whole. evaluate encodes row by row, which for ten million takes minutes.
        scores, references = np.asarray(scores, dtype=np.float64), np.asarray(references)
        if scores.ndim not in (1, 2):
            raise ValueError(f"`{self._scores}` must have shape (N, K) or (N,), got {scores.shape}.")
        if references.ndim != 1 or references.dtype.kind not in "iub":
            raise ValueError(
                f"`references` must be whole numbers of shape (N,), got {references.dtype} of shape {references.shape}."
            )
        if self.writer is None:
            self.selected_feature_format = self.features[2 - scores.ndim]
            self._init_writer()
        column = pa.array(scores.ravel())
        if scores.ndim == 2:
            offsets = np.arange(len(scores) + 1, dtype=np.int32) * np.int32(scores.shape[1])
            column = pa.ListArray.from_arrays(offsets, column)
        rows = pa.table({self._scores: column, "references": references.astype(np.int64)})
        self.writer.write_table(rows.cast(self.selected_feature_format.arrow_schema))

    def _finalize(self):
        if self.writer is None and self.num_process == 1:
            raise ValueError("there is nothing to measure: no predictions were added.")
        super()._finalize()
        if self.process_id == 0:
            self.data = _Columns(self.data)

    def _compute(
        self,
        *,
        references,
        predictions=None,
        prediction_scores=None,
        target_probs=None,
        reference_probs=None,
        **options,
    ) -> dict[str, Any]:
        scores = predictions if prediction_scores is None else prediction_scores
        if isinstance(scores, np.ndarray) and scores.ndim == 1:
            if target_probs is not None or reference_probs is not None:
                raise ValueError("`target_probs` and `reference_probs` need option probabilities, not confidences.")
            results = evaluate_confidences(scores, references, **options)
        else:
            targets = {"target_probabilities": target_probs, "reference_probabilities": reference_probs}
            results = evaluate_probabilities(scores, references, **targets, **options)
        # What cannot be said without a target is left out, so that what is there is a number or a word.
        return {key: value for key, value in results.items() if value is not None}


class _Columns:
    """The stored columns as arrays. evaluate asks for lists, which are 20 times as large and would be arrays again."""

    def __init__(self, data: datasets.Dataset):
        self._table = data.data.table

    def set_format(self, type=None) -> None:
        """evaluate calls it; arrays are the only format here."""

    def __getitem__(self, name: str) -> np.ndarray | list[np.ndarray]:
        column = self._table.column(name).combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # more than one chunk, or none
            column = pa.concat_arrays(column.chunks)
        if not pa.types.is_list(column.type):
            return column.to_numpy(zero_copy_only=False)
        values, lengths = column.flatten().to_numpy(zero_copy_only=False), column.value_lengths().to_numpy()
        width = int(lengths.max())
        if (lengths == width).all():
            return values.reshape(len(column), width)
        return np.split(values, np.cumsum(lengths)[:-1])  # rows that know their number of options
