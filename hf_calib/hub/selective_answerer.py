"""Answer questions where the calibrated confidence reaches a threshold with a guarantee, else abstain."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from ..data.adapters import adapt_questions
from ..evaluation.gate import Gate
from ..evaluation.gate_fingerprint import check_fingerprint, model_fingerprint, stated_prompt_format
from ..evaluation.selective_answers import SelectiveAnswer, selective_answers, unknown_subjects
from ..inference.encoding import OptionEncoder, encode_fitting
from ..inference.model_loading import load_model, process_state
from ..inference.predict import context_length, predict_options
from ..posthoc import PostHocCalibrator
from .calibrator import load_calibrator
from .gate import load_gate, usable_gate


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..data.prompts import PromptFormat
    from ..inference.predictions import OptionPredictions

logger = logging.getLogger(__name__)


class SelectiveAnswerer:
    """
    Model that answers an option question if its confidence reaches the threshold of a gate, and abstains otherwise.

    With the probability of the gate's level, the accuracy of the answers is at least its target, for questions of the
    kind that the gate was made with. The questions are asked as those of the gate were.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A causal language model, on the device where it is to run.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        gate ([`~hf_calib.Gate`], `str` or `Path`):
            The gate, or the gate.json that `hf-calib threshold` wrote.
        calibrator ([`~hf_calib.PostHocCalibrator`], `str` or `Path`, *optional*):
            Calibrator of the predictions with which the gate was made, or its folder. Required if there was one.
        prompt_format ([`~hf_calib.PromptFormat`], *optional*):
            How a question is written. Defaults to that of the gate; another one is an error.
        option_normalization (`"sum"` or `"mean"`, *optional*):
            Log-likelihood of an option. Defaults to that of the gate; another one is an error.
        batch_size (`int`, *optional*, defaults to `8`):
            Longest questions in a forward pass; of shorter ones more.

    Raises:
        `ValueError`: the gate has no threshold, does not state how questions were asked, or is of another model,
            calibrator or prompt.

    Example:

    ```python
    >>> from hf_calib import SelectiveAnswerer
    >>> answerer = SelectiveAnswerer.from_pretrained("org/calibrated-model")  # doctest: +SKIP
    >>> (answer,) = answerer([{"question": "Ice is", "choices": ["hot", "cold"]}])  # doctest: +SKIP
    >>> answer.text if answer.answered else "ask a person"  # doctest: +SKIP
    'cold'

    ```
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        gate: Gate | str | Path,
        calibrator: PostHocCalibrator | str | Path | None = None,
        prompt_format: PromptFormat | None = None,
        option_normalization: str | None = None,
        batch_size: int = 8,
    ):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.gate = usable_gate(gate)
        self.calibrator = load_calibrator(calibrator) if isinstance(calibrator, (str, Path)) else calibrator
        self.prompt_format = prompt_format or stated_prompt_format(self.gate.fingerprint)
        self.option_normalization = option_normalization or self.gate.fingerprint["option_normalization"]
        mine = model_fingerprint(model, tokenizer, self.prompt_format, self.option_normalization, self.calibrator)
        check_fingerprint(self.gate.fingerprint, mine, "the answerer", "runs")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        gate: Gate | str | Path | None = None,
        calibrator: PostHocCalibrator | str | Path | None = None,
        batch_size: int = 8,
        revision: str = "main",
        **loading,
    ) -> SelectiveAnswerer:
        """
        Load a model with its tokenizer, gate and calibrator.

        Args:
            pretrained_model_name_or_path (`str` or `Path`):
                A local folder or a name on the Hub, of a model or of a PEFT adapter.
            gate ([`~hf_calib.Gate`], `str` or `Path`, *optional*):
                The gate, or its file. Defaults to the gate.json that was published with the model.
            calibrator ([`~hf_calib.PostHocCalibrator`], `str` or `Path`, *optional*):
                Calibrator of the gate, or its folder. Defaults to the one that was published with the model, if the
                gate is of calibrated predictions.
            batch_size (`int`, *optional*, defaults to `8`):
                Longest questions in a forward pass; of shorter ones more.
            revision (`str`, *optional*, defaults to `"main"`):
                Branch, tag or commit on the Hub.
            loading:
                Further options of [`~hf_calib.inference.model_loading.load_model`], e.g. `dtype`.

        Raises:
            `OSError`: there is no such model, no gate, or no calibrator where the gate needs one.
            `ValueError`: see [`SelectiveAnswerer`].
        """
        name = str(pretrained_model_name_or_path)
        gate = usable_gate(load_gate(name, revision) if gate is None else gate)
        if calibrator is None and (method := gate.fingerprint.get("calibrator")):
            try:
                calibrator = load_calibrator(name, revision)
            except OSError as error:
                raise OSError(
                    f"the gate is of predictions with the calibrator {method}, and {name} has none ({error}): name "
                    "its folder (calibrator=..., --calibrator)."
                ) from error
        model, tokenizer = load_model(name, revision=revision, **loading)
        return cls(model, tokenizer, gate, calibrator, batch_size=batch_size)

    def __call__(self, questions: Dataset | Sequence[Mapping[str, Any]], **options) -> list[SelectiveAnswer]:
        """
        Answer questions, or abstain.

        Args:
            questions (`Dataset` or a list of `dict`):
                Questions with `question` and `choices`, optionally `id` and `subject`, or in any layout that
                [`~hf_calib.load_questions`] knows. Answers are ignored.
            options:
                Fields of [`~hf_calib.PredictionOptions`], e.g. `batch_size`.

        Returns:
            `list`: a [`~hf_calib.evaluation.selective_answers.SelectiveAnswer`] for each question, in their order.

        Raises:
            `ValueError`: a question is malformed, too long, or lacks the subject that the gate or calibrator needs.
        """
        if not isinstance(questions, Dataset):
            if isinstance(questions, (str, Mapping)):
                raise TypeError(f"give a list of questions, not a {type(questions).__name__}")
            if not (questions := list(questions)):
                return []
            names = dict.fromkeys(name for question in questions for name in question)
            questions = Dataset.from_dict({name: [question.get(name) for question in questions] for name in names})
        questions = adapt_questions(questions, source="the questions", labelled=False)
        return selective_answers(self.gate, questions, self.predict(questions, **{"progress": False, **options}))

    def predict(self, questions: Dataset, **options) -> OptionPredictions:
        """
        Compute the calibrated predictions behind the answers.

        Args:
            questions (`Dataset`):
                Questions in the unified columns.
            options:
                Fields of [`~hf_calib.PredictionOptions`]. With `output_path` an interrupted run resumes, and the file
                finally holds the calibrated predictions.

        Raises:
            `ValueError`: see [`SelectiveAnswerer.__call__`]; and if `output_path` holds predictions of another model,
                other questions or another calibrator.
        """
        self.check_subjects(questions)
        if self.gate.by_subject and (names := unknown_subjects(self.gate, questions["subject"][:])):
            shown = f"{', '.join(map(repr, names[:5]))}{', ...' if len(names) > 5 else ''}"
            logger.warning(f"no threshold in the gate for questions of {shown}: they are not answered")
        found = predict_options(
            self.model,
            self.tokenizer,
            questions,
            prompt_format=self.prompt_format,
            option_normalization=self.option_normalization,
            labelled=None not in questions["answer"][:],
            **{"batch_size": self.batch_size, **options},
        )
        path, applied = options.get("output_path"), found.metadata.get("calibrator_digest")
        wanted = None if self.calibrator is None else self.calibrator.digest
        if applied is not None and applied != wanted:
            raise ValueError(
                f"{path} holds predictions with another calibrator ({found.metadata['calibrator']}); choose another "
                "path, or overwrite it with resume=False (`--no_resume`)"
            )
        if applied == wanted:
            return found
        found = found.recalibrated(self.calibrator)
        if path is not None:
            if process_state().is_main_process:
                found.save(path)
            process_state().wait_for_everyone()
        return found

    def fitting(self, questions: Dataset, max_length: int | None = None) -> Dataset:
        """Leave out questions longer than `max_length`, or than the context of the model, and log their number."""
        encoder = OptionEncoder(self.tokenizer, self.prompt_format, max_length or context_length(self.model))
        kept, _ = encode_fitting(encoder, questions, drop_too_long=True)
        return questions.select(kept)

    def check_subjects(self, questions: Dataset) -> None:
        """Raise a `ValueError` if a question lacks the subject that the gate or the calibrator needs."""
        needed = "gate has a threshold for each subject" if self.gate.by_subject else None
        if self.calibrator is not None and self.calibrator.grouped:
            needed = needed or "calibrator depends on the subject"
        subjects = questions["subject"][:] if "subject" in questions.column_names else [None] * len(questions)
        if needed and None in subjects:
            raise ValueError(
                f"question {questions[subjects.index(None)]['id']!r} has no subject, and the {needed}: add the column "
                "subject."
            )
