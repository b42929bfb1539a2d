"""Loading of the data sets that a recipe names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig, SFTConfig, maybe_extract_prompt

from ..data.files import load_records
from ..data.layouts import ADAPTERS, find_adapter
from ..data.preference_pairs import PAIR_COLUMNS, drop_invalid_pairs, pairs_from_questions
from ..data.questions import PromptFormat, adapt_questions, load_questions
from ..data.training_rows import load_training_rows, training_rows
from ..inference.encoding import OptionEncoder
from ..trainers.data import TEXT_COLUMNS
from ..trainers.dpo_trainer import CalibratedDPOTrainer
from ..trainers.sft_trainer import CalibratedSFTTrainer
from .arguments import TRAINERS, TrainArguments


def load_datasets(
    script_args: TrainArguments, training_args: SFTConfig | DPOConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, Dataset], Dataset | None]:
    """
    Load all data sets of a recipe.

    Args:
        script_args ([`~hf_calib.training.arguments.TrainArguments`]):
            Names, splits and limits. `dataset_name` is completed by `dataset_config`.
        training_args ([`~trl.SFTConfig`] or [`~trl.DPOConfig`]):
            Training arguments, with prompt arguments.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer, for pairs made of questions.

    Returns:
        `tuple[dict[str, Dataset], Dataset | None]`: data sets by argument of the trainer, and the questions of
        [`~hf_calib.trainers.callbacks.CollapseCallback`].

    Raises:
        `ValueError`, `OSError`: for a name, a row or a combination that is wrong.
    """
    _, trainer_class, kind = TRAINERS[script_args.trainer]
    seed = training_args.seed if training_args.data_seed is None else training_args.data_seed
    sources = DataSources(seed, drop_invalid=script_args.drop_invalid, **script_args.reading)
    train_split, test_split = script_args.dataset_train_split, script_args.dataset_test_split
    if config := script_args.dataset_config:
        names = script_args.dataset_name
        # The configuration is that of the data sets on the Hub which are named without one.
        names = [name if ":" in name or Path(name).exists() else f"{name}:{config}" for name in names]
        script_args.dataset_name = names

    def load(names: list[str], split: str, limit: int | None) -> Dataset:
        if kind == "pairs":
            return sources.pairs(names, split, limit, tokenizer, training_args.prompt_format())
        return getattr(sources, kind)(names, split, limit)

    datasets = {"train_dataset": load(script_args.dataset_name, train_split, script_args.limit)}
    if script_args.text_dataset_name:
        texts = sources.rows(script_args.text_dataset_name, "train")
        if kind == "questions":
            # Other columns, such as ids, may be of another type than those of the questions.
            texts = texts.select_columns([name for name in TEXT_COLUMNS if name in texts.column_names])
        datasets["train_dataset"] = concatenate_datasets([datasets["train_dataset"], texts])
    if names := _evaluation_names(script_args, training_args):
        datasets["eval_dataset"] = load(names, test_split, script_args.eval_limit)
    if names := script_args.unlabelled_dataset_name:
        if not issubclass(trainer_class, CalibratedSFTTrainer):
            raise ValueError(f"unlabelled_dataset_name is for trainer: calibrated_sft, not {script_args.trainer}.")
        limit = script_args.unlabelled_limit
        datasets["unlabelled_dataset"] = sources.questions(names, train_split, limit, labelled=False)
    for name in ("option_dataset", "eval_option_dataset"):
        if names := getattr(script_args, f"{name}_name"):
            if not issubclass(trainer_class, CalibratedDPOTrainer):
                raise ValueError(f"{name}_name is for trainer: calibrated_dpo, not {script_args.trainer}.")
            evaluates = name.startswith("eval")
            if evaluates and "eval_dataset" not in datasets:
                raise ValueError(f"{name}_name is evaluated beside pairs: name these with eval_dataset_name.")
            limit = script_args.eval_limit if evaluates else script_args.option_limit
            datasets[name] = sources.questions(names, test_split if evaluates else train_split, limit)
    if not script_args.collapse_dataset_name:
        return datasets, None
    questions = sources.questions(script_args.collapse_dataset_name, test_split, script_args.collapse_limit)
    # Letters that are not single tokens raise an error here, before the model is loaded.
    OptionEncoder(tokenizer, training_args.prompt_format()).encode(questions[0])
    return datasets, questions


def _evaluation_names(script_args: TrainArguments, training_args: SFTConfig | DPOConfig) -> list[str] | None:
    """Data sets to evaluate on; `None` where there is no evaluation."""
    if script_args.eval_dataset_name or training_args.eval_strategy == "no":
        return script_args.eval_dataset_name
    if any(Path(name).is_file() for name in script_args.dataset_name):
        raise ValueError(
            f"eval_strategy={training_args.eval_strategy.value!r} needs evaluation data, but dataset_name is a file, "
            "the training data: name another file with eval_dataset_name."
        )
    return script_args.dataset_name


class DataSources:
    """
    Loads and mixes data sets.

    A name is a file, a folder, or a data set on the Hub, with its configuration after a colon, as in
    `"allenai/ai2_arc:ARC-Easy"`.

    Args:
        seed (`int`):
            Seed of all draws.
        reading:
            How questions are read, and whether to drop malformed ones, and pairs, instead of stopping at the first:
            `drop_invalid`, `columns` and `answers_from` of [`~hf_calib.data.questions.adapt_questions`].
    """

    def __init__(self, seed: int, **reading):
        self.seed, self.reading = seed, reading

    def questions(self, names: Sequence[str], split: str, limit: int | None = None, labelled: bool = True) -> Dataset:
        """Load questions in the unified schema, shuffled; at most `limit`."""
        parts = [load_questions(name, split=split, labelled=labelled, **self.reading) for name in names]
        return _draw(concatenate_datasets(parts).shuffle(seed=self.seed), limit)

    def pairs(
        self,
        names: Sequence[str],
        split: str,
        limit: int | None,
        tokenizer: PreTrainedTokenizerBase,
        prompt_format: PromptFormat,
    ) -> Dataset:
        """
        Load preference pairs in TRL's format; at most `limit`.

        Option questions become pairs; see [`~hf_calib.data.preference_pairs.pairs_from_questions`].
        """
        parts = []
        for name in names:
            records = load_records(name, split=split)
            columns = records.column_names
            if not {"chosen", "rejected"} & set(columns):
                if find_adapter(columns) is None and not self.reading.get("columns"):
                    raise ValueError(
                        f"{name} holds neither preference pairs (columns `chosen`, `rejected`, and perhaps `prompt`) "
                        f"nor option questions (`question`, `choices`, `answer`, or as in "
                        f"{', '.join(kind for kind in ADAPTERS if kind != 'unified')}); its columns are "
                        f"{', '.join(columns)}."
                    )
                rows = adapt_questions(records, source=name, **self.reading)
                rows = pairs_from_questions(rows, tokenizer, prompt_format, self.seed)
            else:
                rows = training_rows(records, name)
                if not len(rows):
                    raise ValueError(f"{name}: there are no pairs, the data set has no rows.")
                rows = drop_invalid_pairs(rows, name) if self.reading.get("drop_invalid") else rows
            parts.append(rows)
        mixed = parts[0] if len(parts) == 1 else _mix(names, parts)
        return mixed if limit is None else _draw(mixed.shuffle(seed=self.seed), limit)

    def rows(self, names: Sequence[str], split: str, limit: int | None = None) -> Dataset:
        """Load rows as they are; at most `limit`, drawn at random."""
        parts = [load_training_rows(name, split=split) for name in names]
        if empty := [name for name, rows in zip(names, parts, strict=True) if not len(rows)]:
            raise ValueError(f"{empty[0]}: the data set has no rows.")
        mixed = concatenate_datasets(parts)
        return mixed if limit is None else _draw(mixed.shuffle(seed=self.seed), limit)


def _draw(rows: Dataset, limit: int | None) -> Dataset:
    return rows if limit is None else rows.select(range(min(limit, len(rows))))


def _mix(names: Sequence[str], parts: Sequence[Dataset]) -> Dataset:
    """Concatenate pairs in their common columns; all must be texts, or all messages."""
    parts = [rows.map(maybe_extract_prompt, desc="Extracting prompts") for rows in parts]
    columns = [column for column in PAIR_COLUMNS if all(column in rows.column_names for rows in parts)]
    formats = ["texts" if isinstance(rows[0]["chosen"], str) else "messages" for rows in parts]
    if len(set(formats)) > 1:
        held = ", ".join(f"{name} holds {layout}" for name, layout in zip(names, formats, strict=True))
        raise ValueError(
            f"Pairs of different formats cannot be mixed: {held}. Pairs made of option questions are messages with "
            "use_chat_template: true, and texts with false."
        )
    parts = [rows.select_columns(columns) for rows in parts]
    return concatenate_datasets([parts[0], *(rows.cast(parts[0].features) for rows in parts[1:])])
