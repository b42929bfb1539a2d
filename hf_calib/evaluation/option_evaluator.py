"""An `evaluate` evaluator of language models on option questions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import evaluate

from ..data.questions import adapt_questions, load_questions
from ..inference.model_loading import load_model
from ..inference.predict import predict_options
from ..inference.predictions import OptionPredictions
from ..paths import metric_path
from .ece_regime import ECERegime


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class OptionEvaluator(evaluate.Evaluator):
    """
    Evaluator of causal language models on option questions, with the interface of `evaluate.evaluator(task)`.

    The tasks of `evaluate` pass predicted classes to a metric. This one passes option probabilities, which calibration
    errors need.

    Example:

    ```python
    >>> from hf_calib import OptionEvaluator
    >>> evaluator = OptionEvaluator()
    >>> results = evaluator.compute("org/aligned-model", data="test.parquet", scoring="text")  # doctest: +SKIP
    >>> results["ece"], results["regime"], results["samples_per_second"]  # doctest: +SKIP
    ```
    """

    def __init__(self):
        super().__init__("option-questions", default_metric_name=metric_path())

    def compute(
        self,
        model_or_pipeline: str | PreTrainedModel,
        data: str | Dataset,
        subset: str | None = None,
        split: str | None = "test",
        metric: str | evaluate.EvaluationModule | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        metric_kwargs: dict[str, Any] | None = None,
        **options,
    ) -> dict[str, Any]:
        """
        Predict option probabilities and compute a metric.

        Args:
            model_or_pipeline (`str` or [`~transformers.PreTrainedModel`]):
                A causal language model or adapter: a folder, a name on the Hub, or the model itself.
            data (`str` or `Dataset`):
                Questions: a file, a folder, a name on the Hub, or a data set in any layout that
                [`~hf_calib.data.questions.adapt_questions`] knows.
            subset (`str`, *optional*):
                Configuration of a data set on the Hub.
            split (`str`, *optional*, defaults to `"test"`):
                Split of a data set that has several.
            metric (`str` or [`~evaluate.EvaluationModule`], *optional*):
                Metric that takes option probabilities as `predictions` and the index of the right option as
                `references`. Defaults to `ece_regime`, which also gets the columns `subject` and
                `target_probabilities` of the questions, if there are any.
            tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
                Tokenizer; required if the model is not given by its name.
            metric_kwargs (`dict`, *optional*):
                Options of the metric's `compute`, e.g. `{"critical_accuracy": 0.6}`.
            options:
                `scoring`, and fields of [`~hf_calib.inference.predict.PredictionOptions`], e.g. `batch_size`.

        Returns:
            `dict`: the results of the metric, and `total_time_in_seconds`, `samples_per_second`, `latency_in_seconds`.
        """
        questions = load_questions(data, subset, split) if isinstance(data, str) else adapt_questions(data)
        if isinstance(model_or_pipeline, str):
            model, own_tokenizer = load_model(model_or_pipeline)
            tokenizer = tokenizer or own_tokenizer
        elif tokenizer is None:
            raise ValueError("give the `tokenizer` of a model that is not named by its folder or its name on the Hub")
        else:
            model = model_or_pipeline
        metric = self.prepare_metric(metric)
        predictions, speed = self.call_pipeline(predict_options, model, tokenizer, questions, **options)
        inputs = self.predictions_processor(predictions)
        if isinstance(metric, ECERegime):
            inputs |= {"target_probs": predictions.unpadded()[2], "groups": predictions.subjects}
        return {**metric.compute(**inputs | (metric_kwargs or {})), **speed}

    def predictions_processor(self, predictions: OptionPredictions) -> dict[str, Any]:
        """Arguments of a metric: option probabilities as `predictions`, labels as `references`."""
        probabilities, labels, _ = predictions.unpadded()
        return {"predictions": probabilities, "references": labels}
