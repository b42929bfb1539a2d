"""The calibration section of a model card, made from results.json."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .. import __version__
from ..data.prompts import ANSWER_TEMPLATE, DEFAULT_TEMPLATES
from ..evaluation.alignment_report import ALIGNED, REFERENCE, AlignmentReport
from ..evaluation.evaluate import groups_of
from ..evaluation.protocol import EvaluationProtocol, is_hub_id
from ..evaluation.tables import markdown_table
from ..regime.report import CALIBRATABLE, NON_CALIBRATABLE, TARGET_CONTRADICTED, UNDETERMINED
from .gate import check_statement, gate_section
from .markup import BEGIN, END, escape, render


CARD, RESULTS, RECIPE = "README.md", "results.json", "recipe.yaml"

# Measures in the model-index: key in results.json, which is the metric's type, and its name.
METRICS = {
    "accuracy": "Accuracy",
    "confidence": "Mean confidence",
    "ece": "Expected calibration error (conf-ECE)",
    "ece_low": "conf-ECE, lower end of the 95% interval",
    "ece_high": "conf-ECE, upper end of the 95% interval",
    "ece_noise_floor": "Noise floor of the conf-ECE",
    "cw_ece": "Classwise calibration error (cw-ECE)",
    "tce": "Target calibration error",
    "nll": "Negative log-likelihood of the right option",
    "nll_low": "Negative log-likelihood, lower end of the 95% interval",
    "nll_high": "Negative log-likelihood, upper end of the 95% interval",
    "brier": "Brier score",
    "brier_low": "Brier score, lower end of the 95% interval",
    "brier_high": "Brier score, upper end of the 95% interval",
    "auroc": "AUROC of the confidence",
    "auroc_low": "AUROC, lower end of the 95% interval",
    "auroc_high": "AUROC, upper end of the 95% interval",
}
_FLAGS = {"answer_confidence": "confidence"}  # of `hf-calib evaluate`, where they have another name
_TASK = {"task_type": "multiple-choice", "task_name": "Multiple choice"}
_ANSWER_TASK = {"task_type": "question-answering", "task_name": "Short answers"}
_SOURCE = "results.json of hf_calib"
# Figures of a publication, and their descriptions.
FIGURES = {
    "reliability.png": "Reliability diagrams: accuracy against confidence",
    "regime.png": "Regime plane: conf-ECE against accuracy",
    "groups.png": "Calibration error of every subject",
}
_REFERENCES = re.compile(r"^## Citations?\b", re.MULTILINE)
_DESCRIBED = ("before", "with_calibrator")  # further sets of results inside a results.json

_MEANINGS = {
    CALIBRATABLE: "This accuracy is compatible with calibration: the calibration error can be repaired without loss "
    "of accuracy.",
    NON_CALIBRATABLE: "The accuracy is higher than a calibrated model of the target can have on new questions, for "
    "example because answers were memorised: calibration error and target calibration error cannot both vanish, and "
    "confidence is valid on such questions only.",
    TARGET_CONTRADICTED: "The model is right more or less often than the target says of its answers, because answers "
    "were memorised or the target is wrong for these questions: calibration error and target calibration error cannot "
    "both vanish with these predictions.",
    UNDETERMINED: "The evaluation cannot decide whether this accuracy is compatible with calibration. A larger test "
    "set, or the model before alignment as a reference, can.",
}


@dataclass
class CalibrationCard:
    """
    Content of a card about calibration.

    Args:
        results (`Mapping`):
            Content of a results.json: the flat results of an evaluation and, optionally, `before` and
            `with_calibrator` (results of the same kind), `alignment` (see
            [`~hf_calib.evaluation.alignment_report.AlignmentReport.to_dict`]), `gate` (see
            [`~hf_calib.hub.gate.write_gate`]), `training` (see
            [`~hf_calib.training.hub_push.training_record`]), `inherited` (see [`inherit`]), `figures`
            (description of each file), `adapter` (whether the weights are an adapter's).

    Raises:
        `ValueError`: a measure is missing or of the wrong type.
    """

    results: Mapping[str, Any]
    stages: list[dict[str, Any]] = field(init=False)

    def __post_init__(self):
        self.results = check_results(self.results)
        names = {"before": "before", None: "this model" if "before" in self.results else "as published"}
        calibrator = self.results.get("with_calibrator", {}).get("calibrator", "")
        names["with_calibrator"] = f"{names[None]} + {calibrator}"
        found = [
            (key, self.results if key is None else self.results.get(key))
            for key in ("before", None, "with_calibrator")
        ]
        self.stages = [{**results, "stage": names[key]} for key, results in found if results and "n" in results]

    @classmethod
    def from_file(cls, path: str | Path) -> CalibrationCard:
        """Read a results.json, or that of a folder."""
        path = Path(path)
        path = path / RESULTS if path.is_dir() else path
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(results, dict) and "figures" not in results:
                there = {name: shown for name, shown in FIGURES.items() if (path.parent / name).is_file()}
                results["figures"] = there
            return cls(results)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{path}: no such file; `hf-calib evaluate` and `hf-calib push` write one."
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError, ValueError) as error:
            raise ValueError(f"{path} is not a results.json of one evaluation: {error}") from None

    @property
    def measured(self) -> bool:
        """Whether the results hold an evaluation, and not only a training."""
        return "n" in self.results

    @property
    def from_files(self) -> bool:
        """Whether the predictions were read from files that do not state the prompt, such as those of other tools."""
        return self.results.get("predictions_format") is not None and self.results.get("scoring") is None

    def eval_results(self) -> list[EvalResult]:
        """Make the entries of the model-index: metric types and values are keys and values of results.json."""
        if not self.measured:
            return []
        protocol = EvaluationProtocol.of(self.results)
        repo_id = self.results.get("repo_id")
        source = (
            {"source_name": _SOURCE, "source_url": f"https://huggingface.co/{repo_id}/blob/main/{RESULTS}"}
            if repo_id
            else {}
        )
        name, _, config = protocol.dataset.partition(":")
        return [
            EvalResult(
                **(_ANSWER_TASK if protocol.answer_confidence else _TASK),
                **source,
                dataset_type=re.sub(r"[^\w./-]+", "-", name).strip("-") or "questions",
                dataset_name=name or "questions",
                dataset_config=protocol.dataset_config or config or None,
                dataset_split=protocol.split,
                dataset_args={"n": self.results["n"], **({} if self.from_files else {"scoring": protocol.scoring})},
                metric_type=key,
                metric_name=title,
                metric_value=self.results[key],
            )
            for key, title in METRICS.items()
            if self.results.get(key) is not None
        ]

    def card_data(self, existing: ModelCardData | None = None) -> ModelCardData:
        """
        Make the front matter.

        Args:
            existing ([`~huggingface_hub.ModelCardData`], *optional*):
                Front matter of the existing card. It is kept, except for what the evaluation sets.
        """
        data = existing or ModelCardData()
        training = self.results.get("training", {})
        for key, value in self.results.get("inherited", {}).items():
            if not data.get(key):
                data[key] = value
        data.pop("licence", None)  # TRL writes this key, with the value "license"
        if not _on_hub(data.base_model):  # PEFT writes the folder of the base model, in a tag too
            named = (training.get("base_model"), self.results.get("inherited", {}).get("base_model"))
            data.base_model = next(filter(_on_hub, named), None)
        data.datasets = data.datasets or training.get("hub_datasets") or None
        data.library_name = "peft" if self.results.get("adapter") else data.library_name or "transformers"
        data.pipeline_tag = data.pipeline_tag or "text-generation"
        objective = training.get("settings", {}).get("objective")
        tags = ["calibration", "hf_calib", *([objective] if objective in ("cft", "rcft") else [])]
        kept = [data.tags] if isinstance(data.tags, str) else data.tags or []
        kept = [tag for tag in kept if not tag.startswith("base_model:") or is_hub_id(tag.rpartition(":")[2])]
        data.tags = [*kept, *(tag for tag in tags if tag not in kept)]
        if ours := self.eval_results():
            theirs = [
                result
                for result in data.eval_results or []
                if result.source_name != _SOURCE and result.unique_identifier != ours[0].unique_identifier
            ]
            data.eval_results = theirs + ours
            data.model_name = (
                data.model_name or Path(self.results.get("repo_id") or self.results.get("model") or "model").name
            )
        return data

    def usage(self) -> str:
        """Python code that repeats the predictions of the evaluation."""
        imports, auto = ["from transformers import AutoModelForCausalLM, AutoTokenizer"], "AutoModelForCausalLM"
        if self.results.get("adapter"):
            auto = "AutoPeftModelForCausalLM"
            imports = [f"from peft import {auto}", "from transformers import AutoTokenizer"]
        name = self.results.get("repo_id") or self.results.get("model") or "org/model"
        protocol = EvaluationProtocol.of(self.results)
        asked = [repr("text" if protocol.answer_confidence else protocol.scoring)]
        if protocol.prompt_template not in (None, DEFAULT_TEMPLATES[protocol.scoring]):
            asked.append(f"prompt_template={protocol.prompt_template!r}")
        if protocol.use_chat_template is not None:
            asked.append(f"use_chat_template={protocol.use_chat_template!r}")
        if protocol.system_prompt is not None:
            asked.append(f"system_prompt={protocol.system_prompt!r}")
        public = ["PromptFormat", "load_questions", "predict_options"]
        if protocol.answer_confidence:
            public[1:] = ["load_short_questions", "predict_answers"]
        if calibrated := self.results.get("with_calibrator"):
            public.insert(1, "load_calibrator")
        lines = [
            *imports,
            "",
            f"from hf_calib import {', '.join(public)}",
            "",
            f"model = {auto}.from_pretrained({name!r})",
            f"tokenizer = AutoTokenizer.from_pretrained({name!r})",
            f"prompt_format = PromptFormat({', '.join(asked)})",
            *_prediction_code(protocol),
            "print(predictions.probabilities)",
        ]
        if calibrated:
            lines.append(f"print(predictions.recalibrated(load_calibrator({name!r})).probabilities)")
        return "\n".join(lines)

    def evaluate_command(self) -> str:
        """Command line of the evaluation."""
        protocol = EvaluationProtocol.of(self.results)
        command = ["hf-calib", "evaluate", "--model", self.results.get("model") or "MODEL"]
        for name, default in asdict(EvaluationProtocol(dataset="")).items():
            value = getattr(protocol, name)
            if value is not None and (value != default or name == "scoring"):
                if name != "prompt_template" or value not in (DEFAULT_TEMPLATES[protocol.scoring], ANSWER_TEMPLATE):
                    command += [
                        f"--{_FLAGS.get(name, name)}",
                        str(value).lower() if isinstance(value, bool) else str(value),
                    ]
        return shlex.join(command)

    def alignment(self) -> str:
        """Format what the model keeps of its alignment in Markdown; empty if that is not known."""
        if not self.results.get("alignment"):
            return ""
        report = AlignmentReport.from_dict(self.results["alignment"])
        names = {name: escape(name) for name in report.models}
        names |= {REFERENCE: "before alignment", ALIGNED: "aligned, before the repair"}
        if len(report.repaired) == 1:
            names[report.repaired[0]] = "this model"
        return f"{report.markdown(names)}\n\n{report.method()}"

    def section(self) -> str:
        """Render the calibration section in Markdown, between its markers."""
        groups = groups_of(self.results)
        shown = [{**stage, "stage": escape(stage["stage"])} for stage in self.stages]
        content = render(
            "calibration.md.j2",
            card=self,
            results=self.results,
            before=self.results.get("before"),
            calibrated=self.results.get("with_calibrator"),
            training=self.results.get("training"),
            figures=self.results.get("figures", {}),
            protocol=EvaluationProtocol.of(self.results),
            on_hub=is_hub_id(self.results.get("dataset")),
            alignment=self.alignment(),
            gate=gate_section(self.results),
            table=markdown_table(shown, empty_columns=False) if shown else "",
            groups=groups,
            off=[
                name for name, group in groups.items() if group["ece_p_value_holm"] < self.results.get("alpha", 0.05)
            ],
            usage="" if self.from_files else self.usage(),
            evaluate="" if self.from_files else self.evaluate_command(),
            meanings=_MEANINGS,
            version=__version__,
        )
        return f"{BEGIN}\n{content}{END}"

    def render(self, existing: str | None = None) -> ModelCard:
        """
        Render the whole card. Rendering it again changes nothing.

        Args:
            existing (`str`, *optional*):
                The existing card, e.g. TRL's. Its text is kept, the section replaced or added before the references.
        """
        card = ModelCard(existing, ignore_metadata_errors=True) if existing else None
        data = self.card_data(card.data if card else None)
        # PEFT saves an empty form with every adapter.
        written = card is not None and card.text.count("[More Information Needed]") < 5
        text = card.text if written else render("model_card.md.j2", results=self.results)
        section = self.section()
        if BEGIN in text and END in text.partition(BEGIN)[2]:
            head, _, rest = text.partition(BEGIN)
            text = head + section + rest.partition(END)[2]
        else:
            # Most cards, like TRL's, end with references: the section goes before them.
            found = _REFERENCES.search(text)
            at = found.start() if found else len(text)
            text = f"{text[:at].rstrip()}\n\n{section}\n\n{text[at:]}".rstrip() + "\n"
        return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text.lstrip()}", ignore_metadata_errors=True)


def _prediction_code(protocol: EvaluationProtocol) -> list[str]:
    """Lines of Python that load questions and predict."""
    if name := protocol.answer_confidence:
        return [
            'questions = load_short_questions("questions.jsonl")',
            "found = predict_answers(",
            f"    model, tokenizer, questions, prompt_format=prompt_format, confidences=({name!r},),",
            f"    max_new_tokens={protocol.max_new_tokens}, num_samples={protocol.num_samples}, "
            f"temperature={protocol.temperature},",
            ")",
            f"predictions = found.predictions[{name!r}]  # probability that an answer is right, and wrong",
        ]
    return [
        'questions = load_questions("questions.parquet")',
        "predictions = predict_options(",
        "    model, tokenizer, questions, prompt_format=prompt_format,",
        f"    option_normalization={protocol.option_normalization!r},",
        ")",
    ]


def check_results(results: Any) -> dict[str, Any]:
    """Check the types of results read from a file: measures are numbers, names and explanations texts."""
    if not isinstance(results, Mapping):
        raise ValueError("it holds no single set of results (a report of several stages has one for each: take one)")
    for name in _DESCRIBED:
        if results.get(name) is not None:
            check_results(results[name])
    if "n" in results:
        missing = [
            key
            for key in ("accuracy", "confidence", "ece", "ece_low", "ece_high", "ece_noise_floor")
            if key not in results
        ]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
    elif "training" not in results:
        raise ValueError("it holds neither an evaluation (n, accuracy, ece, ...) nor a training")
    numbers = ("n", *METRICS, "critical_accuracy", "alpha", "ece_p_value", "limit", "seed")
    for key, value in results.items():
        if (key in numbers or key.startswith("group/")) and not isinstance(value, (int, float, type(None))):
            raise ValueError(f"{key} is {value!r}, not a number")
        if key in ("dataset", "model", "regime", "explanation", "scoring", "split") and not isinstance(
            value, (str, type(None))
        ):
            raise ValueError(f"{key} is {value!r}, not a text")
        if key in ("training", "figures", "inherited", "alignment", "gate", *_DESCRIBED) and not isinstance(
            value, (Mapping, type(None))
        ):
            raise ValueError(f"{key} is {value!r}, not an object")
    if results.get("alignment"):
        AlignmentReport.from_dict(results["alignment"])
    if results.get("gate"):
        check_statement(results["gate"])
    for file in results.get("figures") or ():
        if not re.fullmatch(r"[\w-][\w.-]*\.(png|svg)", file):
            raise ValueError(f"figures names {file!r}, which is no picture beside it")
    if results.get("scoring") not in (None, *DEFAULT_TEMPLATES):
        raise ValueError(f"scoring is {results['scoring']!r}, not one of {', '.join(DEFAULT_TEMPLATES)}")
    if results.get("regime") not in (None, *_MEANINGS):
        raise ValueError(f"regime is {results['regime']!r}, not one of {', '.join(_MEANINGS)}")
    return dict(results)


def inherit(base_model: str | None, token: str | None = None) -> dict[str, Any]:
    """
    Read what a card inherits from that of the base model: license, language and data sets. If the base model is a
    local folder, its own base model is inherited, too.
    """
    if not base_model:
        return {}
    local = Path(base_model) / CARD
    try:
        if Path(base_model).exists():
            data = ModelCard.load(local, ignore_metadata_errors=True).data if local.is_file() else ModelCardData()
        else:
            data = ModelCard.load(base_model, token=token, ignore_metadata_errors=True).data
    except Exception:  # the card is missing, private, malformed, or the Hub is offline
        data = ModelCardData()
    kept = ("license", "license_name", "license_link", "language", "datasets")
    found = {key: data.get(key) for key in kept if data.get(key)}
    base = data.base_model if Path(base_model).exists() else base_model
    return {**found, "base_model": base} if _on_hub(base) else found


def _on_hub(base_model: str | list[str] | None) -> bool:
    return bool(base_model) and all(map(is_hub_id, [base_model] if isinstance(base_model, str) else base_model))
