"""What a gate holds for: model, prompt and calibrator, as they are stated and compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..data.prompts import PromptFormat
from ..inference.predictions import OptionPredictions
from ..prediction_files.confidences import ConfidencePredictions
from ..served.identity import ServedIdentity
from .asking import is_served


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..inference.answer_options import AnswerOptions
    from ..inference.predict import PredictionOptions
    from ..posthoc import PostHocCalibrator
    from ..served.client import ServedModel

CROSS_VALIDATED = (
    "its predictions were calibrated by cross-validation, each by a fit on the others, so no one calibrator made "
    "them. Fit on some questions, calibrate others with `hf-calib calibrate --apply_to`, and make the gate of these."
)
_STATED = (
    "prompt_format", "prompt_digest", "option_normalization", "answer_confidence", "answering", "calibrator",
    "calibrator_digest",
)  # fmt: skip
# What is stated of the requests to a served model.
_REQUESTS = ("api", "extra_body", "identity")


def predictions_fingerprint(predictions: OptionPredictions | ConfidencePredictions) -> dict[str, Any]:
    """
    Describe what a gate holds for: model, digest of its weights or what its server sends, prompt, scores, calibrator.

    What is not known, as with predictions of other tools, is `None`.
    """
    metadata = predictions.metadata
    return {
        "model": metadata.get("model"),
        "weights": metadata.get("fingerprint", {}).get("weights"),
        **{name: metadata.get(name) for name in _STATED},
        "served": _requests(metadata["served"]) if metadata.get("served") else None,
    }


def _requests(served: Mapping[str, Any]) -> dict[str, Any]:
    return {name: served.get(name) for name in _REQUESTS}


def model_fingerprint(
    model: PreTrainedModel | ServedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    gate: Mapping[str, Any],
    calibrator: PostHocCalibrator | None = None,
) -> dict[str, Any]:
    """
    Describe a model that is asked as a gate states, and its calibrator, as its predictions would.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~hf_calib.ServedModel`]):
            The model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Its tokenizer; a served model may have none.
        gate (`Mapping`):
            Fingerprint of the gate.
        calibrator ([`~hf_calib.PostHocCalibrator`], *optional*):
            Calibrator of the option logits.
    """
    prompt_format, served = PromptFormat(**gate["prompt_format"]), None
    if is_served(model):
        name, weights = model.model, None
        chat = tokenizer is None and bool(prompt_format.use_chat_template)
        served = {
            "api": "chat/completions" if chat else "completions",
            "extra_body": dict(model.options.extra_body),
            "identity": ServedIdentity.of_model(model, chat).as_dict(),
        }
    else:
        from ..inference.predict import model_name, weights_digest

        name, weights = model_name(model), weights_digest(model)
    return {
        **gate,
        "model": name,
        "weights": weights,
        "served": served,
        "prompt_digest": None if tokenizer is None else prompt_format.digest(tokenizer),
        "calibrator": None if calibrator is None else calibrator.method,
        "calibrator_digest": None if calibrator is None else calibrator.digest,
    }


def stated_options(fingerprint: Mapping[str, Any], **more) -> PredictionOptions | AnswerOptions:
    """
    How the questions of a gate were asked.

    Args:
        fingerprint (`Mapping`):
            Fingerprint of the gate.
        more:
            Further options.

    Raises:
        `ValueError`: the gate does not state it, or not of which model it is.
    """
    from ..inference.answer_options import AnswerOptions
    from ..inference.predict import PredictionOptions

    confidence, stated = fingerprint.get("answer_confidence"), fingerprint.get("prompt_format")
    served = (fingerprint.get("served") or {}).get("identity")
    known = fingerprint.get("answering") if confidence else fingerprint.get("option_normalization")
    if not (stated and known and (fingerprint.get("weights") or served)):
        raise ValueError(
            "the gate does not state of which weights it is and how questions were asked, as with predictions of "
            "other tools: make it from the output of `hf-calib evaluate`."
        )
    try:
        if confidence:
            return AnswerOptions.stated(known, confidence, **more)
        return PredictionOptions(PromptFormat(**stated), known, **more)
    except TypeError as error:
        raise ValueError(f"the gate does not state in a known form how questions were asked ({error}).") from None


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
    if how := _other_served(mine.get("served"), others.get("served")):
        raise ValueError(f"{name} {of} another model than the gate, under the same name: {how}; make a gate for it.")
    compared = (compare(mine, others) for compare in (_confidences, _requested, _prompts, _scores, _calibrators))
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


def _other_served(mine: Mapping[str, Any] | None, others: Mapping[str, Any] | None) -> str | None:
    """How two served models differ; `None` if they do not, or are not known."""
    identities = [each and each.get("identity") for each in (mine, others)]
    if not all(identities) or mine.get("api") != others.get("api"):
        return None
    first, other = map(ServedIdentity.of, identities)
    return first.difference(other)


def _requested(mine: Mapping[str, Any], others: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Where the model runs, how a served one is requested, and how answers are written."""
    if not (mine.get("prompt_format") and others.get("prompt_format")):
        return None
    places = [
        "behind a server" if each.get("served") else "here" if each.get("weights") else None for each in (mine, others)
    ]
    if None not in places and places[0] != places[1]:
        return "place where the model runs", *places
    for name in ("api", "extra_body"):
        here, there = ((each.get("served") or {}).get(name) for each in (mine, others))
        if here != there:
            return f"requests to the server ({name})", here, there
    here, there = (each.get("answering") for each in (mine, others))
    return None if here == there else ("writing of answers", here, there)


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
