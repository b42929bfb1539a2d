"""Repositories on the Hub: explained errors, commits and downloads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import CommitInfo, RepoSibling


_TEXTS = (".md", ".json", ".yaml", ".yml", ".jinja", ".txt", ".py", ".cff")
_SECRET = re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b")


class HubError(OSError):
    """A failed request to the Hub, with the reason and what to do, in a sentence."""


@contextmanager
def explained(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Turn errors of the Hub's clients into a [`HubError`] that names the repository and what to do."""
    try:
        yield
    except (LocalTokenNotFoundError, HTTPError, OfflineModeIsEnabled, ConnectionError, EntryNotFoundError) as error:
        raise HubError(_explanation(error, repo_id, revision)) from error
    except RuntimeError as error:  # the upload of a large file wraps its error in one
        if not isinstance(error.__cause__, HTTPError):
            raise
        raise HubError(_explanation(error.__cause__, repo_id, revision)) from error


def _explanation(error: Exception, repo_id: str, revision: str | None) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    namespace = repo_id.partition("/")[0] if "/" in repo_id else "that namespace"
    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, OfflineModeIsEnabled):
        return f"{repo_id}: HF_HUB_OFFLINE is set, so no request is sent; unset it."
    if isinstance(error, LocalTokenNotFoundError):
        return f"{repo_id}: no token for the Hub; {log_in}."
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no revision {revision!r}; `hf repos branch create` makes one."
    if isinstance(error, GatedRepoError):
        return f"{repo_id} is gated: ask for access on its page, then {log_in}."
    if isinstance(error, RepositoryNotFoundError) and not (status == 401 and "credentials" in str(error)):
        known = "with this token" if get_token() else f"without a token ({log_in})"
        return f"{repo_id}: no such repository {known}; check its spelling, and whether it is private."
    if isinstance(error, EntryNotFoundError) and status in (404, None):
        return f"{repo_id}: {_first_line(error)}"
    if status == 401:
        known = "does not know this token" if get_token() else "needs a token"
        return f"{repo_id}: the Hub {known}; {log_in}. `hf auth whoami` shows the current account."
    if status == 403:
        return (
            f"{repo_id}: this token may not write to {namespace}; use one that may ({log_in}), publish under another "
            "name with --repo_id, or propose the change with --create_pr."
        )
    if status == 409:
        return f"{repo_id}: the name is taken ({_first_line(error)}); choose another --repo_id."
    if status == 412:
        return f"{repo_id} has changed since the push began: nothing was published. Run the same command again."
    if status is not None and 400 <= status < 500 and status not in (408, 429):
        return f"{repo_id}: the Hub refuses ({status}): {_first_line(error)}"
    problem = f"answers {status}" if status else f"cannot be reached ({type(error).__name__})"
    return (
        f"{repo_id}: the Hub {problem}. No local file is lost; the same command resumes and skips large files that "
        "were uploaded."
    )


