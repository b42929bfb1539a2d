"""Gates that are published with a model."""

from __future__ import annotations

from pathlib import Path

from ..evaluation.gate import FILE, Gate
from ..evaluation.protocol import is_hub_id
from .repository import HubError, download


def load_gate(repo_id_or_path: str | Path, revision: str | None = None) -> Gate:
    """
    Load a gate: a gate.json, that of a folder, or the one that was published with a model.

    Args:
        repo_id_or_path (`str` or `Path`):
            The file, its folder, the folder of a model, or a model on the Hub.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.

    Raises:
        `OSError`: there is no gate.
        `ValueError`: the file is no gate.
    """
    path = Path(repo_id_or_path).expanduser()
    if path.is_file():
        return Gate.load(path)
    name = str(repo_id_or_path)
    if not path.is_dir():
        if not is_hub_id(name):
            raise FileNotFoundError(f"there is no gate {name}.")
        try:
            path = download(name, [FILE], revision)
        except HubError as error:
            raise HubError(f"there is no file or folder {name}; on the Hub: {error}") from error
    if not (path / FILE).is_file():
        raise FileNotFoundError(
            f"{name} has no {FILE}: make one with `hf-calib threshold` and name it (gate=..., --gate); `hf-calib push "
            "--gate` publishes it with a model."
        )
    return Gate.load(path)
