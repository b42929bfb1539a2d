"""How requests reach the loopback Hub, who may make them, and how answers leave it."""

from __future__ import annotations

import json
import re
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from hub_store import HubError, Repo


if TYPE_CHECKING:
    from hub_server import HubServer

ID = r"(?P<ns>[\w.-]+)/(?P<name>[\w.-]+)"
REV = r"(?P<rev>[^/]+)"  # a revision with a slash arrives percent-encoded, so it is one segment
KIND = r"(?P<kind>models|datasets|spaces)"
KIND_PREFIX = r"(?:(?P<kind>datasets|spaces)/)?"  # web URLs: models have no prefix
ROUTES: list[tuple[str, re.Pattern, str]] = []


def route(methods: str, pattern: str):
    def register(function):
        ROUTES.extend((method, re.compile(pattern), function.__name__) for method in methods.split())
        return function

    return register


class RequestHandler(BaseHTTPRequestHandler):
    """Finds the method whose route a request takes; reads, answers, and knows the caller."""

    server: HubServer
    protocol_version = "HTTP/1.1"  # keep-alive, as the clients expect

    # ---- plumbing -------------------------------------------------------------------------------

    def handle_one(self) -> None:
        url = urlsplit(self.path)
        self.query, body = parse_qs(url.query), self.read_body()
        try:
            for method, pattern, name in ROUTES:
                if method == self.command and (match := pattern.fullmatch(url.path)):
                    groups = {k: unquote(v) if v else v for k, v in match.groupdict().items()}
                    return getattr(self, name)(body, **groups)
            raise HubError(404, f"No such endpoint here: {self.command} {url.path}")
        except HubError as error:
            self.send_json({"error": error.message}, error.status, error.headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_one

    def log_message(self, *args) -> None:
        pass

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def send_bytes(self, data: bytes, status: int = 200, headers: dict | None = None) -> None:
        self.server.requests.append((self.command, self.path, status))
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def send_json(self, data, status: int = 200, headers: dict | None = None) -> None:
        self.send_bytes(json.dumps(data).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    # ---- who may do what ------------------------------------------------------------------------

    def user(self) -> str | None:
        """The caller's name, None if no token was sent, 401 if it is not one of ours."""
        header = self.headers.get("Authorization")
        if header is None:
            return None
        if header.removeprefix("Bearer ") not in self.server.tokens:
            # This exact message keeps the client from reporting a missing repository instead.
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.server.tokens[header.removeprefix("Bearer ")][0]

    def namespaces(self) -> list[str]:
        """The namespaces the caller may write to: user name first, then organizations."""
        if self.user() is None:
            raise HubError(401, "Invalid username or password.")
        return self.server.tokens[self.headers["Authorization"].removeprefix("Bearer ")]

    def repo(self, kind: str | None, ns: str, name: str, write: bool = False) -> Repo:
        user = self.user()
        repo = Repo(self.server.root, kind or "models", ns, name)
        exists = (repo.dir / "meta.json").is_file()
        if not exists or (repo.meta["private"] and (user is None or ns not in self.namespaces())):
            # As on the Hub, who is not logged in cannot tell a missing repository from a private one.
            raise HubError(
                404 if user else 401,
                "Repository not found" if user else "Invalid username or password.",
                "RepoNotFound",
            )
        if write and ns not in self.namespaces():
            raise HubError(403, f"Authorization error: you don't have write access to {repo.id}")
        return repo

    def proposes(self) -> bool:
        """Whether a commit is to be a pull request, for which reading rights and a token are enough."""
        if self.query.get("create_pr") not in (["1"], ["true"], ["True"]):
            return False
        self.namespaces()
        return True
