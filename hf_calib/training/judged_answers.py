"""Short-answer questions of `hf-calib restore`: they become option questions about the model's own answers."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from datasets import Dataset

from ..data.prompts import ANSWER_TEMPLATE, PromptFormat
from ..data.short_answers import holds_short_answers, load_short_questions
from ..inference.answer_confidence import predict_answers
from ..inference.model_loading import load_model, process_state
from .restore_data import Records
from .restore_options import RestoreOptions


logger = logging.getLogger(__name__)


def with_judged_answers(
    options: RestoreOptions, records: Mapping[str, Records]
) -> tuple[RestoreOptions, dict[str, Records]]:
    """
    Replace questions without options by the question whether the model's answer to them is right.

    The aligned model writes its answers to `output_dir/answers/`, where a second run finds them. Those to `dataset`
    and `test` are graded by exact match after normalisation; those to `unlabelled` are not graded. For another grader
    or prompt, `hf-calib evaluate` writes such questions to `p_true/questions.parquet`.

    Args:
        options ([`~hf_calib.training.restore_options.RestoreOptions`]):
            Options with questions of any kind.
        records (`Mapping`):
            Their rows, from [`~hf_calib.training.restore_data.load_restore_records`].

    Returns:
        `tuple`: options with option questions alone, to which their limits are applied, and the rows of these; without
        a given scoring, letters are scored.

    Raises:
        `ValueError`: if all answers to `dataset` are right, or all are wrong (for `test` it is a warning); or if
            columns are named, and some questions have options and others have none.
    """
    short = []
    for name, rows in records.items():
        # Questions alone are of the kind of the labelled ones.
        needs_answers = name != "unlabelled" or "dataset" not in short
        if holds_short_answers(rows, options.columns, needs_answers):
            short.append(name)
    if not short:
        return options, dict(records)
    with_options = [name for name in records if name not in short]
    if with_options and (options.columns or options.answers_from is not None):
        raise ValueError(
            f"--columns and --answers_from would be of {' and '.join([*short, *with_options])}, of which "
            f"{' and '.join(with_options)} {'has' if len(with_options) == 1 else 'have'} options and the rest none: "
            "name the columns in the files as hf-calib does."
        )
    dtype = "float32" if options.dtype == "auto" and not torch.accelerator.is_available() else options.dtype
    model, tokenizer = load_model(
        options.model, dtype, options.attn_implementation, options.revision, options.trust_remote_code
    )
    changes = {"scoring": options.scoring or "letter", "columns": None, "answers_from": None}
    judged = dict(records)
    for name in short:
        limit = "limit" if name == "dataset" else f"{name}_limit"
        reading = {"drop_invalid": options.drop_invalid, "labelled": name != "unlabelled", **options.reading}
        drawing = {"limit": getattr(options, limit), "seed": options.seed, "records": records[name]}
        questions = load_short_questions(getattr(options, name), **drawing, **reading)
        changes[limit] = None  # applied
        changes[name], judged[name] = _judge(options, name, (model, tokenizer), questions)
    del model
    gc.collect()
    return replace(options, **changes), judged


def _judge(options: RestoreOptions, name: str, loaded: tuple, questions: Dataset) -> tuple[str, Dataset]:
    """Write answers to the questions; returns option questions about them, and their file."""
    labelled = name != "unlabelled"
    folder, state = Path(options.output_dir) / "answers" / name, process_state()
    found = predict_answers(
        *loaded,
        questions,
        confidences=("likelihood",),
        prompt_format=PromptFormat("text", ANSWER_TEMPLATE, options.use_chat_template, options.system_prompt),
        batch_size=options.batch_size,
        max_length=options.max_length,
        drop_too_long=options.drop_too_long,
        output_dir=folder,
        resume=not options.no_resume,
        labelled=labelled,
    )
    if state.is_main_process:
        print(f"{name}: {found.summary()}", flush=True)
        found.judgements.to_parquet(folder / "questions.parquet")
    state.wait_for_everyone()
    if labelled and len(set(found.correct)) == 1:
        which = "right" if found.correct[0] else "wrong"
        message = f"all {len(found.correct)} answers to {getattr(options, name)} are {which}"
        if name == "dataset":
            advice = "" if found.correct[0] else " Questions with options need the column choices."
            raise ValueError(f"{message}: there is nothing to learn from.{advice}")
        logger.warning(f"{message}: measures that need both kinds are undefined")
    return str(folder / "questions.parquet"), found.judgements
