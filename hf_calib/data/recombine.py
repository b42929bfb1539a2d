"""More questions without answers: known questions with options of other questions."""

from __future__ import annotations

import numpy as np
from datasets import Dataset


def recombine_options(questions: Dataset, num_questions: int, seed: int = 0) -> Dataset:
    """
    Draw questions, and give each as many options as it has from all questions of its subject.

    The result has no right answers. It serves where a model is to keep to the option probabilities of another one,
    which can be computed for any options, and there are few questions.

    Args:
        questions ([`~datasets.Dataset`]):
            Questions in the unified schema; those without a subject share their options with each other.
        num_questions (`int`):
            Number of questions to draw, with replacement.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws.

    Returns:
        [`~datasets.Dataset`] with the columns `id`, `question`, `choices`, `answer` (`None`) and `subject`.
    """
    rng = np.random.default_rng([seed, num_questions])
    subjects = questions["subject"] if "subject" in questions.column_names else [None] * len(questions)
    pools = {}
    for subject, choices in zip(subjects, questions["choices"], strict=True):
        pools.setdefault(subject, {}).update(dict.fromkeys(choices))
    pools = {subject: list(pool) for subject, pool in pools.items()}
    texts, counts = questions["question"], [len(choices) for choices in questions["choices"]]
    rows = rng.integers(len(questions), size=num_questions).tolist()
    choices = [rng.choice(len(pools[subjects[row]]), counts[row], replace=False) for row in rows]
    return Dataset.from_dict(
        {
            "id": [f"recombined-{number}" for number in range(num_questions)],
            "question": [texts[row] for row in rows],
            "choices": [[pools[subjects[row]][i] for i in drawn] for row, drawn in zip(rows, choices, strict=True)],
            "answer": [None] * num_questions,
            "subject": [subjects[row] for row in rows],
        }
    )
