"""Register the metric, so that `evaluate.load("ece_regime")` works in every folder."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..paths import metric_path


NAME = "ece_regime"
_HUB_NAME = f"evaluate-metric/{NAME}"


@dataclass(frozen=True)
class Registration:
    """
    Result of [`resolve`]: what `evaluate.load("ece_regime")` loads.

    Attributes:
        resolves_to (`str`): `"folder"` (a script in the current folder), `"hub"` (a Space of that name),
            `"registered"`, `"cached"` (a script that evaluate has downloaded) or `"nothing"`.
        ours (`bool`): Whether it is the metric of this package.
        path (`str`): File or address from which it is loaded.
        reason (`str`): Explanation in a sentence.
    """

    resolves_to: str
    ours: bool
    path: str
    reason: str


def _cache_folder() -> Path:
    from evaluate import config

    modules = Path(config.HF_MODULES_CACHE) / config.MODULE_NAME_FOR_DYNAMIC_MODULES
    return modules / "metrics" / _HUB_NAME.replace("/", "--")


def register() -> Path:
    """
    Make `evaluate.load("ece_regime")` work from every folder, online and offline.

    `evaluate` searches a bare name in the current folder, then among the Spaces of the Hub, then in its cache of
    modules. This function writes a short script into that cache. The script imports the metric from the installed
    package, so it stays valid when the package is upgraded. A second call changes nothing.

    Returns:
        `Path`: path of the script, below `$HF_MODULES_CACHE` or `$HF_HOME/modules`.

    Raises:
        OSError: The cache is not writable.

    Examples:
        >>> import evaluate
        >>> import hf_calib
        >>> _ = hf_calib.register()
        >>> evaluate.load("ece_regime").name
        'ece_regime'
    """
    content = (Path(metric_path()) / f"{NAME}.py").read_bytes()
    folder = _cache_folder()
    script = folder / hashlib.sha256(content).hexdigest() / f"{NAME}.py"  # evaluate requires 64 characters
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock():
            # evaluate imports the script as a module of nested packages
            for package in (folder, folder.parent, folder.parent.parent):
                package.mkdir(exist_ok=True)
                (package / "__init__.py").touch()
            for stale in {older.parent for older in _scripts() if _is_ours(older) and older != script}:
                shutil.rmtree(stale)
            # a folder without a script hides all others from evaluate, so both appear together
            for broken in _broken_folders():
                shutil.rmtree(broken)
            if not script.is_file():
                with tempfile.TemporaryDirectory(dir=folder) as unfinished:
                    (Path(unfinished) / "new").mkdir()
                    (Path(unfinished) / "new" / "__init__.py").touch()
                    (Path(unfinished) / "new" / script.name).write_bytes(content)
                    (Path(unfinished) / "new").rename(script.parent)
            script.touch()  # evaluate takes the newest script
    except OSError as error:
        raise OSError(
            f"{folder} is not writable ({error.strerror}). Set HF_MODULES_CACHE to a writable folder, here and where "
            "the metric is loaded."
        ) from None
    return script


def unregister() -> list[Path]:
    """
    Undo [`register`].

    Returns:
        `list[Path]`: the removed scripts. Scripts that evaluate has downloaded are kept.
    """
    if not _cache_folder().is_dir():
        return []
    with _lock():
        removed = [script for script in _scripts() if _is_ours(script)]
        for script in removed:
            shutil.rmtree(script.parent)
        if removed and not _scripts():
            shutil.rmtree(_cache_folder())
    return removed


def resolve() -> Registration:
    """
    Find what `evaluate.load("ece_regime")` loads in the current folder, without running it.

    Returns:
        [`Registration`].
    """
    local = Path(NAME) / f"{NAME}.py"
    if local.is_file():
        return Registration(
            "folder", _is_ours(local), str(local.resolve()), "a script in the current folder takes precedence"
        )
    status, address = _ask_hub()
    if status == "there":
        return Registration("hub", False, address, "a Space of the Hub takes precedence over the cache")
    if broken := _broken_folders():
        reason = "a folder without a script hides all others from evaluate; hf-calib register removes it"
        return Registration("nothing", False, str(broken[0]), reason)
    scripts = _scripts()
    if not scripts:
        return Registration(
            "nothing",
            False,
            str(_cache_folder()),
            f"no script is registered, and the Hub {status}; run hf-calib register",
        )
    script, ours = scripts[-1], _is_ours(scripts[-1])
    if not ours:
        return Registration("cached", False, str(script), f"evaluate has downloaded it; the Hub {status}")
    return Registration("registered", True, str(script), f"the Hub {status}, so evaluate loads it from its cache")


def _lock():
    """Lock of evaluate on the folder, against processes that register or unregister at the same time."""
    from filelock import FileLock

    return FileLock(f"{_cache_folder()}.lock")


def _scripts() -> list[Path]:
    """Scripts of that name in the cache, from the oldest to the newest, which evaluate takes."""
    ages = {}
    for script in _cache_folder().glob(f"{64 * '?'}/{NAME}.py"):
        with contextlib.suppress(FileNotFoundError):  # removed by another process
            ages[script] = script.stat().st_mtime
    return sorted(ages, key=ages.__getitem__)


def _broken_folders() -> list[Path]:
    return [folder for folder in _cache_folder().glob(64 * "?") if not (folder / f"{NAME}.py").is_file()]


def _is_ours(script: Path) -> bool:
    try:
        return "from hf_calib.evaluation.ece_regime import ECERegime" in script.read_text(
            encoding="utf-8", errors="replace"
        )
    except FileNotFoundError:
        return False


def _ask_hub() -> tuple[str, str]:
    """Request the script from the Hub as evaluate does. Returns the answer and the address."""
    from evaluate.utils.file_utils import OfflineModeIsEnabled, hf_hub_url, http_head

    address = hf_hub_url(_HUB_NAME, f"{NAME}.py", revision="main")
    try:
        status = http_head(address, timeout=10).status_code
    except OfflineModeIsEnabled:
        return "is not requested (offline)", address
    except OSError as error:  # no connection; includes the network errors of requests
        return f"is not reachable ({type(error).__name__})", address
    if status < 300:
        return "there", address
    return ("has no such metric" if status in (401, 404) else f"answers {status}"), address
