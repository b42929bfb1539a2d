"""Gates that are published with a model: loading, checking and showing them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation.gate import FILE, Gate, predictions_digest
from ..evaluation.gate_fingerprint import (
    check_fingerprint,
    model_fingerprint,
    predictions_fingerprint,
    stated_options,
)
from ..evaluation.protocol import EvaluationProtocol, is_hub_id
from ..posthoc import PostHocCalibrator
from .markup import render
from .repository import HubError, download


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..inference.predictions import OptionPredictions

_NUMBERS = (
    "threshold", "coverage", "coverage_low", "coverage_high", "accuracy", "accuracy_low", "accuracy_high", "n",
    "n_answered",
)  # fmt: skip


def load_gate(repo_id_or_path: str | Path, revision: str | None = None) -> Gate:
    """
    Load a gate: a gate.json, that of a folder, or the one that was published with a model.

    Args:
        repo_id_or_path (`str` or `Path`):
            The file, its folder, the folder of a model, or a model on the Hub.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.

    Raises:
        `OSError`: there is no gate.
        `ValueError`: the file is no gate.
    """
    path = Path(repo_id_or_path).expanduser()
    if path.is_file():
        return Gate.load(path)
    name = str(repo_id_or_path)
    if not path.is_dir():
        if not is_hub_id(name):
            raise FileNotFoundError(f"there is no gate {name}.")
        try:
            path = download(name, [FILE], revision)
        except HubError as error:
            raise HubError(f"there is no file or folder {name}; on the Hub: {error}") from error
    if not (path / FILE).is_file():
        raise FileNotFoundError(
            f"{name} has no {FILE}: make one with `hf-calib threshold` and name it (gate=..., --gate); `hf-calib push "
            "--gate` publishes it with a model."
        )
    return Gate.load(path)


def usable_gate(gate: Gate | str | Path) -> Gate:
    """
    Load a gate, and check that questions can be answered with it.

    Raises:
        `OSError`: there is no gate.
        `ValueError`: it has no threshold, or does not state how questions were asked.
    """
    gate = gate if isinstance(gate, Gate) else load_gate(gate)
    if not gate.found:
        raise ValueError(
            f"the gate has no threshold, because none reaches an accuracy of {gate.target_accuracy:.4g}: no question "
            "would be answered."
        )
    stated_options(gate.fingerprint)
    return gate


def check_gate_of_model(
    gate: Gate,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    predictions: OptionPredictions,
    calibrator: PostHocCalibrator | None,
) -> None:
    """
    Check that a gate can be published with a model.

    Args:
        gate ([`~hf_calib.Gate`]):
            The gate.
        model ([`~transformers.PreTrainedModel`]), tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The model.
        predictions ([`~hf_calib.OptionPredictions`]):
            Those of its evaluation.
        calibrator ([`~hf_calib.PostHocCalibrator`], *optional*):
            The calibrator that is published with it.

    Raises:
        `ValueError`: the gate is of another model, prompt or calibrator, or the evaluation is.
    """
    method = gate.fingerprint.get("calibrator")
    if method and calibrator is None:
        raise ValueError(
            f"the gate is of predictions with the calibrator {method}: publish it too, with --calibrator."
        )
    used = calibrator if method else None
    mine = model_fingerprint(model, tokenizer, gate.fingerprint, used)
    check_fingerprint(gate.fingerprint, mine, "--model", "is")
    check_fingerprint(
        gate.fingerprint, predictions_fingerprint(calibrated_as(gate, predictions, calibrator)), "the evaluation"
    )


def calibrated_as(
    gate: Gate, predictions: OptionPredictions, calibrator: PostHocCalibrator | None
) -> OptionPredictions:
    """Predictions as the gate has them: with the calibrator if it has one, else as they are."""
    return predictions.recalibrated(calibrator) if gate.fingerprint.get("calibrator") else predictions


def gate_statement(gate: Gate) -> dict[str, Any]:
    """What results.json and the card state of a gate: its gate.json without the digests and confidences."""
    return {name: value for name, value in gate.to_dict().items() if name not in ("questions", "confidences")}


def write_gate(
    folder: Path,
    gate: Gate,
    repo_id: str,
    predictions: OptionPredictions | None,
    calibrator: PostHocCalibrator | None,
) -> dict[str, Any]:
    """
    Write gate.json into the folder of a model, with the name of the repository as that of the model.

    Args:
        folder (`Path`), gate ([`~hf_calib.Gate`]), repo_id (`str`):
            The folder, the gate, and the name of the repository.
        predictions ([`~hf_calib.OptionPredictions`], *optional*), calibrator ([`~hf_calib.PostHocCalibrator`],
        *optional*):
            Those of the model's evaluation, and the published calibrator.

    Returns:
        `dict`: [`gate_statement`], and `of_evaluation`: whether the gate was made with the evaluation's questions.
    """
    named = replace(gate, fingerprint={**gate.fingerprint, "model": repo_id})
    named.save(folder / FILE)
    same = False
    if predictions is not None:
        same = predictions_digest(calibrated_as(gate, predictions, calibrator)) == gate.questions
    return {**gate_statement(named), "of_evaluation": same}


def check_statement(stated: Mapping[str, Any]) -> None:
    """Raise a `ValueError` if what a results.json states of a gate has not the form of [`gate_statement`]."""
    try:
        entries = [stated[name] for name in ("target_accuracy", "level")]
        entries += [entry[name] for entry in _thresholds(stated).values() for name in _NUMBERS]
        if not isinstance(dict(stated["fingerprint"]).get("calibrator"), (str, type(None))):
            raise TypeError("fingerprint")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"gate: it lacks or has not the form of {error}") from None
    for value in entries:
        if isinstance(value, bool) or not isinstance(value, (int, float, type(None))):
            raise ValueError(f"gate: {value!r} is not a number")


def _thresholds(stated: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return dict(stated["subjects"]) if "subjects" in stated else {"": stated}


def gate_section(results: Mapping[str, Any]) -> str:
    """Show the gate of a results.json in Markdown, with the Python that uses it; empty if there is none."""
    stated = results.get("gate")
    if not stated:
        return ""
    kind = PostHocCalibrator.kinds.get(stated["fingerprint"].get("calibrator"))
    return render(
        "gate.md.j2",
        gate=stated,
        by_subject="subjects" in stated,
        thresholds=_thresholds(stated),
        calibrator=kind and kind.title,
        usage=_usage(results),
    )


def _usage(results: Mapping[str, Any]) -> str:
    """Python code that answers questions with the published gate."""
    name, dtype = results.get("repo_id") or results.get("model") or "org/model", EvaluationProtocol.of(results).dtype
    loading = repr(name) + ("" if dtype == "auto" else f", dtype={dtype!r}")
    written = results["gate"]["fingerprint"].get("answer_confidence")
    choices = "" if written else ', "choices": ["hot", "cold"]'
    subject = ', "subject": "physics"' if "subjects" in results["gate"] else ""
    return (
        "from hf_calib import SelectiveAnswerer\n\n"
        f"answerer = SelectiveAnswerer.from_pretrained({loading})\n"
        f'questions = [{{"question": "Ice is"{choices}{subject}}}]\n'
        "for answer in answerer(questions):\n"
        '    print(answer.text if answer.answered else "no answer", answer.confidence)'
    )
