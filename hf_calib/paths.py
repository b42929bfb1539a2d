"""Paths of the recipes and of the metric, in a clone and in an installed wheel."""

from pathlib import Path


def _root(folder: str) -> Path:
    """Folder inside `hf_calib/` in a wheel, beside it in a clone."""
    package = Path(__file__).resolve().parent
    return package / folder if (package / folder).is_dir() else package.parent / folder


def recipe_path(name: str = "") -> Path:
    """
    Return the path of a recipe.

    Args:
        name (`str`, *optional*, defaults to `""`):
            File or folder below `recipes/`, e.g. `"train.py"` or `"accelerate_configs/ddp.yaml"`. By default
            the folder of all recipes.

    Returns:
        `Path`: an absolute path that exists.

    Raises:
        FileNotFoundError: There is no such recipe. The message lists the existing ones.

    Examples:
        >>> from hf_calib import recipe_path
        >>> recipe_path("train.py").name
        'train.py'
    """
    root = _root("recipes")
    path = root / name
    if not path.exists():
        known = sorted(file.relative_to(root).as_posix() for file in root.rglob("*.yaml"))
        raise FileNotFoundError(f"No recipe {name!r} in {root}; the recipes are {', '.join(known) or 'none'}")
    return path


def metric_path() -> str:
    """
    Return the folder of the metric `ece_regime`, for `evaluate.load`.

    Returns:
        `str`: an absolute path.

    Examples:
        >>> import evaluate
        >>> import hf_calib
        >>> evaluate.load(hf_calib.metric_path()).name
        'ece_regime'
    """
    return str(_root("metrics") / "ece_regime")