def _first_line(error: Exception) -> str:
    server = getattr(error, "server_message", None)
    lines = (server or str(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class Repository:
    """
    A repository to write to.

    Args:
        repo_id (`str`):
            Name; without a namespace, the user's own is taken.
        repo_type (`str`, *optional*, defaults to `"model"`):
            `"model"`, `"dataset"` or `"space"`.
        private (`bool`, *optional*):
            Create it private or public; by default as the namespace is set up. `True` for an existing public
            repository is an error.
        revision (`str`, *optional*):
            Branch; created if it does not exist.
        create_pr (`bool`, *optional*, defaults to `False`):
            Propose the change in a pull request instead of committing it.
        space_sdk (`str`, *optional*):
            SDK of a Space.

    Raises:
        [`HubError`]: wrong token, foreign namespace, or no connection.
    """

    def __init__(
        self,
        repo_id: str,
        repo_type: str = "model",
        private: bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        space_sdk: str | None = None,
    ):
        self.api, self.repo_type, self.revision, self.create_pr = HfApi(), repo_type, revision, create_pr
        with explained(repo_id, revision):
            if get_token() is None:
                raise LocalTokenNotFoundError
            if create_pr:
                self.id = repo_id
            else:
                made = self.api.create_repo(
                    repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=space_sdk
                )
                self.id = made.repo_id
                if revision:
                    self.api.create_branch(self.id, repo_type=repo_type, branch=revision, exist_ok=True)
            info = self.api.repo_info(self.id, repo_type=repo_type, revision=revision)
        if private and not info.private:
            raise HubError(
                f"{self.id} exists and is public: make it private in its settings, leave out --private, or choose "
                "another --repo_id."
            )
        self.head, self.files = info.sha, [file.rfilename for file in info.siblings or []]

    def read(self, path: str) -> str | None:
        """Read a text file of the parent commit; `None` if it does not exist."""
        if path not in self.files:
            return None
        with explained(self.id, self.revision):
            local = self.api.hf_hub_download(self.id, path, repo_type=self.repo_type, revision=self.head)
        return Path(local).read_text(encoding="utf-8")

    def refuse_if_foreign(self, mark: str, kinds: Sequence[str], overwrite: bool) -> None:
        """
        Raise a [`HubError`] if the repository holds files that hf-calib did not publish.

        Args:
            mark (`str`):
                File that every publication of this kind has.
            kinds (`Sequence[str]`):
                Patterns of files that a commit would replace.
            overwrite (`bool`):
                Whether to replace them.
        """
        held = [path for path in self.files if any(fnmatch(path, kind) for kind in kinds)]
        if held and mark not in self.files and not (overwrite or self.create_pr):
            raise HubError(
                f"{self.id} is taken: it holds {held[0]} and no {mark}, so hf-calib did not publish it. Choose "
                "another --repo_id or --revision, or replace its files with --overwrite true."
            )

    def commit(
        self, folder: Path, files: Sequence[str], message: str, stale: Callable[[str], bool] = lambda path: False
    ) -> CommitInfo:
        """
        Commit files on the parent commit read by `__init__`.

        Large files are uploaded first, and kept by the Hub if the connection breaks. The commit is atomic.

        Args:
            folder (`Path`):
                Folder of the files.
            files (`Sequence[str]`):
                Paths in the folder and in the repository.
            message (`str`):
                Message of the commit.
            stale (`Callable`, *optional*):
                Tells which other files of the repository are deleted.
        """
        refuse_secrets(folder, files)
        operations = [CommitOperationAdd(path, folder / path) for path in files]
        operations += [CommitOperationDelete(path) for path in self.files if path not in files and stale(path)]
        with explained(self.id, self.revision):
            return self.api.create_commit(
                self.id,
                operations,
                commit_message=message,
                repo_type=self.repo_type,
                revision=self.revision,
                create_pr=self.create_pr,
                parent_commit=self.head,
            )


def refuse_secrets(folder: Path, files: Sequence[str]) -> None:
    """Raise `ValueError` if a text file holds a token of the Hub: the one in use, or any that looks like one."""
    own = (get_token() or "").encode()
    for path in files:
        if Path(path).suffix in _TEXTS:
            content = (folder / path).read_bytes()
            if _SECRET.search(content) or (len(own) > 20 and own in content):
                raise ValueError(
                    f"{folder / path} holds what looks like a token of the Hub: remove it before publishing."
                )


def download(repo_id: str, patterns: Sequence[str], revision: str | None = None, repo_type: str = "model") -> Path:
    """
    Download files of a repository into the cache of the Hub's clients.

    Args:
        repo_id (`str`):
            Name of the repository.
        patterns (`Sequence[str]`):
            Globs of the files to download.
        revision (`str`, *optional*), repo_type (`str`, *optional*, defaults to `"model"`):
            Branch, tag or commit, and `"model"`, `"dataset"` or `"space"`.

    Returns:
        `Path`: the folder that holds them.

    Raises:
        [`HubError`]: wrong token, missing repository, or no connection.
        `ValueError`: the name of a file leads out of the folder.
    """
    with explained(repo_id, revision):
        siblings: list[RepoSibling] = HfApi().repo_info(repo_id, revision=revision, repo_type=repo_type).siblings or []
        for sibling in siblings:
            parts = PurePosixPath(sibling.rfilename).parts
            if not parts or ".." in parts or sibling.rfilename.startswith("/") or "\\" in sibling.rfilename:
                raise ValueError(
                    f"{repo_id} holds a file {sibling.rfilename!r}, which leads out of its folder: not downloaded."
                )
        return Path(snapshot_download(repo_id, revision=revision, repo_type=repo_type, allow_patterns=list(patterns)))
