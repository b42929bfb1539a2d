"""`evaluate.load("ece_regime")` from every folder: put the metric where `evaluate` looks for names it has once loaded."""

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
    What `evaluate.load("ece_regime")` finds, from [`resolve`].

    Attributes:
        resolves_to (`str`): `"folder"` (a script in the current folder), `"hub"` (a Space of that name), `"registered"`,
            `"cached"` (a script that evaluate once downloaded) or `"nothing"`.
        ours (`bool`): Whether that is the metric of this package.
        path (`str`): File or address that it comes from, or would come from.
        reason (`str`): Why, in a sentence.
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

    `evaluate` looks a bare name up in the current folder, then among the Spaces of the Hub, then in its cache of
    modules. A script of a few lines is put into that cache; it imports the metric from the installed package, so it
    need not be renewed when the package is upgraded. Doing it again changes nothing.

    Returns:
        `Path`: of the script, below `$HF_MODULES_CACHE` or `$HF_HOME/modules`.

    Raises:
        OSError: The cache cannot be written to.

    Examples:
        >>> import evaluate
        >>> import hf_calib
        >>> _ = hf_calib.register()
        >>> evaluate.load("ece_regime").name
        'ece_regime'
    """
    content = (Path(metric_path()) / f"{NAME}.py").read_bytes()
    folder = _cache_folder()
    script = folder / hashlib.sha256(content).hexdigest() / f"{NAME}.py"  # evaluate wants 64 characters
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock():
            # packages, down from the folder that evaluate adds to the import path
            for package in (folder, folder.parent, folder.parent.parent):
                package.mkdir(exist_ok=True)
                (package / "__init__.py").touch()
            for stale in {older.parent for older in _scripts() if _is_ours(older) and older != script}:
                shutil.rmtree(stale)
            # One folder without a script hides all the others from evaluate, so ours appears with its script in it.
            for broken in _broken_folders():
                shutil.rmtree(broken)
            if not script.is_file():
                with tempfile.TemporaryDirectory(dir=folder) as unfinished:
                    (Path(unfinished) / "new").mkdir()
                    (Path(unfinished) / "new" / "__init__.py").touch()
                    (Path(unfinished) / "new" / script.name).write_bytes(content)
                    (Path(unfinished) / "new").rename(script.parent)
            script.touch()  # the newest script is the one that evaluate takes
    except OSError as error:
        raise OSError(
            f"{folder} cannot be written to ({error.strerror}). Set HF_MODULES_CACHE to a folder that can, here and "
            "where the metric is loaded."
        ) from None
    return script


def unregister() -> list[Path]:
    """
    Undo [`register`].

    Returns:
        `list[Path]`: the scripts that were removed; empty if there were none. Scripts that evaluate has downloaded
        stay.
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
    Say what `evaluate.load("ece_regime")` finds from the current folder, and why, without running any of it.

    Returns:
        [`Registration`].
    """
    local = Path(NAME) / f"{NAME}.py"
    if local.is_file():
        return Registration(
            "folder", _is_ours(local), str(local.resolve()), "a script in the current folder goes first"
        )
    status, address = _ask_hub()
    if status == "there":
        return Registration("hub", False, address, "a Space of the Hub goes before the cache")
    if broken := _broken_folders():
        reason = "a folder without a script, which hides all others from evaluate: hf-calib register removes it"
        return Registration("nothing", False, str(broken[0]), reason)
    scripts = _scripts()
    if not scripts:
        return Registration(
            "nothing", False, str(_cache_folder()), f"no script is registered, and the Hub {status}: hf-calib register"
        )
    script, ours = scripts[-1], _is_ours(scripts[-1])
    if not ours:
        return Registration("cached", False, str(script), f"evaluate downloaded it earlier; the Hub {status}")
    return Registration("registered", True, str(script), f"the Hub {status}, so evaluate takes it from its cache")


def _lock():
    """Against others that register or remove at the same time; it is evaluate's own lock on the folder."""
    from filelock import FileLock

    return FileLock(f"{_cache_folder()}.lock")


def _scripts() -> list[Path]:
    """Scripts of that name in the cache, the one that evaluate takes last."""
    ages = {}
    for script in _cache_folder().glob(f"{64 * '?'}/{NAME}.py"):
        with contextlib.suppress(FileNotFoundError):  # another process has just removed it
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
    """What the Hub says of the name, asked as evaluate asks it, and the address."""
    from evaluate.utils.file_utils import OfflineModeIsEnabled, hf_hub_url, http_head

    address = hf_hub_url(_HUB_NAME, f"{NAME}.py", revision="main")
    try:
        status = http_head(address, timeout=10).status_code
    except OfflineModeIsEnabled:
        return "is not asked (offline)", address
    except OSError as error:  # no connection; the network errors of requests are of this kind
        return f"cannot be reached ({type(error).__name__})", address
    if status < 300:
        return "there", address
    return ("has no such metric" if status in (401, 404) else f"answers {status}"), address
