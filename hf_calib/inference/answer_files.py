"""Files of written answers: what a model writes is kept, so that an interrupted run resumes."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object
from tqdm.auto import tqdm

from ..data.layouts import digest
from .model_loading import process_state
from .resumable import check_fingerprint, remove_unfinished_line, write_whole
from .written_answers import AnswerWriter, InterruptedWriting, Sampling, WrittenAnswer


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


def write_answers(
    writer: AnswerWriter,
    questions: Dataset,
    sampling: Sampling,
    path: Path | None = None,
    batch_size: int = 8,
    resume: bool = True,
    progress: bool = True,
) -> list[list[WrittenAnswer]]:
    """
    Write answers to all questions, in batches, shared by all processes.

    Args:
        writer ([`AnswerWriter`]):
            Writes the answers to a batch.
        questions (`Dataset`):
            Questions with `id` and `question`, perhaps `subject`.
        sampling ([`Sampling`]):
            How many answers, and how they are drawn.
        path (`Path`, *optional*):
            `.jsonl` file of the answers, one question a line. Each batch is added as it is written.
        batch_size (`int`, *optional*, defaults to `8`):
            Number of answers in a batch.
        resume (`bool`, *optional*, defaults to `True`):
            Keep the answers at `path` if model, prompts and sampling are the same. A question whose text or subject
            differs is answered again. `False` writes all again.
        progress (`bool`, *optional*, defaults to `True`):
            Show a progress bar.

    Returns:
        `list[list[WrittenAnswer]]`: answers of each question, in the order of the questions.

    Raises:
        `ValueError`: if the answers at `path` are of another model, prompt or sampling, or a log-probability is not
            finite; the answers before it are kept; or if hf-calib did not write the file at `path`.
    """
    state = process_state()
    file = _AnswerFile(path, {**writer.fingerprint, "sampling": repr(sampling)}, questions, resume, state)
    pending = sorted(set(range(len(questions))) - file.done.keys(), key=lambda i: -len(questions[i]["question"]))
    size = max(1, batch_size // sampling.num_samples)
    batches = [pending[first : first + size] for first in range(0, len(pending), size)]
    hidden = not (progress and state.is_local_main_process)
    unit = "answer" if sampling.temperature == 0 else "sample"
    with tqdm(total=len(pending), desc=f"Writing {unit}s", unit="question", disable=hidden) as bar:
        for first in range(0, len(batches), state.num_processes):
            together = batches[first : first + state.num_processes]
            own = together[state.process_index] if state.process_index < len(together) else []
            rows = [questions[index] for index in own]
            # A batch has draws of its own. A resumed run has the same batches.
            seed = int(digest(sampling.seed, *(row["id"] for row in rows))[:8], 16)
            drawn = Sampling(sampling.num_samples, sampling.temperature, seed)
            try:
                written = list(zip(own, writer.write(rows, drawn) if rows else [], strict=True))
            except InterruptedWriting as error:
                file.add([(own[place], answers) for place, answers in error.written.items()])
                raise
            file.add(gather_object(written))
            bar.update(sum(map(len, together)))
    return [file.done[index] for index in range(len(questions))]


class _AnswerFile:
    """Answers by index of the question, and the file that they are added to."""

    def __init__(self, path: Path | None, fingerprint: dict[str, str], questions: Dataset, resume: bool, state):
        self.path, self.questions, self.state = path, questions, state
        self.done: dict[int, list[WrittenAnswer]] = {}
        if path is None:
            return
        if state.is_main_process:
            self._prepare(path.with_suffix(".fingerprint.json"), fingerprint, resume)
        state.wait_for_everyone()
        self._read()
        if self.done and state.is_main_process:
            logger.info(f"{path}: {len(self.done)} questions are answered already")
        state.wait_for_everyone()

    def _prepare(self, record: Path, fingerprint: dict[str, str], resume: bool) -> None:
        if resume and record.exists() and self.path.exists():
            check_fingerprint(json.loads(record.read_text("utf-8")), fingerprint, f"{self.path} holds answers")
            remove_unfinished_line(self.path)
            return
        if resume and not record.exists() and self.path.exists() and self.path.stat().st_size:
            raise ValueError(
                f"{self.path} exists and has no {record.name} beside it, so hf-calib did not write it; choose another "
                "output folder, or overwrite it with resume=False (`--no_resume`)"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("", encoding="utf-8")
        write_whole(record, json.dumps(fingerprint, indent=2) + "\n")

    def _read(self) -> None:
        found = {}
        with open(self.path, encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                found[_key(row)] = [WrittenAnswer(each["text"], tuple(each["log_probs"])) for each in row["written"]]
        self.done = {i: found[key] for i, row in enumerate(self.questions) if (key := _key(row)) in found}

    def add(self, written: Sequence[tuple[int, list[WrittenAnswer]]]) -> None:
        """Add the answers of a batch; raises a `ValueError` for one whose log-probability is not finite."""
        lines, wrong = [], None
        for index, answers in written:
            row = self.questions[index]
            if not all(math.isfinite(value) for answer in answers for value in answer.log_probs):
                wrong = row
                continue
            self.done[index] = answers
            texts = [{"text": answer.text, "log_probs": answer.log_probs} for answer in answers]
            line = {"id": row["id"], "question": row["question"], "subject": row.get("subject"), "written": texts}
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        if self.path is not None and self.state.is_main_process:
            with open(self.path, "a", encoding="utf-8") as file:
                file.writelines(lines)
        if wrong is not None:
            raise ValueError(
                f"the answer to question {wrong['id']!r} has log-probabilities that are not finite; look for NaN in "
                "the weights, or load the model in bfloat16 or float32 if it runs in float16"
            )


def _key(row: Mapping[str, Any]) -> tuple[str, str, str | None]:
    """All that the prompt of a question depends on, beside the format in the fingerprint."""
    return row["id"], row["question"], row.get("subject")
