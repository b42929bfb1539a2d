"""Post-hoc calibrators from the Hub."""

from __future__ import annotations

from pathlib import Path

from ..posthoc import PostHocCalibrator
from .publish import CALIBRATOR
from .repository import HubError, download


def load_calibrator(repo_id_or_path: str | Path, revision: str | None = None) -> PostHocCalibrator:
    """
    Load a post-hoc calibrator that was published with a model or saved in a folder.

    Args:
        repo_id_or_path (`str` or `Path`):
            A model on the Hub with a calibrator, the folder of such a model, or the folder of a calibrator.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.

    Returns:
        [`PostHocCalibrator`]: of the saved kind; its `transform` takes option logits.

    Raises:
        `OSError`: the repository does not exist or has no calibrator. Only calibrator.json and calibrator.safetensors
            are downloaded.

    Example:

    ```python
    >>> from hf_calib import load_calibrator
    >>> calibrator = load_calibrator("org/calibrated-model")  # doctest: +SKIP
    >>> calibrator.transform(predictions.option_logits)  # doctest: +SKIP
    ```
    """
    path = Path(repo_id_or_path)
    local = path.is_dir()
    if not local:
        files = [f"{CALIBRATOR}/calibrator.json", f"{CALIBRATOR}/calibrator.safetensors"]
        path = download(str(repo_id_or_path), files, revision)
    inside = path / CALIBRATOR
    if not local and not (inside / "calibrator.json").is_file():
        raise HubError(
            f"{repo_id_or_path} has no calibrator: `hf-calib push --calibrator FOLDER` publishes one with a model."
        )
    return PostHocCalibrator.load(inside if (inside / "calibrator.json").is_file() else path)
