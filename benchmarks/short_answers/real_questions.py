"""Option questions with their options taken away, for the benchmark of short answers."""

import re
from pathlib import Path

from datasets import Dataset

from hf_calib import PromptFormat, load_questions
from hf_calib.data.questions import deduplicate_questions, split_questions
from hf_calib.data.short_answers import short_questions


SETS = {
    "ARC-Easy": ("arc_easy_train.parquet", "arc_easy_test.parquet"),
    "OpenBookQA": ("openbookqa_train.parquet", "openbookqa_test.parquet"),
    "MMLU": ("mmlu_test_half.parquet", None),
}
LABELS, TEST = 100, 200
MOST_WORDS, MOST_CHARACTERS = 2, 200
# Questions and answers that only make sense beside the options.
_OF_OPTIONS = re.compile(
    r"\b(which of|following|these|below|above|except|not|statement \d|(select|choose) the)\b|_", re.IGNORECASE
)
_OPTIONS = re.compile(r"\b(both|all|none|neither|either|above|[IVX]+)\b|^\d(, ?\d)+$")

# A few examples show the form of an answer: SmolLM2 otherwise writes sentences.
TEMPLATE = (
    "Question: What do bees make?\nAnswer: honey\n\n"
    "Question: The capital of Italy is\nAnswer: Rome\n\n"
    "Question: {question}\nAnswer:"
)
ANSWER_FORMAT = PromptFormat("text", TEMPLATE, use_chat_template=False)


def open_questions(path: Path) -> Dataset:
    """Questions of a file that can be answered in one or two words without their options."""
    questions = deduplicate_questions(load_questions(path, drop_invalid=True))

    def is_open(row) -> bool:
        answer = row["choices"][row["answer"]]
        return (
            len(answer.split()) <= MOST_WORDS
            and len(row["question"]) <= MOST_CHARACTERS
            and not _OF_OPTIONS.search(row["question"])
            and not _OPTIONS.search(answer)
        )

    return questions.filter(is_open, desc="Choosing questions")


def load_set(name: str, folder: Path, labels: int = LABELS, test: int = TEST) -> dict[str, Dataset]:
    """Questions to calibrate on (`labels`) and to test on (`test`), without their options."""
    train_file, test_file = SETS[name]
    if test_file is None:
        parts = split_questions(open_questions(folder / train_file), calibration=labels, test=test, seed=0)
        found = {"labels": parts["calibration"], "test": parts["test"]}
    else:
        held_out = open_questions(folder / test_file).shuffle(seed=0)
        given = deduplicate_questions(open_questions(folder / train_file), exclude=held_out).shuffle(seed=0)
        found = {
            "labels": given.select(range(min(labels, len(given)))),
            "test": held_out.select(range(min(test, len(held_out)))),
        }
    return {part: short_questions(questions) for part, questions in found.items()}
