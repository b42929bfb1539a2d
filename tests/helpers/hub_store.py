"""What the loopback Hub of hub_server.py keeps. Every commit is a folder of bare files:

ROOT/models/alice/tiny/meta.json             {"private": false, "sdk": null, "created": "..."}
ROOT/models/alice/tiny/refs/main             the id of the branch's newest commit (tags/ likewise)
ROOT/models/alice/tiny/commits/<id>.json     title, author, date, parents, and each file's hashes
ROOT/models/alice/tiny/files/<id>/...        that commit's files (unchanged ones are hard links)
ROOT/lfs/<sha256>                            uploaded LFS objects
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

import yaml  # a dependency of huggingface_hub


GITATTRIBUTES = "".join(
    f"*.{ext} filter=lfs diff=lfs merge=lfs -text\n"
    for ext in "7z arrow bin ckpt gz h5 joblib model msgpack npy npz onnx parquet pickle pkl pt pth safetensors zip".split()
)
LFS_SIZE = 10 * 1024 * 1024  # any file above this is LFS, whatever its name


class HubError(Exception):
    """An error answer. `code` becomes X-Error-Code, which picks the exception class in the client."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None):
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {"X-Error-Message": message}
        if code:
            self.headers["X-Error-Code"] = code
        if commit:
            self.headers["X-Repo-Commit"] = commit  # lets the client cache "this file does not exist"


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def git_blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def card_data(readme: bytes) -> dict:
    """The YAML block at the top of a README; ValueError where the Hub would refuse it."""
    match = re.match(r"\ufeff?---\r?\n(.*?)\r?\n---(?:\r?\n|$)", readme.decode("utf-8", "replace"), re.DOTALL)
    try:
        data = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError as error:
        raise ValueError(f"Invalid YAML: {error}") from error
    if data is not None and not isinstance(data, dict):
        raise ValueError("Metadata should be a mapping")
    return data or {}


