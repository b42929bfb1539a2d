"""Where the files that travel with the package are, in a clone and in an installed wheel alike."""

from pathlib import Path


def _root(folder: str) -> Path:
    """A clone keeps `recipes/` and `metrics/` at its top; a wheel carries the same files inside `hf_calib/`."""
    package = Path(__file__).resolve().parent
    return package / folder if (package / folder).is_dir() else package.parent / folder


def recipe_path(name: str = "") -> Path:
    """
    Path of a recipe, wherever hf_calib is installed.

    Args:
        name (`str`, *optional*, defaults to `""`):
            File or folder below `recipes/`, e.g. `"train.py"` or `"accelerate_configs/ddp.yaml"`. The folder of all
            recipes by default.

    Returns:
        `Path`: An absolute path that exists.

    Raises:
        FileNotFoundError: There is no such recipe. The message lists the ones there are.

    Examples:
        >>> from hf_calib import recipe_path
        >>> recipe_path("train.py").name
        'train.py'
    """
    root = _root("recipes")
    path = root / name
    if not path.exists():
        known = sorted(file.relative_to(root).as_posix() for file in root.rglob("*.yaml"))
        raise FileNotFoundError(f"no recipe {name!r} in {root}; there are: {', '.join(known) or 'none'}")
    return path


def metric_path() -> str:
    """
    Folder of the metric `ece_regime`, wherever hf_calib is installed, in the form that `evaluate.load` takes.

    Returns:
        `str`: An absolute path.

    Examples:
        >>> import evaluate
        >>> import hf_calib
        >>> evaluate.load(hf_calib.metric_path()).name
        'ece_regime'
    """
    return str(_root("metrics") / "ece_regime")
