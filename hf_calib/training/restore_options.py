"""Options of `hf-calib restore`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..data.columns import ColumnArguments
from ..data.prompts import PromptArguments


@dataclass(kw_only=True)
class RestoreOptions(PromptArguments, ColumnArguments):
    """
    Options of [`~hf_calib.training.restore.run_restore`] and arguments of `hf-calib restore`.

    A data set is a file, a folder, or a name on the Hub, as `ID`, `ID:CONFIGURATION` or `ID:CONFIGURATION:SPLIT`.

    Args:
        model (`str`):
            The aligned model: a local folder or a name on the Hub.
        dataset (`str`):
            Labelled questions, with options, or with accepted texts (see
            [`~hf_calib.training.judged_answers.with_judged_answers`]).
        output_dir (`str`, *optional*, defaults to `"restored"`):
            Folder of the checkpoint and the report.
        reference (`str`, *optional*):
            The model before alignment. It decides the regime and anchors the training.
        unlabelled (`str`, *optional*):
            Questions to train on without their answers.
        test (`str`, *optional*):
            Labelled questions to test on. By default a third of `dataset`, at most 1,000.
        pairs (`str`, *optional*), prompts (`str`, *optional*), texts (`str`, *optional*):
            Held-out preference pairs, prompts and texts to measure the alignment on; see
            [`~hf_calib.evaluation.alignment.alignment_report`]. At most 1,000 pairs, 32 prompts and 100 texts are
            used, drawn by `seed`. By default no pairs, the chat prompts of the package, and no texts.
        scoring (`str`, *optional*):
            `"letter"` or `"text"`. By default the one by which the model answers better.
        option_normalization, prompt_template, use_chat_template, system_prompt:
            See [`~hf_calib.data.prompts.PromptArguments`].
        budget (`float`, *optional*):
            Minutes that the whole work may take. Epochs and numbers of questions are chosen to fit.
        config (`str`, *optional*):
            Recipe whose arguments override the defaults of the training.
        dataset_config (`str`, *optional*), split (`str`, *optional*, defaults to `"train"`):
            Configuration of the data sets on the Hub, and split of `dataset`. `test` has the split `"test"`,
            `unlabelled` the split `"train"`.
        columns, answers_from:
            How all questions are read; see [`~hf_calib.data.columns.ColumnArguments`].
        limit, test_limit, unlabelled_limit (`int`, *optional*):
            Number of questions of `dataset`, `test` and `unlabelled`, drawn by `seed`. By default all.
        seed (`int`, *optional*, defaults to `0`):
            Seed of all draws.
        drop_invalid (`bool`, *optional*, defaults to `False`):
            Leave out malformed questions.
        no_resume (`bool`, *optional*, defaults to `False`):
            Start over instead of resuming from what `output_dir` holds.
        batch_size, max_length, drop_too_long:
            See [`~hf_calib.inference.run_options.RunOptions`].
        dtype (`str`, *optional*, defaults to `"auto"`):
            Type of the weights. `"auto"`: float32 on CPUs and for full fine-tuning, else as saved.
        attn_implementation, revision, trust_remote_code:
            See [`~hf_calib.inference.model_loading.load_model`].

    Raises:
        `ValueError`: for a value outside its range.
    """

    model: str = field(metadata={"help": "Aligned model: a local folder or a name on the Hub."})
    dataset: str = field(
        metadata={"help": "Labelled questions: a parquet, csv or json(l) file, a folder, or a name on the Hub."}
    )
    output_dir: str = field(default="restored", metadata={"help": "Folder of the checkpoint and the report."})
    reference: str | None = field(
        default=None, metadata={"help": "Model before alignment. It decides the regime and anchors the training."}
    )
    unlabelled: str | None = field(default=None, metadata={"help": "Questions to train on without their answers."})
    test: str | None = field(
        default=None, metadata={"help": "Questions to test on (default: a third of --dataset, at most 1,000)."}
    )
    pairs: str | None = field(
        default=None, metadata={"help": "Held-out preference pairs, to measure how much of the alignment is kept."}
    )
    prompts: str | None = field(
        default=None, metadata={"help": "Prompts for the alignment report (default: chat prompts of the package)."}
    )
    texts: str | None = field(default=None, metadata={"help": "Texts for the perplexity of the alignment report."})
    scoring: str | None = field(
        default=None,
        metadata={
            "help": "Score the options' letters or their texts (default: what the model answers better by).",
            "choices": ["letter", "text"],
        },
    )
    budget: float | None = field(
        default=None,
        metadata={"help": "Minutes that the whole work may take; epochs and questions are chosen to fit."},
    )
    config: str | None = field(
        default=None, metadata={"help": "Recipe (YAML) whose arguments override the defaults of the training."}
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of the data sets on the Hub, where none is named."}
    )
    split: str = field(default="train", metadata={"help": "Split of --dataset. --test has the split test."})
    limit: int | None = field(default=None, metadata={"help": "Number of questions of --dataset (default: all)."})
    test_limit: int | None = field(default=None, metadata={"help": "Number of questions of --test (default: all)."})
    unlabelled_limit: int | None = field(
        default=None, metadata={"help": "Number of questions of --unlabelled (default: all)."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of all random draws."})
    drop_invalid: bool = field(default=False, metadata={"help": "Leave out malformed questions instead of stopping."})
    no_resume: bool = field(
        default=False, metadata={"help": "Start over instead of resuming from what --output_dir holds."}
    )
    batch_size: int = field(default=8, metadata={"help": "Questions per forward pass; more if they are short."})
    max_length: int | None = field(
        default=None, metadata={"help": "Maximum tokens of a question with one option (default: the model's)."}
    )
    drop_too_long: bool = field(default=False, metadata={"help": "Leave out longer questions instead of stopping."})
    dtype: str = field(
        default="auto",
        metadata={
            "help": "Type of the weights. auto: float32 on CPUs and for full fine-tuning, else as saved.",
            "choices": ["auto", "float32", "bfloat16", "float16"],
        },
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "Attention implementation; text scoring needs 'sdpa' or 'eager'."}
    )
    revision: str = field(default="main", metadata={"help": "Revision of the model on the Hub."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code from the models' repositories."})

    def __post_init__(self):
        for name in ("limit", "test_limit", "unlabelled_limit", "batch_size", "max_length"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        for name in ("model", "reference"):
            self._refuse_overwriting(name, "model", "adapter")
        for name in ("dataset", "test", "unlabelled"):
            self._refuse_overwriting(name, "data")
        if self.budget is not None and not self.budget > 0:
            raise ValueError(f"budget must be above 0 minutes, got {self.budget}.")
        for limit, dataset in (("test_limit", "test"), ("unlabelled_limit", "unlabelled")):
            if getattr(self, limit) is not None and getattr(self, dataset) is None:
                raise ValueError(f"{limit} needs {dataset}, the questions to draw from.")

    def _refuse_overwriting(self, name: str, *folders: str) -> None:
        """Raise a `ValueError` if an input is in one of the folders of `output_dir` that are written."""
        if not (given := getattr(self, name)):
            return
        place, output_dir = (Path(path).expanduser().resolve() for path in (given, self.output_dir))
        for folder in (output_dir / each for each in folders):
            if folder in (place, *place.parents):
                raise ValueError(f"{name} {given} is in {folder}, which is overwritten: choose another output_dir.")