class Repo:
    """One repository: a folder as described at the top of this file."""

    def __init__(self, root: Path, kind: str, ns: str, name: str):
        self.root, self.kind, self.ns, self.id = root, kind, ns, f"{ns}/{name}"
        self.dir = root / kind / ns / name

    @property
    def meta(self) -> dict:
        return json.loads((self.dir / "meta.json").read_text())

    def open_pull_request(self, head: str) -> int:
        """A branch `refs/pr/N` at a commit, kept as `refs/pr-N`; returns N."""
        number = 1 + len(list((self.dir / "refs").glob("pr-*")))
        (self.dir / "refs" / f"pr-{number}").write_text(head)
        return number

    def commit_id(self, rev: str) -> str:
        rev = re.sub(r"^refs/pr/(\d+)$", r"pr-\1", rev)
        if re.fullmatch(r"[\w.-]+", rev):
            for folder in ("refs", "tags"):
                if (self.dir / folder / rev).is_file():
                    return (self.dir / folder / rev).read_text()
            if (self.dir / "commits" / f"{rev}.json").is_file():
                return rev
        raise HubError(404, f"Invalid rev id: {rev}", "RevisionNotFound")

    def commit(self, rev: str) -> dict:
        return json.loads((self.dir / "commits" / f"{self.commit_id(rev)}.json").read_text())

    def is_lfs(self, path: str, size: int, head: str | None) -> bool:
        attributes = self.dir / "files" / (head or "") / ".gitattributes"
        lines = attributes.read_text().splitlines() if head and attributes.is_file() else []
        patterns = [line.split()[0] for line in lines if "filter=lfs" in line]
        return 0 < size and (size > LFS_SIZE or any(fnmatch(PurePosixPath(path).name, p) for p in patterns))

    def add_commit(
        self,
        branch: str,
        title: str,
        message: str,
        author: str,
        write: dict[str, bytes],
        link: dict[str, str],
        delete: list[str],
    ) -> dict:
        """Commit on `branch`: `write` regular files, `link` LFS objects by sha256, `delete` files or folders."""
        parent = self.commit(branch) if (self.dir / "refs" / branch).is_file() else None
        files = dict(parent["files"]) if parent else {}
        for path in delete:
            files = {p: f for p, f in files.items() if p != path and not p.startswith(path.rstrip("/") + "/")}
        for path, data in write.items():
            files[path] = {"oid": git_blob_id(data), "size": len(data), "lfs": None}
        for path, sha256 in link.items():
            size = (self.root / "lfs" / sha256).stat().st_size
            files[path] = {"oid": git_blob_id(lfs_pointer(sha256, size)), "size": size, "lfs": sha256}
        commit = {
            "title": title,
            "message": message,
            "date": now(),
            "author": author,
            "parents": [parent["id"]] if parent else [],
            "files": dict(sorted(files.items())),
        }
        commit["id"] = hashlib.sha1(json.dumps(commit).encode() + os.urandom(8)).hexdigest()
        for path, info in files.items():
            target = self.dir / "files" / commit["id"] / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if path in write:
                target.write_bytes(write[path])
            else:  # an LFS object, or unchanged since the parent
                os.link(
                    self.root / "lfs" / info["lfs"] if info["lfs"] else self.dir / "files" / parent["id"] / path,
                    target,
                )
        for folder in ("commits", "refs", "tags"):
            (self.dir / folder).mkdir(exist_ok=True)
        (self.dir / "commits" / f"{commit['id']}.json").write_text(json.dumps(commit, indent=1))
        (self.dir / "refs" / branch).write_text(commit["id"])
        return commit

    def info(self, rev: str, blobs: bool = False) -> dict:
        commit, meta = self.commit(rev), self.meta
        readme = self.dir / "files" / commit["id"] / "README.md"
        try:
            card = card_data(readme.read_bytes()) if readme.is_file() else {}
        except ValueError:
            card = {}
        tags = card.get("tags") or []
        siblings = [{"rfilename": path} for path in commit["files"]]
        if blobs:
            for sibling in siblings:
                file = commit["files"][sibling["rfilename"]]
                sibling.update(size=file["size"], blobId=file["oid"])
                if file["lfs"]:
                    sibling["lfs"] = {
                        "sha256": file["lfs"],
                        "size": file["size"],
                        "pointerSize": len(lfs_pointer(file["lfs"], file["size"])),
                    }
        return {
            "_id": hashlib.sha1(self.id.encode()).hexdigest()[:24],
            "id": self.id,
            "author": self.ns,
            "sha": commit["id"],
            "lastModified": commit["date"],
            "createdAt": meta["created"],
            "private": meta["private"],
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [tags] if isinstance(tags, str) else tags,
            "cardData": card,
            "siblings": siblings,
            **{k: card[k] for k in ("library_name", "pipeline_tag") if k in card},
            **({"sdk": meta["sdk"]} if self.kind == "spaces" else {"usedStorage": 0}),
        }


def tree_entry(path: str, file: dict) -> dict:
    entry = {"type": "file", "path": path, "oid": file["oid"], "size": file["size"]}
    if file["lfs"]:
        entry["lfs"] = {
            "oid": file["lfs"],
            "size": file["size"],
            "pointerSize": len(lfs_pointer(file["lfs"], file["size"])),
        }
    return entry


def tree(files: dict, folder: str, recursive: bool) -> list[dict]:
    """Entries under `folder` ("" is the root), folders included, as /tree and /paths-info give them."""
    prefix, found = (folder + "/" if folder else ""), {}
    for path, file in files.items():
        if path.startswith(prefix):
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                parent = prefix + "/".join(parts[:depth])
                found[parent] = {
                    "type": "directory",
                    "path": parent,
                    "size": 0,
                    "oid": hashlib.sha1(parent.encode()).hexdigest(),
                }
            if recursive or len(parts) == 1:
                found[path] = tree_entry(path, file)
    return list(found.values())
