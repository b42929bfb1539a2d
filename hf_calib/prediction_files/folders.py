"""Folders of prediction files: which of them are read, and whether they are of one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from .options import ReadOptions


FILE_TYPES = (".npz", ".parquet", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".eval", ".gz")


def prediction_files(
    folder: Path, options: ReadOptions, detect: Callable[[Path], str]
) -> tuple[list[Path], list[Path]]:
    """
    Find the files of a folder, and of the folders in it, that hold predictions.

    Args:
        folder (`Path`):
            The folder.
        options ([`ReadOptions`]):
            `format` chooses among several formats; `labels` are no predictions.
        detect (`Callable`):
            Names the format of a file; raises `ValueError` if it has none.

    Returns:
        `tuple[list[Path], list[Path]]`: the files of one format, and the others.

    Raises:
        `ValueError`: there are no predictions, or they have several formats.
    """
    found: dict[str, list[Path]] = {}
    ignored = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or path.suffix.lower() not in FILE_TYPES or not path.is_file():
            continue
        if options.labels and path.samefile(options.labels):
            continue
        try:
            found.setdefault(detect(path), []).append(path)
        except ValueError:
            ignored.append(path)
    if options.format:
        ignored += [path for name, paths in found.items() if name != options.format for path in paths]
        found = {name: paths for name, paths in found.items() if name == options.format}
    if len(found) == 1:
        return found.popitem()[1], ignored
    if found:
        named = "; ".join(f"{name}: {listed(paths, folder)}" for name, paths in found.items())
        raise ValueError(
            f"{folder}: the folder holds files of several formats ({named}). Name files, or choose with --format"
        )
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    raise ValueError(
        f"{folder}: the folder holds no predictions of a known format; its files: {listed(ignored, folder)}; its "
        f"folders: {listed(inside, folder)}"
    )


def check_one_run(folder: Path, paths: Sequence[Path], parts: Sequence) -> None:
    """
    Check that the files of a folder are of one model, and each of another task.

    Args:
        folder (`Path`):
            The folder.
        paths (`Sequence[Path]`), parts (`Sequence`):
            Its files, and the predictions in them, whose metadata name `model` and `task` where these are known.

    Raises:
        `ValueError`: there are several models, or several runs of one task, which are named.
    """
    models: dict[str | None, Path] = {}
    for path, part in zip(paths, parts, strict=True):
        models.setdefault(part.metadata.get("model"), path)
    if len(models) > 1:
        named = [
            f"{model or 'a model that is not named'} ({listed([path], folder)})" for model, path in models.items()
        ]
        raise ValueError(f"{folder}: the folder holds predictions of {listed(named)}; name the folder or files of one")
    places = list(dict.fromkeys(path.parent for path in paths))
    if None in models and len(places) > 1:
        raise ValueError(
            f"{folder}: the predictions are in several folders ({listed(places, folder)}), and whether they are of "
            "one model is not known: name one of them, or the files"
        )
    tasks = [part.metadata.get("task") for part in parts]
    same = [path for path, task in zip(paths, tasks, strict=True) if task and tasks.count(task) > 1]
    if same:
        raise ValueError(
            f"{folder}: several files are of the same task ({listed(same, folder)}); name those to read, or the "
            "folder of one run"
        )


def listed(items: Sequence[str | Path], folder: Path | None = None) -> str:
    """Names of the first items, relative to a folder, and the number of the others."""
    names = [
        item if isinstance(item, str) else str(item.relative_to(folder) if item != folder else item.name)
        for item in items
    ]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more if names else "none"
