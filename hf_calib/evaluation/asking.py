"""Ask questions with options or in free text, of a model that is loaded here or of a served one."""

from __future__ import annotations

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..inference.answer_confidence import AnswerPredictions
    from ..inference.answer_options import AnswerOptions
    from ..inference.predict import PredictionOptions
    from ..inference.predictions import OptionPredictions
    from ..served.client import ServedModel


def ask(
    model: PreTrainedModel | ServedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    questions: Dataset,
    options: PredictionOptions | AnswerOptions,
) -> OptionPredictions | AnswerPredictions:
    """
    Score the options of questions, or let answers be written.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~hf_calib.ServedModel`]):
            The model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Its tokenizer. A served model needs none.
        questions (`Dataset`):
            The questions.
        options ([`~hf_calib.PredictionOptions`] or [`~hf_calib.AnswerOptions`]):
            What is done, and how.

    Returns:
        [`~hf_calib.OptionPredictions`], or
        [`~hf_calib.inference.answer_confidence.AnswerPredictions`] of written answers.
    """
    from ..inference.answer_confidence import predict_answers
    from ..inference.answer_options import AnswerOptions
    from ..inference.predict import predict_options

    answers = isinstance(options, AnswerOptions)
    if not is_served(model):
        return (predict_answers if answers else predict_options)(model, tokenizer, questions, options=options)
    from ..served.answers import predict_served_answers
    from ..served.predict import predict_served_options

    return (predict_served_answers if answers else predict_served_options)(model, questions, tokenizer, options)


def is_served(model: PreTrainedModel | ServedModel) -> bool:
    """Whether a model is behind a server."""
    from ..served.client import ServedModel

    return isinstance(model, ServedModel)
