"""Where the files that travel with the package are, in a clone and in an installed wheel alike."""

from pathlib import Path


def recipe_path(name: str = "") -> Path:
    """
    Path of a recipe, wherever hf_calib is installed.

    A clone keeps its recipes in `recipes/`; a wheel carries the same files as `hf_calib/recipes/`.

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
    package = Path(__file__).resolve().parent
    root = package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"
    path = root / name
    if not path.exists():
        known = sorted(file.relative_to(root).as_posix() for file in root.rglob("*.yaml"))
        raise FileNotFoundError(f"no recipe {name!r} in {root}; there are: {', '.join(known) or 'none'}")
    return path
