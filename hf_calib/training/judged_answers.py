"""Short-answer questions of `hf-calib restore`: they become option questions about the model's own answers."""

from __future__ import annotations

import gc
import logging
from dataclasses import replace
from pathlib import Path

import torch

from ..data.prompts import ANSWER_TEMPLATE, PromptFormat
from ..data.short_answers import holds_short_answers, load_short_questions
from ..evaluation.protocol import is_hub_id
from ..inference.answer_confidence import predict_answers
from ..inference.model_loading import load_model, process_state
from .restore_options import RestoreOptions


logger = logging.getLogger(__name__)

# Which split of each data set is read, and whether its accepted texts are.
_DATA = {"dataset": (None, True), "test": ("test", True), "unlabelled": ("train", False)}


def with_judged_answers(options: RestoreOptions) -> RestoreOptions:
    """
    Replace questions without options by the question whether the model's answer to them is right.

    The aligned model writes its answers to `output_dir/answers/`, where a second run finds them. Those to `dataset`
    and `test` are graded by exact match after normalisation; those to `unlabelled` are not graded. For another grader
    or prompt, `hf-calib evaluate` writes such questions to `p_true/questions.parquet`.

    Args:
        options ([`~hf_calib.training.restore_options.RestoreOptions`]):
            Options with questions of any kind.

    Returns:
        [`~hf_calib.training.restore_options.RestoreOptions`]: options with option questions alone, to which their
        limits are applied; without a given scoring, letters are scored.

    Raises:
        `ValueError`: if all answers to `dataset` are right, or all are wrong (for `test` it is a warning); or if
            columns are named, and some questions have options and others have none.
    """
    short = {}
    for name, (split, labelled) in _DATA.items():
        path = getattr(options, name)
        config = options.dataset_config if path and is_hub_id(path) else None
        # Questions alone are of the kind of the labelled ones.
        needs_answers = labelled or "dataset" not in short
        if path and holds_short_answers(path, config, split or options.split, options.columns, needs_answers):
            short[name] = (path, config, split or options.split, labelled)
    if not short:
        return options
    with_options = [name for name in _DATA if getattr(options, name) and name not in short]
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
    for name, (path, config, split, labelled) in short.items():
        limit = "limit" if name == "dataset" else f"{name}_limit"
        reading = {"drop_invalid": options.drop_invalid, "labelled": labelled, **options.reading}
        questions = load_short_questions(path, config, split, getattr(options, limit), options.seed, **reading)
        changes[limit] = None  # applied
        changes[name] = _judge(options, name, (model, tokenizer), questions, labelled)
    del model
    gc.collect()
    return replace(options, **changes)


def _judge(options: RestoreOptions, name: str, loaded: tuple, questions, labelled: bool) -> str:
    """Write answers to the questions; returns the file of option questions about them."""
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
    return str(folder / "questions.parquet")
