"""The newest complete checkpoint of a run."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

from accelerate.utils import broadcast_object_list
from transformers.trainer import TRAINER_STATE_NAME

from ..inference.model_loading import process_state


logger = logging.getLogger(__name__)


def last_checkpoint(output_dir: str | Path) -> str | None:
    """
    Find the newest complete checkpoint.

    The trainer writes `trainer_state.json` last: a checkpoint without it was interrupted.

    Args:
        output_dir (`str` or `Path`):
            Folder of the run.
    """
    found = {}
    for path in Path(output_dir).glob("checkpoint-*"):
        if match := re.fullmatch(r"checkpoint-(\d+)", path.name):
            found[int(match[1])] = path
    for step in sorted(found, reverse=True):
        try:
            if json.loads((found[step] / TRAINER_STATE_NAME).read_text())["global_step"] == step:
                return str(found[step])
        except (OSError, ValueError, KeyError):
            pass
        logger.warning(f"{found[step]} is not complete and is skipped: writing it was interrupted.")
    return None


def agreed_checkpoint(output_dir: str | Path) -> str | None:
    """
    Find the newest complete checkpoint on the main process, for all.

    Otherwise a process that does not see the folder would begin anew, beside others that resume. Every process calls
    this; arguments as in [`last_checkpoint`].
    """
    state = process_state()
    found = [last_checkpoint(output_dir) if state.is_main_process else None]
    if state.num_processes > 1:
        broadcast_object_list(found)
    return found[0]
