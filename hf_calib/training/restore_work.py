"""What the stages of `hf-calib restore` share: options, questions, plan, models and predictions."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset

from .. import __version__
from ..data.layouts import digest
from ..data.preference_pairs import load_pairs
from ..evaluation.alignment import AlignmentMeter
from ..evaluation.protocol import EvaluationProtocol, is_hub_id
from ..evaluation.tables import check_output_dir
from ..inference.model_loading import check_same_vocabulary, load_model, load_tokenizer
from ..inference.predict import predict_options
from ..inference.predictions import OptionPredictions
from .restore_data import Records, RestoreQuestions, load_restore_questions, possible_scorings, without_bars
from .restore_options import RestoreOptions
from .restore_plan import Plan, agreed, describe_cut, fit_budget, seconds_per_question, take
from .restore_recipe import PROMPT_FIELDS, full_plan, is_small, read_config, with_prompt_of
from .restore_stages import StageRecord, model_identity
from .run import refuse_adapter


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Files of questions in `data/`.
LABELS, TEST, UNLABELLED = "labels.parquet", "test.parquet", "unlabelled.parquet"
# Alignment report: most pairs, prompts and texts, and tokens of a text.
MOST_PAIRS, MOST_PROMPTS, MOST_TEXTS, MAX_NEW_TOKENS = 1000, 32, 100, 64


class RestoreWork:
    """
    A prepared restoration: checked options, questions, and a plan that was made by timing the model.

    Args:
        options ([`~hf_calib.training.restore_options.RestoreOptions`]):
            Model, data and everything else.
        records (`Mapping`):
            Rows of the data, from [`~hf_calib.training.restore_data.load_restore_records`].
        record ([`~hf_calib.training.restore_stages.StageRecord`]):
            Finished stages.
        notes (`Sequence[str]`, *optional*):
            What was done before, in sentences.
        command (`str`, *optional*):
            Command line, for the card of the model.

    Attributes:
        folder (`Path`): Output folder.
        questions ([`~hf_calib.training.restore_data.RestoreQuestions`]): The questions of the plan.
        plan ([`~hf_calib.training.restore_plan.Plan`]): Numbers of questions and epochs.
        meter ([`~hf_calib.evaluation.alignment.AlignmentMeter`]): Measures the alignment.
        closing (`dict`): What the trainer tells about its closing step.
        scorings (`list[str]`), scoring_reason (`str`): Kinds of scoring to compare, or why there is only one.

    Raises:
        `ValueError`, `OSError`: for a wrong option, file or question.
    """

    def __init__(
        self,
        options: RestoreOptions,
        records: Mapping[str, Records],
        record: StageRecord,
        notes: Sequence[str] = (),
        command: str | None = None,
    ):
        _refuse_divided_weights()
        self.options, self.command = replace(options, **with_prompt_of(options)), command
        self.config = read_config(options)
        self.folder = check_output_dir(options.output_dir)
        refuse_adapter(options.model, options.revision)
        self.tokenizer = load_tokenizer(options.model, options.revision, options.trust_remote_code)
        _check_reference(options, self.tokenizer)
        with without_bars():
            questions = load_restore_questions(options, records)
            self.meter = _alignment_meter(options, self.tokenizer)
        self.scorings, self.scoring_reason = possible_scorings(self.options, self.tokenizer, questions.labels)
        self.record, self.state = record, record.state
        self.closing: dict[str, Any] = {}
        self._model: PreTrainedModel | None = None
        self.dtype = options.dtype
        for note in questions.notes:
            self.print(note)
        questions.notes[:0] = notes
        found = self.record.run("plan", self._plan_inputs(questions), lambda resume: self._plan(questions))
        self.dtype, self.num_parameters = found["dtype"], found["num_parameters"]
        self.plan = Plan(**found["plan"])
        self.questions: RestoreQuestions = take(questions, self.plan)
        cut = self.plan.test < len(questions.test)
        self._test_limit = self.plan.test if options.test_limit or cut else None
        self.print(self.plan.describe(options.budget))
        if found["cut"]:
            self.questions.notes.append(found["cut"])
            self.print(found["cut"])

    def print(self, text: str) -> None:
        """Print on the main process."""
        if self.state.is_main_process:
            print(text, flush=True)

    # Model and predictions

    @property
    def model(self) -> PreTrainedModel:
        """The aligned model, loaded when it is needed first."""
        if self._model is None:
            self._model = self.load(self.options.model, revision=self.options.revision)
        return self._model

    def pop_model(self) -> PreTrainedModel:
        """The aligned model, of which no other reference is kept: it is going to be trained."""
        model, self._model = self.model, None
        return model

    def load(self, name: str, **changes) -> PreTrainedModel:
        """Load a model as the options say."""
        options = self.options
        loading = {"dtype": self.dtype, "attn_implementation": options.attn_implementation}
        return load_model(name, **loading, trust_remote_code=options.trust_remote_code, **changes)[0]

    def predict(
        self, model: PreTrainedModel, questions: Dataset, path: Path | None = None, **changes
    ) -> OptionPredictions:
        """Score questions. `changes` are further options of `predict_options`."""
        options = self.options
        known = {} if "prompt_format" in changes else {"prompt_format": options.prompt_format()}
        known |= {
            "option_normalization": options.option_normalization,
            "batch_size": options.batch_size,
            "max_length": options.max_length,
            "drop_too_long": options.drop_too_long,
        }
        return predict_options(model, self.tokenizer, questions, output_path=path, **known, **changes)

    @property
    def protocol(self) -> EvaluationProtocol:
        """How the test questions are evaluated."""
        options, names = self.options, ("seed", "drop_invalid", "drop_too_long", "max_length", *PROMPT_FIELDS)
        known = {name: getattr(options, name) for name in names}
        dataset = {"dataset": str(self.folder / "data" / TEST)}
        if options.test:
            config = options.dataset_config if is_hub_id(options.test) else None
            dataset = {"dataset": options.test, "dataset_config": config, "split": "test", "limit": self._test_limit}
            dataset |= options.reading
        return EvaluationProtocol(**dataset, **known, dtype=self.dtype)

    # Stages

    @property
    def _alignment_rows(self) -> int:
        return len(self.meter.pairs or ()) + len(self.meter.texts or ())

    def inputs(self, *stages: str, **more) -> dict[str, Any]:
        """Inputs of a stage: the stages that it depends on, and more."""
        keys = {name: self.record.keys[name] for name in ("plan", "scoring", *stages) if name in self.record.keys}
        return {**keys, **more}

    @property
    def kind(self) -> str:
        """`"full"` fine-tuning or `"lora"`."""
        return "full" if is_small(self.num_parameters, self.config) else "lora"

    @property
    def model_folder(self) -> Path:
        """Folder of the restored checkpoint."""
        return self.folder / "model"

    @property
    def training_folder(self) -> Path:
        """Output folder of the trainer: that of the checkpoint, or of the adapter that is merged into it."""
        return self.model_folder if self.kind == "full" else self.folder / "adapter"

    @property
    def held_out_path(self) -> Path:
        """Predictions of the trained model for the held-out labels."""
        return self.training_folder / "held_out" / "predictions.npz"

    def _plan_inputs(self, questions: RestoreQuestions) -> dict[str, Any]:
        options = asdict(self.options)
        left_out = ("output_dir", "no_resume", "config", "batch_size", "pairs", "prompts", "texts")
        return {
            **{name: value for name, value in options.items() if name not in left_out},
            **{name: model_identity(options[name]) for name in ("model", "reference")},
            "data": {name: _content(getattr(questions, name)) for name in ("labels", "test", "unlabelled")},
            "config": {name: self.config.get(name) for name in ("num_train_epochs", "use_peft")},
            "alignment_rows": self._alignment_rows if options["budget"] else None,
            "version": __version__,
        }

    def _plan(self, questions: RestoreQuestions) -> dict[str, Any]:
        """Time the model on a few questions and make the plan."""
        options = self.options
        self._model = self.load(options.model, revision=options.revision)
        num_parameters, dtype = self._model.num_parameters(), options.dtype
        small = is_small(num_parameters, self.config)
        if dtype == "auto" and (small or not torch.accelerator.is_available()):
            self._model, dtype = self._model.float(), "float32"
        slowest = replace(options, scoring=self.scorings[-1]).prompt_format()
        seconds = seconds_per_question(
            lambda rows: self.predict(self._model, rows, prompt_format=slowest, progress=False),
            questions.labels,
            self.state,
        )
        numbers = {name: len(getattr(questions, name) or ()) for name in ("labels", "test", "unlabelled")}
        plan = full_plan(
            options,
            self.config,
            num_parameters,
            numbers,
            seconds_per_question=seconds,
            chooses_scoring=len(self.scorings) > 1,
            alignment_rows=self._alignment_rows,
            spent=agreed(self.record.seconds.get("answers", 0.0), self.state),
        )
        fitted = fit_budget(plan, options.budget, fixed_epochs="num_train_epochs" in self.config)
        cut = describe_cut(plan, fitted, options.budget)
        return {"plan": fitted.to_dict(), "dtype": dtype, "num_parameters": num_parameters, "cut": cut}


def _content(questions: Dataset | None) -> str | None:
    return None if questions is None else digest(json.dumps(questions.to_list(), default=str))


def _check_reference(options: RestoreOptions, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise a `ValueError` if the reference has another vocabulary."""
    if options.reference is None:
        return
    other = load_tokenizer(options.reference, trust_remote_code=options.trust_remote_code)
    check_same_vocabulary({options.model: tokenizer, options.reference: other})


def _alignment_meter(options: RestoreOptions, tokenizer: PreTrainedTokenizerBase) -> AlignmentMeter:
    """The measurement of the alignment; raises a `ValueError` for wrong pairs, prompts or texts."""
    pairs = None
    if options.pairs:
        pairs = load_pairs(options.pairs, limit=MOST_PAIRS, seed=options.seed, drop_invalid=options.drop_invalid)
    return AlignmentMeter(
        tokenizer,
        pairs,
        options.prompts,
        options.texts,
        max_new_tokens=MAX_NEW_TOKENS,
        prompts_limit=MOST_PROMPTS,
        texts_limit=MOST_TEXTS,
        batch_size=options.batch_size,
        max_length=options.max_length,
        seed=options.seed,
    )


def _refuse_divided_weights() -> None:
    """Raise a `ValueError` under ZeRO-3 and FSDP."""
    zero3 = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3"
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" or zero3:
        raise ValueError(
            "restore evaluates the whole model on every process, so ZeRO-3 and FSDP, which divide its weights, are "
            "not supported. Use ZeRO-2 or DDP, or `hf-calib evaluate` and `hf-calib train` one after the other."
        )
