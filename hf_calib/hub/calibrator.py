"""Post-hoc calibrators from the Hub."""

from __future__ import annotations

from pathlib import Path

from ..posthoc import PostHocCalibrator
from .publish import CALIBRATOR
from .repository import HubError, download


def load_calibrator(repo_id_or_path: str | Path, revision: str | None = None) -> PostHocCalibrator:
    """
    The post-hoc calibrator that was published with a model, or saved in a folder.

    Args:
        repo_id_or_path (`str` or `Path`):
            A model on the Hub that has one, the folder of such a model, or that of a calibrator.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.

    Returns:
        [`PostHocCalibrator`]: of the kind that was saved, to `transform` option logits with.

    Raises:
        `OSError`: there is no such repository, or no calibrator in it. Nothing but two files of a fixed name (JSON and
            safetensors) is fetched.

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
