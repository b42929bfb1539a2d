"""What a gate holds for: model, prompt and calibrator, as they are stated and compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..data.prompts import PromptFormat
from ..inference.predictions import OptionPredictions
from ..prediction_files.confidences import ConfidencePredictions


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..posthoc import PostHocCalibrator

CROSS_VALIDATED = (
    "its predictions were calibrated by cross-validation, each by a fit on the others, so no one calibrator made "
    "them. Fit on some questions, calibrate others with `hf-calib calibrate --apply_to`, and make the gate of these."
)
_STATED = (
    "prompt_format", "prompt_digest", "option_normalization", "answer_confidence", "calibrator", "calibrator_digest",
)  # fmt: skip


def predictions_fingerprint(predictions: OptionPredictions | ConfidencePredictions) -> dict[str, Any]:
    """
    Describe what a gate holds for: model, digest of its weights, prompt, scores and calibrator.

    What is not known, as with predictions of other tools, is `None`.
    """
    metadata = predictions.metadata
    return {
        "model": metadata.get("model"),
        "weights": metadata.get("fingerprint", {}).get("weights"),
        **{name: metadata.get(name) for name in _STATED},
    }


def model_fingerprint(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_format: PromptFormat,
    option_normalization: str,
    calibrator: PostHocCalibrator | None = None,
) -> dict[str, Any]:
    """
    Describe a model, the way of asking it and its calibrator as its predictions would.

    Args:
        model ([`~transformers.PreTrainedModel`]), tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The model and its tokenizer.
        prompt_format ([`~hf_calib.PromptFormat`]), option_normalization (`str`):
            How questions are written, and how options are scored.
        calibrator ([`~hf_calib.PostHocCalibrator`], *optional*):
            Calibrator of the option logits.
    """
    from ..inference.predict import model_name, weights_digest

    return {
        "model": model_name(model),
        "weights": weights_digest(model),
        "answer_confidence": None,
        "prompt_format": asdict(prompt_format),
        "prompt_digest": prompt_format.digest(tokenizer),
        "option_normalization": option_normalization,
        "calibrator": None if calibrator is None else calibrator.method,
        "calibrator_digest": None if calibrator is None else calibrator.digest,
    }


def stated_prompt_format(fingerprint: Mapping[str, Any]) -> PromptFormat:
    """
    The prompt format of a gate that a model can be run with.

    Raises:
        `ValueError`: the gate is of written answers, or it does not state how questions were asked, or the weights of
            the model.
    """
    if kind := fingerprint.get("answer_confidence"):
        raise ValueError(
            f"the gate is of answers that the model wrote (confidence {kind}): only questions with options are "
            "answered behind a gate."
        )
    stated = fingerprint.get("prompt_format")
    if not (stated and fingerprint.get("weights") and fingerprint.get("option_normalization")):
        raise ValueError(
            "the gate does not state its model's weights and how questions were asked, as with predictions of other "
            "tools and of served models: make it from the output of `hf-calib evaluate`."
        )
    try:
        return PromptFormat(**stated)
    except TypeError as error:
        raise ValueError(f"the gate has no valid prompt format ({error}).") from None


def check_fingerprint(
    mine: Mapping[str, Any], others: Mapping[str, Any], name: str, of: str = "holds predictions of"
) -> bool:
    """
    Check that a model, the way of asking it and its calibrator are those of a gate.

    Args:
        mine (`Mapping`):
            Fingerprint of the gate.
        others (`Mapping`):
            Fingerprint to compare with it, see [`predictions_fingerprint`].
        name (`str`), of (`str`, *optional*, defaults to `"holds predictions of"`):
            What has the fingerprint, and the words between it and the model, in messages.

    Returns:
        `bool`: whether the model is known on both sides, so that it was compared.

    Raises:
        `ValueError`: one of them is another.
    """
    key = "weights" if mine.get("weights") and others.get("weights") else "model"
    known = bool(mine.get(key) and others.get(key))
    if known and mine[key] != others[key]:
        differing = ", with other weights or in another dtype" if key == "weights" else ""
        raise ValueError(
            f"{name} {of} {others.get('model')}, and the gate is of {mine.get('model')}{differing}: make a gate for "
            "this model with hf-calib threshold."
        )
    compared = (compare(mine, others) for compare in (_confidences, _prompts, _scores, _calibrators))
    if differing := next(filter(None, compared), None):
        title, here, there = differing
        raise ValueError(
            f"{name} differs from the gate in its {title}: {there} instead of {here}; ask and calibrate as for the "
            "predictions of the gate, or make another gate."
        )
    if mine.get("calibrator") and not (mine.get("calibrator_digest") and others.get("calibrator_digest")):
        raise ValueError(f"the gate cannot be compared with {name}: {CROSS_VALIDATED}")
    return known


def _confidences(mine: Mapping[str, Any], others: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Kind of the confidence: of options, or one of those of written answers; files of other tools do not tell."""
    if not (mine.get("prompt_format") and others.get("prompt_format")):
        return None
    here, there = ((each.get("answer_confidence") or "option probability") for each in (mine, others))
    return None if here == there else ("kind of confidence", here, there)


def _prompts(mine: Mapping[str, Any], others: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Where the prompts differ, and both sides; `None` if they do not, or are not known."""
    formats, digests = ([each.get(name) for each in (mine, others)] for name in ("prompt_format", "prompt_digest"))
    if None not in digests:
        if digests[0] == digests[1]:
            return None
        return ("chat template or tokenizer", *digests) if formats[0] == formats[1] else ("prompt format", *formats)
    return None if None in formats or formats[0] == formats[1] else ("prompt format", *formats)


def _scores(mine: Mapping[str, Any], others: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    name = "option_normalization"
    here, there = mine.get(name), others.get(name)
    unknown = (None, "logits", "probabilities")  # files with named columns do not tell
    return (name, here, there) if here != there and here not in unknown and there not in unknown else None


def _calibrators(mine: Mapping[str, Any], others: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The method and the fitted content must agree; no calibrator is one of its own."""
    here, there = mine.get("calibrator"), others.get("calibrator")
    if here != there:
        return "calibrator", here, there
    digests = [each.get("calibrator_digest") for each in (mine, others)]
    if here is None or None in digests or digests[0] == digests[1]:
        return None
    return "calibrator", here, f"{there} with other parameters"
