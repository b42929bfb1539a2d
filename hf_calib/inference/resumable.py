"""Score encoded questions in batches, on all processes, and save the scores so that an interrupted run resumes."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from tqdm.auto import tqdm

from .option_scorer import OptionScorer, pad_rows
from .predictions import OptionPredictions, open_npz, save_npz


logger = logging.getLogger(__name__)

# Seconds of work that a killed process may lose.
SAVE_INTERVAL = 10.0


def remove_unfinished_line(path: Path) -> None:
    """Remove what follows the last line break of a file: a line that a killed process did not finish."""
    with open(path, "r+b") as file:
        # In bytes: the line may end inside a character.
        file.truncate(file.read().rfind(b"\n") + 1)


def write_whole(path: Path, text: str) -> None:
    """Write a text to a temporary file and rename it, so that a full disk or a kill leaves no part of it."""
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def check_fingerprint(found: Mapping[str, str], wanted: Mapping[str, str], what: str) -> None:
    """Raise a `ValueError` if saved work (`what`: "x.npz holds predictions") has another fingerprint than wanted."""
    if differing := [name for name in wanted if found.get(name) != wanted[name]]:
        raise ValueError(
            f"{what} with other {' and '.join(differing)}; choose another output folder, or overwrite it with "
            "resume=False (`--no_resume`)"
        )


class ResumableScores:
    """
    Scores by index of the question, shared by all processes and saved while the work goes on.

    The folder `<path>.partial` holds a fingerprint of the work and one file for each group of scored questions. A file
    is written under another name and then renamed, so each file is complete. When the work is finished, the folder is
    replaced by one `.npz` file.

    Args:
        path (`Path`, *optional*):
            The final `.npz` file. Without it nothing is written.
        fingerprint (`dict[str, str]`):
            Digests of weights, questions, prompts, ...: scores are only reused if all of them are equal.
        resume (`bool`):
            Whether to reuse the scores at `path`, finished or not. `False` overwrites them.
        state ([`~accelerate.PartialState`]):
            The processes.

    Attributes:
        done (`dict[int, np.ndarray]`): Scores of earlier runs, by index of the question.
        finished ([`OptionPredictions`] or `None`): The final predictions, if an earlier run finished.

    Raises:
        `ValueError`: if the scores at `path` have another fingerprint.
        `OSError`: if the folder cannot be written.
    """

    def __init__(self, path: Path | None, fingerprint: dict[str, str], resume: bool, state: PartialState):
        self.path, self.state = path, state
        self.done: dict[int, np.ndarray] = {}
        self.finished: OptionPredictions | None = None
        self._own: dict[int, np.ndarray] = {}
        self._unsaved: list[int] = []
        self._saved_at = time.monotonic()
        if path is None:
            return
        self.folder = path.with_name(f"{path.name}.partial")
        # What the main process finds, for all: they share the work that is left, and may not see the same files.
        found = [self._found(fingerprint, resume) if state.is_main_process else None]
        if state.num_processes > 1:
            broadcast_object_list(found)
        self.finished, self.done = found[0]
        if self.done and state.is_main_process:
            logger.info(f"{self.folder}: resuming after {len(self.done)} questions")

    def _found(
        self, fingerprint: dict[str, str], resume: bool
    ) -> tuple[OptionPredictions | None, dict[int, np.ndarray]]:
        """Final predictions of an earlier run, or the scores of one that was interrupted."""
        if resume and self.path.exists():
            predictions = OptionPredictions.load(self.path)
            check_fingerprint(
                predictions.metadata.get("fingerprint", {}), fingerprint, f"{self.path} holds predictions"
            )
            return predictions, {}
        self._prepare(fingerprint, resume)
        done = {}
        for shard in sorted(self.folder.glob("*.npz")):
            with open_npz(shard) as arrays:
                for index, row in zip(arrays["index"], arrays["option_logits"], strict=True):
                    done[int(index)] = row[np.isfinite(row)]
        return None, done

    def _prepare(self, fingerprint: dict[str, str], resume: bool) -> None:
        record = self.folder / "fingerprint.json"
        try:
            if resume and record.exists():
                check_fingerprint(json.loads(record.read_text()), fingerprint, f"{self.folder} holds predictions")
                return
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            write_whole(record, json.dumps(fingerprint))
        except OSError as error:
            raise type(error)(
                error.errno,
                f"{error.strerror}: predictions cannot be written; choose another output_path",
                str(self.path),
            ) from error

    def add(self, indices: Sequence[int], rows: Sequence[np.ndarray]) -> None:
        """Add scores `(num_options,)` of the questions at these indices; they are saved every few seconds."""
        self._own.update(zip(indices, rows, strict=True))
        self._unsaved += indices
        if time.monotonic() - self._saved_at >= SAVE_INTERVAL:
            self.flush()

    def flush(self) -> None:
        """Save the scores that are not saved yet."""
        if self.path is not None and self._unsaved:
            rows = [self._own[index] for index in self._unsaved]
            arrays = {"index": np.array(self._unsaved), "option_logits": pad_rows(rows, max(map(len, rows)), -np.inf)}
            # Each question is scored once, so its index makes a unique name.
            save_npz(self.folder / f"{self._unsaved[0]:08d}.npz", arrays)
        self._unsaved = []
        self._saved_at = time.monotonic()

    def gather(self) -> list[np.ndarray]:
        """Collect the scores of all processes and of earlier runs, in the order of the questions."""
        for own in gather_object([self._own]):
            self.done.update(own)
        return [self.done[index] for index in sorted(self.done)]

    def finish(self, predictions: OptionPredictions) -> None:
        """Write the final file and remove the folder of partial scores."""
        if self.path is not None:
            if self.state.is_main_process:
                predictions.save(self.path)
                shutil.rmtree(self.folder)
            self.state.wait_for_everyone()


def score_features(
    scorer: OptionScorer,
    features: Sequence[Mapping[str, Any]],
    batch_size: int,
    results: ResumableScores,
    unit: str,
    describe: Callable[[int], str],
    progress: bool = True,
) -> None:
    """
    Score this process's share of encoded questions or pairs. Those in `results.done` are skipped.

    Args:
        scorer ([`~hf_calib.inference.option_scorer.OptionScorer`]):
            Scores a batch.
        features (`Sequence[Mapping]`):
            Results of [`~hf_calib.inference.encoding.OptionEncoder.encode`].
        batch_size (`int`):
            Questions in a batch of the longest; see [`make_batches`].
        results ([`ResumableScores`]):
            Receives the scores.
        unit (`str`):
            What is scored, for the progress bar, e.g. `"question"`.
        describe (`Callable`):
            From an index to the subject of an error message, e.g. `"question 'q7' has option logits"`.
        progress (`bool`, *optional*, defaults to `True`):
            Show a progress bar.

    Raises:
        `ValueError`: if a score is not finite; all scores before it are saved. Before the model runs, for a token that
            it has no embedding for.
    """
    state = results.state
    # The batches of an uninterrupted run: rounding depends on the batch, and a resumed run has the same scores.
    whole = make_batches(features, range(len(features)), batch_size)
    pending = [[index for index in batch if index not in results.done] for batch in whole]
    share = [batch for batch in pending if batch][state.process_index :: state.num_processes]
    if share:
        scorer.check_tokens(features)
        scorer.check_branches(features)
        scorer.share_prefix(features)
    hidden = not (progress and state.is_local_main_process)
    try:
        with tqdm(total=sum(map(len, share)), desc=f"Scoring {unit}s", unit=unit, disable=hidden) as bar:
            for batch in share:
                rows = scorer([features[index] for index in batch])
                for index, row in zip(batch, rows, strict=True):
                    if not np.isfinite(row).all():
                        raise ValueError(
                            f"{describe(index)} {row.tolist()}; look for NaN in the weights, or load the model in "
                            "bfloat16 or float32 if it runs in float16"
                        )
                results.add(batch, rows)
                bar.update(len(batch))
    finally:
        results.flush()


def make_batches(features: Sequence[Mapping[str, Any]], pending: Sequence[int], batch_size: int) -> list[list[int]]:
    """
    Group questions of similar length into batches of about equally many tokens, the longest first.

    A batch is closed before its padding exceeds an eighth of it. With the longest first, a lack of memory shows early.

    Args:
        features (`Sequence[Mapping]`):
            Encoded questions, with `input_ids`.
        pending (`Sequence[int]`):
            Indices of the questions to group.
        batch_size (`int`):
            Number of questions in a batch of the longest; shorter ones go together in larger numbers.

    Returns:
        `list[list[int]]`: the indices of each batch.
    """
    lengths = [len(feature["input_ids"]) for feature in features]
    budget, batches, tokens = batch_size * max(lengths, default=0), [], 0
    for index in sorted(pending, key=lambda index: -lengths[index]):
        padded = (len(batches[-1]) + 1) * lengths[batches[-1][0]] if batches else 0
        if not batches or padded > budget or padded > (tokens + lengths[index]) * 8 / 7:
            batches.append([])
            tokens = 0
        batches[-1].append(index)
        tokens += lengths[index]
    return batches
