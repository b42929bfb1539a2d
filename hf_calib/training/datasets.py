"""The data that a recipe names: questions, preference pairs or texts, of one data set or of several mixed."""

from __future__ import annotations

from collections.abc import Sequence

from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase
from trl.data_utils import maybe_extract_prompt

from ..data.adapters import ADAPTERS, find_adapter
from ..data.preference_pairs import PAIR_COLUMNS, drop_invalid_pairs, pairs_from_questions
from ..data.questions import PromptFormat, adapt_questions, load_questions, load_rows


class DataSources:
    """
    Loads the data sets of a recipe.

    A name is a file, a folder, or a data set on the Hub, with its configuration as in `"allenai/ai2_arc:ARC-Easy"`.

    Args:
        seed (`int`):
            Seed of all draws.
        drop_invalid (`bool`):
            Whether to leave out malformed questions and pairs instead of stopping at the first.
    """

    def __init__(self, seed: int, drop_invalid: bool):
        self.seed, self.drop_invalid = seed, drop_invalid

    def questions(self, names: Sequence[str], split: str, limit: int | None = None, labelled: bool = True) -> Dataset:
        """Questions in the unified columns, shuffled; `limit` of them at most."""
        parts = [
            load_questions(name, split=split, drop_invalid=self.drop_invalid, labelled=labelled) for name in names
        ]
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
        Preference pairs in TRL's layout; `limit` of them at most. Option questions become pairs on the way; see
        [`~hf_calib.data.preference_pairs.pairs_from_questions`].
        """
        parts = []
        for name in names:
            rows = load_rows(name, split=split)
            if not {"chosen", "rejected"} & set(rows.column_names):
                if find_adapter(rows.column_names) is None:
                    raise ValueError(
                        f"{name} holds neither preference pairs (columns `chosen`, `rejected`, and perhaps `prompt`) nor "
                        f"option questions (`question`, `choices`, `answer`, or as in "
                        f"{', '.join(kind for kind in ADAPTERS if kind != 'unified')}); its columns are "
                        f"{', '.join(rows.column_names)}."
                    )
                rows = adapt_questions(rows, drop_invalid=self.drop_invalid, source=name)
                rows = pairs_from_questions(rows, tokenizer, prompt_format, self.seed)
            elif self.drop_invalid:
                rows = drop_invalid_pairs(rows, name)
            parts.append(rows)
        mixed = parts[0] if len(parts) == 1 else _mix(names, parts)
        return mixed if limit is None else _draw(mixed.shuffle(seed=self.seed), limit)

    def rows(self, names: Sequence[str], split: str, limit: int | None = None) -> Dataset:
        """Rows as they are; `limit` of them at most, drawn."""
        mixed = concatenate_datasets([load_rows(name, split=split) for name in names])
        return mixed if limit is None else _draw(mixed.shuffle(seed=self.seed), limit)


def _draw(rows: Dataset, limit: int | None) -> Dataset:
    return rows if limit is None else rows.select(range(min(limit, len(rows))))


def _mix(names: Sequence[str], parts: Sequence[Dataset]) -> Dataset:
    """Pairs of several data sets in the columns that all have, provided that all are texts or all are messages."""
    parts = [rows.map(maybe_extract_prompt, desc="Extracting prompts") for rows in parts]
    columns = [column for column in PAIR_COLUMNS if all(column in rows.column_names for rows in parts)]
    layouts = ["texts" if isinstance(rows[0]["chosen"], str) else "messages" for rows in parts]
    if len(set(layouts)) > 1:
        held = ", ".join(f"{name} holds {layout}" for name, layout in zip(names, layouts, strict=True))
        raise ValueError(
            f"Pairs of different layouts cannot be mixed: {held}. Pairs made of option questions are messages with "
            "use_chat_template: true, and texts with false."
        )
    parts = [rows.select_columns(columns) for rows in parts]
    return concatenate_datasets([parts[0], *(rows.cast(parts[0].features) for rows in parts[1:])])
