"""Answer questions where the calibrated confidence reaches a threshold with a guarantee, else abstain."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from ..data.adapters import adapt_questions
from ..data.short_answers import short_questions
from ..evaluation.asking import ask, is_served
from ..evaluation.gate import Gate
from ..evaluation.gate_fingerprint import check_fingerprint, model_fingerprint, stated_options
from ..evaluation.selective_answers import SelectiveAnswer, selective_answers, unknown_subjects
from ..inference.answer_confidence import fitting_questions
from ..inference.answer_options import AnswerOptions
from ..inference.encoding import OptionEncoder, encode_fitting
from ..inference.model_loading import load_model, process_state
from ..inference.predict import context_length
from ..inference.written_answers import encode_question
from ..posthoc import PostHocCalibrator
from .calibrator import load_calibrator
from .gate import load_gate, usable_gate


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..inference.predictions import OptionPredictions
    from ..served.client import ServedModel

logger = logging.getLogger(__name__)


class SelectiveAnswerer:
    """
    Model that answers a question if its confidence reaches the threshold of a gate, and abstains otherwise.

    With the probability of the gate's level, the accuracy of the answers is at least its target, for questions of the
    kind that the gate was made with. The questions are asked as those of the gate were: with options, or to be
    answered in free text.

    Args:
        model ([`~transformers.PreTrainedModel`], [`~peft.PeftModel`] or [`~hf_calib.ServedModel`]):
            A causal language model, on the device where it is to run, or a model behind a server.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Its tokenizer. Of a served model only if the gate's predictions were made with one.
        gate ([`~hf_calib.Gate`], `str` or `Path`):
            The gate, or the gate.json that `hf-calib threshold` wrote.
        calibrator ([`~hf_calib.PostHocCalibrator`], `str` or `Path`, *optional*):
            Calibrator of the predictions with which the gate was made, or its folder. Required if there was one.
        batch_size (`int`, *optional*, defaults to `8`):
            Longest questions in a forward pass; of shorter ones more.

    Raises:
        `ValueError`: the gate has no threshold, does not state how questions were asked, or is of another model,
            calibrator or prompt. A served model is another one if its log-probabilities differ.

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
        model: PreTrainedModel | ServedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        gate: Gate | str | Path,
        calibrator: PostHocCalibrator | str | Path | None = None,
        batch_size: int = 8,
    ):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.gate = usable_gate(gate)
        self.calibrator = load_calibrator(calibrator) if isinstance(calibrator, (str, Path)) else calibrator
        self.options = stated_options(self.gate.fingerprint)
        mine = model_fingerprint(model, tokenizer, self.gate.fingerprint, self.calibrator)
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
                [`~hf_calib.load_questions`] knows; without `choices` if the gate is of answers in free text. Known
                answers are ignored.
            options:
                Fields of [`~hf_calib.PredictionOptions`] or [`~hf_calib.AnswerOptions`], e.g. `batch_size`.

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
        adapt = short_questions if self.written else adapt_questions
        questions = adapt(questions, source="the questions", labelled=False)
        return self.answer(questions, **{"progress": False, **options})[0]

    @property
    def written(self) -> bool:
        """Whether questions are answered in free text."""
        return isinstance(self.options, AnswerOptions)

    def predict(self, questions: Dataset, **options) -> OptionPredictions:
        """Compute the calibrated predictions behind the answers; arguments as in [`SelectiveAnswerer.answer`]."""
        return self.answer(questions, **options)[1]

    def answer(self, questions: Dataset, **options) -> tuple[list[SelectiveAnswer], OptionPredictions]:
        """
        Answer questions, or abstain.

        Args:
            questions (`Dataset`):
                Questions of [`~hf_calib.load_questions`], or of [`~hf_calib.load_short_questions`] if the gate is of
                answers in free text. If all have known answers, it is told whether the model's are right, unless a
                function graded those of the gate.
            options:
                Fields of [`~hf_calib.PredictionOptions`] or [`~hf_calib.AnswerOptions`]. With `output_path`, in both
                cases, an interrupted run resumes, and the file finally holds the calibrated predictions. What a model
                wrote is kept in the folder `<output_path>.written`.

        Returns:
            `tuple`: the answers, and the calibrated predictions behind them.

        Raises:
            `ValueError`: see [`SelectiveAnswerer.__call__`]; and if `output_path` holds predictions of another model,
                other questions or another calibrator.
        """
        self.check_subjects(questions)
        if self.gate.by_subject and (names := unknown_subjects(self.gate, questions["subject"][:])):
            shown = f"{', '.join(map(repr, names[:5]))}{', ...' if len(names) > 5 else ''}"
            logger.warning(f"no threshold in the gate for questions of {shown}: they are not answered")
        path = options.get("output_path")
        known = None not in questions["answers" if self.written else "answer"][:]
        options = {"batch_size": self.batch_size, "labelled": known and not self.graded_by, **options}
        if self.written:
            folder = options.pop("output_path", None) and Path(f"{path}.written")
            found = ask(self.model, self.tokenizer, questions, replace(self.options, output_dir=folder, **options))
            found, written = found.predictions[self.options.confidences[0]], found.answers
        else:
            found, written = ask(self.model, self.tokenizer, questions, replace(self.options, **options)), None
        found = self._calibrated(found, path)
        return selective_answers(self.gate, questions, found, written), found

    @property
    def graded_by(self) -> str | None:
        """Function that graded the answers of the gate; `None` for exact match, and for options."""
        return (self.gate.fingerprint.get("answering") or {}).get("grader")

    def _calibrated(self, found: OptionPredictions, path: str | Path | None) -> OptionPredictions:
        """Calibrate predictions, if they are not calibrated, and save them at a path."""
        applied = found.metadata.get("calibrator_digest")
        wanted = None if self.calibrator is None else self.calibrator.digest
        if applied is not None and applied != wanted:
            raise ValueError(
                f"{path} holds predictions with another calibrator ({found.metadata['calibrator']}); choose another "
                "path, or overwrite it with resume=False (`--no_resume`)"
            )
        if applied == wanted and not self.written:
            return found
        found = found if self.calibrator is None else found.recalibrated(self.calibrator)
        if path is not None:
            if process_state().is_main_process:
                found.save(path)
            process_state().wait_for_everyone()
        return found

    def fitting(self, questions: Dataset, max_length: int | None = None) -> Dataset:
        """Leave out questions longer than `max_length`, or than the context of the model, and log their number."""
        if self.tokenizer is None:
            raise ValueError("only the server knows the tokens of a question: leave out drop_too_long.")
        most = max_length if is_served(self.model) else max_length or context_length(self.model)
        if self.written:
            prompt_format, most = self.options.answer_format, most and most - self.options.max_new_tokens
            encode = partial(encode_question, self.tokenizer, prompt_format, most=most)
            return fitting_questions(encode, questions, drop_too_long=True)
        encoder = OptionEncoder(self.tokenizer, self.options.prompt_format, most)
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
