"""A small stand-in for the Hugging Face Hub's REST API, for tests on loopback.

It speaks the real wire protocol to the real clients (huggingface_hub, transformers, datasets,
evaluate), keeps real content and refuses what the Hub refuses.

Clients need, set before they are imported:
    HF_ENDPOINT=<url>  HF_TOKEN=<one of the tokens>  HF_HOME=<an empty folder>
    HF_HUB_DISABLE_XET=1           no answer of a server turns huggingface_hub 2.4 from xet to plain LFS
    HF_UPDATE_DOWNLOAD_COUNTS=0    else evaluate also sends HEAD requests to s3.amazonaws.com

Left out: xet (see xet_hub.py), git itself, discussions (a pull request is its first commit), pagination, gated repositories, Spaces that run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import threading
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs

from hub_http import ID, KIND, KIND_PREFIX, REV, RequestHandler, route
from hub_store import GITATTRIBUTES, HubError, Repo, card_data, now, tree


class Handler(RequestHandler):
    # ---- three hooks, overridden in xet_hub.py -------------------------------------------------

    transfer = "basic"

    def stored(self, sha256: str) -> bool:
        return (self.server.root / "lfs" / sha256).is_file()

    def lfs_headers(self, sha256: str, kind: str, repo: str, commit: str) -> dict:
        return {}

    # ---- accounts and repositories --------------------------------------------------------------

    @route("GET", "/api/whoami-v2")
    def whoami(self, body):
        name, *orgs = self.namespaces()
        self.send_json(
            {
                "type": "user",
                "id": name,
                "name": name,
                "fullname": name,
                "orgs": [{"type": "org", "name": org} for org in orgs],
                "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}},
            }
        )

    @route("POST DELETE", "/api/repos/(?P<action>create|delete)")
    def create_or_delete(self, body, action):
        data = json.loads(body)
        kind, ns = f"{data.get('type') or 'model'}s", data.get("organization") or self.namespaces()[0]
        if action == "delete":
            shutil.rmtree(self.repo(kind, ns, data["name"], write=True).dir)
            return self.send_json({})
        if ns not in self.namespaces():
            raise HubError(403, f'You don\'t have the rights to create a {kind[:-1]} under the namespace "{ns}"')
        repo = Repo(self.server.root, kind, ns, data["name"])
        if not re.fullmatch(ID, repo.id) or ".." in repo.id:
            raise HubError(400, "Invalid repo name")
        url = f"{self.server.url}/{'' if kind == 'models' else kind + '/'}{repo.id}"
        with self.server.lock:
            if (repo.dir / "meta.json").is_file():
                return self.send_json({"error": f"You already created this {kind[:-1]} repo", "url": url}, 409)
            repo.dir.mkdir(parents=True)
            private = data.get("visibility") == "private" or bool(data.get("private"))
            (repo.dir / "meta.json").write_text(
                json.dumps({"private": private, "sdk": data.get("sdk"), "created": now()})
            )
            repo.add_commit(
                "main", "initial commit", "", self.user(), {".gitattributes": GITATTRIBUTES.encode()}, {}, []
            )
        self.send_json({"url": url, "name": repo.id})

    @route("GET", f"/api/{KIND}")
    def list_repos(self, body, kind):
        wanted, author = self.query.get("filter", []), self.query.get("author", [None])[0]
        infos = [
            Repo(self.server.root, kind, path.parent.parent.name, path.parent.name).info("main")
            for path in sorted((self.server.root / kind).glob("*/*/meta.json"))
        ]
        self.send_json(
            [
                info
                for info in infos
                if not info["private"] and author in (None, info["author"]) and set(wanted) <= set(info["tags"])
            ]
        )

    @route("GET", f"/api/{KIND}/{ID}(?:/revision/{REV})?")
    def repo_info(self, body, kind, ns, name, rev):
        self.send_json(self.repo(kind, ns, name).info(rev or "main", blobs="blobs" in self.query))

    @route("GET", f"/api/{KIND}/{ID}/refs")
    def refs(self, body, kind, ns, name):
        repo = self.repo(kind, ns, name)
        branches, tags = (
            [
                {"name": ref.name, "ref": f"refs/{git_name}/{ref.name}", "targetCommit": ref.read_text()}
                for ref in sorted((repo.dir / folder).iterdir())
            ]
            for folder, git_name in (("refs", "heads"), ("tags", "tags"))
        )
        self.send_json({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})

    @route("POST", f"/api/{KIND}/{ID}/(?P<what>branch|tag)/{REV}")
    def add_ref(self, body, kind, ns, name, what, rev):
        repo, data = self.repo(kind, ns, name, write=True), json.loads(body or b"{}")
        # A branch is named in the URL and starts at "startingPoint"; a tag is named in the body, its commit in the URL.
        ref, start = (rev, data.get("startingPoint") or "main") if what == "branch" else (data["tag"], rev)
        file = repo.dir / ("refs" if what == "branch" else "tags") / ref
        if not re.fullmatch(r"[\w-][\w.-]*", ref):
            raise HubError(400, f"Invalid reference name: {ref}")
        if file.exists():
            raise HubError(409, f"Reference already exists: {ref}")
        file.write_text(repo.commit_id(start))
        self.send_json({"message": "Created"})

    @route("GET", f"/api/{KIND}/{ID}/commits/{REV}")
    def commits(self, body, kind, ns, name, rev):
        repo, log = self.repo(kind, ns, name), []
        while rev:
            commit = repo.commit(rev)
            log.append(
                {**{k: commit[k] for k in ("id", "title", "message", "date")}, "authors": [{"user": commit["author"]}]}
            )
            rev = commit["parents"][0] if commit["parents"] else None
        self.send_json(log)

    @route("GET", f"/api/{KIND}/{ID}/tree/{REV}(?:/(?P<path>.+))?")
    def list_tree(self, body, kind, ns, name, rev, path):
        commit = self.repo(kind, ns, name).commit(rev)
        recursive = self.query.get("recursive", [""])[0].lower() in ("true", "1")
        entries = tree(commit["files"], (path or "").strip("/"), recursive)
        if path and not entries:
            raise HubError(404, f"{path} does not exist on {rev}", "EntryNotFound", commit["id"])
        self.send_json(entries)

    @route("POST", f"/api/{KIND}/{ID}/paths-info/{REV}")
    def paths_info(self, body, kind, ns, name, rev):
        commit = self.repo(kind, ns, name).commit(rev)
        form = json.loads(body) if body.startswith(b"{") else parse_qs(body.decode())
        entries = {entry["path"]: entry for entry in tree(commit["files"], "", recursive=True)}
        self.send_json([entries[path.strip("/")] for path in form["paths"] if path.strip("/") in entries])

    # ---- download -------------------------------------------------------------------------------

    @route("GET HEAD", f"/{KIND_PREFIX}{ID}/resolve/{REV}/(?P<path>.+)")
    def resolve(self, body, kind, ns, name, rev, path):
        repo = self.repo(kind, ns, name)
        commit = repo.commit(rev)
        if path not in commit["files"]:
            raise HubError(404, "Entry not found", "EntryNotFound", commit["id"])
        file = commit["files"][path]
        headers = {
            "X-Repo-Commit": commit["id"],
            "ETag": f'"{file["lfs"] or file["oid"]}"',
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream" if file["lfs"] else "text/plain; charset=utf-8",
        }
        if file["lfs"]:
            headers |= {
                "X-Linked-Etag": headers["ETag"],
                "X-Linked-Size": str(file["size"]),
                **self.lfs_headers(file["lfs"], repo.kind, repo.id, commit["id"]),
            }
        data = (repo.dir / "files" / commit["id"] / path).read_bytes()
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
            if first > last:
                return self.send_bytes(b"", 416, {"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            return self.send_bytes(data[first : last + 1], 206, headers)
        self.send_bytes(data, 200, headers)

    @route("GET HEAD", rf"(?:/api/{KIND}/[\w.-]+(?:/revision/.+)?|/(?:datasets/|spaces/)?[\w.-]+/resolve/.+)")
    def canonical(self, body, **_):  # "bert-base-uncased", "squad": no repository here lacks a namespace
        self.user()
        raise HubError(404, "Repository not found", "RepoNotFound")

    # ---- upload ---------------------------------------------------------------------------------

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self, body):
        try:
            card_data(json.loads(body)["content"].encode())
            self.send_json({"errors": [], "warnings": []})
        except ValueError as error:
            self.send_json({"errors": [{"message": str(error)}], "warnings": []}, 400)

    @route("POST", f"/api/{KIND}/{ID}/preupload/{REV}")
    def preupload(self, body, kind, ns, name, rev):
        repo = self.repo(kind, ns, name, write=not self.proposes())
        commit, answer = repo.commit(rev), []
        for file in json.loads(body)["files"]:
            lfs, known = repo.is_lfs(file["path"], file["size"], commit["id"]), commit["files"].get(file["path"])
            # The remote oid lets the client drop unchanged files from the commit.
            answer.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if lfs else "regular",
                    "shouldIgnore": False,
                    "oid": (known["lfs"] if lfs else known["oid"]) if known else None,
                }
            )
        self.send_json({"files": answer, "commitOid": commit["id"]})

    @route("POST", rf"/{KIND_PREFIX}{ID}\.git/info/lfs/objects/batch")
    def lfs_batch(self, body, kind, ns, name):
        self.namespaces()  # whoever may read may propose, and so upload
        self.repo(kind, ns, name)
        data, objects = json.loads(body), []
        for wanted in data["objects"]:
            upload = {"upload": {"href": f"{self.server.url}/lfs/{wanted['oid']}"}}
            # No actions: it is here already, nothing to upload.
            objects.append(wanted if self.stored(wanted["oid"]) else {**wanted, "actions": upload})
        transfer = self.transfer if self.transfer in data.get("transfers", ()) else "basic"
        self.send_json({"transfer": transfer, "objects": objects})

    @route("PUT", "/lfs/(?P<oid>[0-9a-f]{64})")
    def lfs_put(self, body, oid):  # the Hub's upload URLs are pre-signed: the client sends no token here
        if hashlib.sha256(body).hexdigest() != oid:
            raise HubError(422, f"Content does not hash to {oid}")
        (self.server.root / "lfs").mkdir(parents=True, exist_ok=True)
        (self.server.root / "lfs" / oid).write_bytes(body)
        self.send_bytes(b"")

    @route("POST", f"/api/{KIND}/{ID}/commit/{REV}")
    def make_commit(self, body, kind, ns, name, rev):
        repo = self.repo(kind, ns, name, write=not self.proposes())
        header, write, link, delete = {}, {}, {}, []
        for line in body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            parts = PurePosixPath(value.get("path", "x")).parts
            if ".." in parts or ".git" in parts or value.get("path", "x").startswith("/"):
                raise HubError(400, f"Invalid path: {value['path']}")
            if key == "header":
                header = value
            elif key == "file":
                write[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if not self.stored(value["oid"]):
                    raise HubError(400, f"LFS object {value['oid']} of {value['path']} was never uploaded")
                link[value["path"]] = value["oid"]
            elif key in ("deletedFile", "deletedFolder"):
                delete.append(value["path"])
            else:
                raise HubError(400, f"Unknown operation: {key}")
        try:
            card_data(write.get("README.md", b""))
        except ValueError as error:
            raise HubError(400, str(error)) from None
        with self.server.lock:
            head = repo.commit_id(rev)
            if not head.startswith(header.get("parentCommit") or ""):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            if not (repo.dir / "refs" / rev).is_file():
                raise HubError(400, "Can only commit on a branch")
            proposal = repo.open_pull_request(head) if self.proposes() else None
            commit = repo.add_commit(
                f"pr-{proposal}" if proposal else rev,
                header.get("summary", ""),
                header.get("description", ""),
                self.user(),
                write,
                link,
                delete,
            )
        prefix = "" if kind == "models" else f"{kind}/"
        self.send_json(
            {
                "success": True,
                "commitOid": commit["id"],
                "hookOutput": "",
                "commitUrl": f"{self.server.url}/{prefix}{repo.id}/commit/{commit['id']}",
                **(
                    {"pullRequestUrl": f"{self.server.url}/{prefix}{repo.id}/discussions/{proposal}"}
                    if proposal
                    else {}
                ),
            }
        )


class HubServer(ThreadingHTTPServer):
    """Serves `root`. `tokens` maps each token to the namespaces it may write to, its user's name first."""

    daemon_threads = True

    def __init__(self, root: str | Path, tokens: dict[str, list[str]], port: int = 0, handler=Handler):
        super().__init__(("127.0.0.1", port), handler)
        self.root, self.tokens, self.lock = Path(root), tokens, threading.Lock()
        self.root.mkdir(parents=True, exist_ok=True)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[tuple[str, str, int]] = []  # (method, path, status), for a test to look at


@contextmanager
def serve(root: str | Path, tokens: dict[str, list[str]], port: int = 0, handler=Handler):
    """Run a server in a thread: `with serve(tmp_path, {"hf_alice": ["alice"]}) as hub: ... hub.url`."""
    with HubServer(root, tokens, port, handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
