"""Record of finished stages, from which an interrupted work resumes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ..data.layouts import digest
from ..evaluation.tables import write_json


class StageRecord:
    """
    Runs the stages of a work, and keeps their results in `stages.json`.

    A stage is kept if it was finished with the same inputs and its files are there. Its key is part of the inputs of
    the stages that depend on it. Every process calls the same stages; the main process writes.

    Args:
        folder (`Path`):
            Output folder of the work.
        resume (`bool`):
            Whether to keep stages of an earlier run.
        state ([`~accelerate.PartialState`]):
            The processes.

    Attributes:
        seconds (`dict[str, float]`): Time of each stage, with the time before an interruption.
        keys (`dict[str, str]`): Key of each stage.
    """

    def __init__(self, folder: Path, resume: bool, state: PartialState):
        self.path, self.state = folder / "stages.json", state
        self.seconds: dict[str, float] = {}
        self.keys: dict[str, str] = {}
        self._entries: dict[str, dict[str, Any]] = {}
        if resume and self.path.exists():
            try:
                self._entries = json.loads(self.path.read_text())
            except ValueError as error:
                raise ValueError(f"{self.path} cannot be read ({error}); start over with --no_resume.") from None
        state.wait_for_everyone()  # the main process writes only after all have read

    def run(
        self, name: str, inputs: Any, work: Callable[[bool], dict[str, Any] | None], files: Sequence[Path] = ()
    ) -> dict[str, Any]:
        """
        Run a stage, or take its result from the record.

        Args:
            name (`str`):
                Name of the stage.
            inputs:
                Everything that the result depends on, as JSON can hold it.
            work (`Callable`):
                Does the work. Its argument tells whether an interrupted run had the same inputs. Returns the result,
                as JSON can hold it.
            files (`Sequence[Path]`, *optional*):
                Files that the stage writes.

        Returns:
            `dict`: the result.
        """
        key = digest(json.dumps([name, inputs], sort_keys=True, default=str))
        self.keys[name] = key
        entry = self._entries.get(name, {})
        same = entry.get("key") == key
        if same and entry["finished"] and all(path.exists() for path in files):
            self.seconds[name] = entry["seconds"]
            self.state.print(f"{name}: kept")
            return entry["result"]
        spent = entry.get("seconds", 0.0) if same and not entry["finished"] else 0.0
        unfinished = {"key": key, "finished": False, "seconds": spent}
        self._write(name, unfinished)
        start = time.perf_counter()
        try:
            result = json.loads(json.dumps(work(same) or {}))
        except BaseException:  # also an interruption, after which the work resumes
            if self.state.is_main_process:
                seconds = round(spent + time.perf_counter() - start, 2)
                write_json(self.path, {**self._entries, name: {**unfinished, "seconds": seconds}})
            raise
        seconds = round(spent + time.perf_counter() - start, 2)
        self._write(name, {"key": key, "finished": True, "seconds": seconds, "result": result})
        self.seconds[name] = seconds
        return result

    def _write(self, name: str, entry: dict[str, Any]) -> None:
        self._entries[name] = entry
        if self.state.is_main_process:
            write_json(self.path, self._entries)
        self.state.wait_for_everyone()


def model_identity(name: str | None) -> Any:
    """What tells a model from another: its name, and size and time of the files of a folder."""
    if name is None or not Path(name).is_dir():
        return name
    kinds = (".json", ".safetensors", ".bin")
    files = sorted(path for path in Path(name).iterdir() if path.suffix in kinds)
    return [name, *([path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files)]
