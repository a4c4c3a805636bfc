"""A small Hugging Face Hub on the loopback interface, for tests: enough of its HTTP interface to search, look into and
download models, and a record of every request.

    with HubStandIn() as hub:
        sha = hub.add("org/model", {"model.safetensors": b"...", "config.json": b"{}"}, base="org/base")
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        ...
        assert all(request.authorization is None for request in hub.requests)
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Request:
    """One request as it arrived, and how many bytes of body went back."""

    method: str
    path: str
    query: dict[str, list[str]]
    authorization: str | None
    range: str | None
    status: int = 0
    sent: int = 0


@dataclass
class Repo:
    """A repository: its commits (sha -> files), the names that point to them, and its card."""

    name: str
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    base: str | None = None
    license: str | None = None
    gated: bool = False
    downloads: int = 0
    likes: int = 0
    safetensors: dict[str, int] | None = None


class HubStandIn:
    """The server. ``url`` is its endpoint; ``requests`` what came; ``add`` puts a commit into a repository.

    ``tokens`` are those that may read gated repositories. ``ignore_range`` answers range requests with whole files;
    ``status`` (when set) answers everything with that status; ``delay`` is a ``threading.Event`` to wait for.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.tokens: set[str] = set()
        self.ignore_range = False
        self.status: int | None = None
        self.delay: threading.Event | None = None
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def add(
        self,
        repo: str,
        files: Mapping[str, bytes],
        *,
        tags: Iterable[str] = (),
        base: str | None = None,
        relation: str = "finetune",
        license: str | None = "mit",
        gated: bool = False,
        downloads: int = 0,
        likes: int = 0,
        parameters: Mapping[str, int] | None = None,
        revision: str = "main",
    ) -> str:
        """Put a commit with these files on ``revision`` of a repository (made if it is new); its sha."""
        entry = self.repos.setdefault(repo, Repo(repo))
        digest = hashlib.sha1(repr((repo, len(entry.commits), sorted(files.items()))).encode())
        sha = digest.hexdigest()
        entry.commits[sha] = dict(files)
        entry.refs[revision] = sha
        entry.base, entry.license, entry.gated = base, license, gated
        entry.downloads, entry.likes = downloads, likes
        entry.safetensors = dict(parameters) if parameters else None
        entry.tags = [*tags]
        if any(name.endswith(".safetensors") for name in files):
            entry.tags.append("safetensors")
        if license:
            entry.tags.append(f"license:{license}")
        if base:
            entry.tags += [f"base_model:{base}", f"base_model:{relation}:{base}"]
        return sha

    def sent(self, suffix: str = "") -> int:
        """Bytes of body that went out for paths ending so."""
        return sum(request.sent for request in self.requests if request.path.endswith(suffix))

    def close(self) -> None:
        if self.delay is not None:
            self.delay.set()
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> HubStandIn:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _handler(hub: HubStandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._answer()

        def do_HEAD(self) -> None:
            self._answer()

        def _answer(self) -> None:
            parts = urlsplit(self.path)
            self.record = Request(
                self.command,
                unquote(parts.path),
                parse_qs(parts.query),
                self.headers.get("Authorization"),
                self.headers.get("Range"),
            )
            with hub._lock:
                hub.requests.append(self.record)
            if hub.delay is not None:
                hub.delay.wait(30)
            if hub.status is not None:
                self._send(hub.status, b"{}")
            elif parts.path == "/api/models":
                self._list(self.record.query)
            elif found := re.match(r"^/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?$", parts.path):
                self._info(found[1], unquote(found[2] or "main"))
            elif found := re.match(r"^/api/models/([^/]+/[^/]+)/tree/([^/]+)$", parts.path):
                self._tree(found[1], unquote(found[2]))
            elif found := re.match(r"^/([^/]+/[^/]+)/resolve/([^/]+)/(.+)$", parts.path):
                self._file(found[1], unquote(found[2]), unquote(found[3]))
            else:
                self._error(404, "RepoNotFound")

        def _list(self, query: dict[str, list[str]]) -> None:
            wanted, text = query.get("filter", []), query.get("search", [""])[0].lower()
            found = [
                repo
                for repo in hub.repos.values()
                if all(tag in repo.tags for tag in wanted) and text in repo.name.lower()
            ]
            found.sort(key=lambda repo: -repo.downloads)
            limit = int(query.get("limit", ["1000"])[0])
            self._json([_listing(repo, repo.refs["main"]) for repo in found[:limit]])

        def _info(self, name: str, revision: str) -> None:
            commit = self._commit(name, revision, gate=False)
            if commit is None:
                return
            repo, sha = commit
            siblings = [{"rfilename": path, "size": len(data)} for path, data in sorted(repo.commits[sha].items())]
            self._json({**_listing(repo, sha), "siblings": siblings})

        def _tree(self, name: str, revision: str) -> None:
            commit = self._commit(name, revision, gate=False)
            if commit is None:
                return
            repo, sha = commit
            entries = [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in sorted(repo.commits[sha].items())
            ]
            self._json(entries)

        def _file(self, name: str, revision: str, path: str) -> None:
            commit = self._commit(name, revision, gate=True)
            if commit is None:
                return
            repo, sha = commit
            data = repo.commits[sha].get(path)
            if data is None:
                self._error(404, "EntryNotFound", {"X-Repo-Commit": sha})
                return
            headers = {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha1(data).hexdigest()}"', "Accept-Ranges": "bytes"}
            span = re.match(r"^bytes=(\d+)-(\d*)$", self.record.range or "")
            if span and not hub.ignore_range:
                begin, end = int(span[1]), min(int(span[2] or len(data)), len(data) - 1)
                if begin >= len(data):
                    self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                    return
                headers["Content-Range"] = f"bytes {begin}-{end}/{len(data)}"
                self._send(206, data[begin : end + 1], headers)
            else:
                self._send(200, data, headers)

        def _commit(self, name: str, revision: str, *, gate: bool) -> tuple[Repo, str] | None:
            repo = hub.repos.get(name)
            if repo is None:
                self._error(404, "RepoNotFound")
                return None
            sha = repo.refs.get(revision, revision)
            if sha not in repo.commits:
                self._error(404, "RevisionNotFound")
                return None
            token = (self.record.authorization or "").removeprefix("Bearer ")
            if gate and repo.gated and token not in hub.tokens:
                self._error(401, "GatedRepo")
                return None
            return repo, sha

        def _json(self, value: Any) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _error(self, status: int, code: str, headers: Mapping[str, str] | None = None) -> None:
            self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})})

        def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
            self.record.status = status
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                try:
                    for start in range(0, len(body), 1 << 14):
                        self.wfile.write(body[start : start + (1 << 14)])
                        self.record.sent += len(body[start : start + (1 << 14)])
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

    return Handler


def _listing(repo: Repo, sha: str) -> dict[str, Any]:
    out: dict[str, Any] = {
        "id": repo.name,
        "modelId": repo.name,
        "sha": sha,
        "tags": repo.tags,
        "gated": "auto" if repo.gated else False,
        "private": False,
        "downloads": repo.downloads,
        "likes": repo.likes,
        "lastModified": "2026-01-02T03:04:05.000Z",
        "cardData": {"license": repo.license, **({"base_model": repo.base} if repo.base else {})},
    }
    if repo.safetensors:
        out["safetensors"] = {"parameters": repo.safetensors, "total": sum(repo.safetensors.values())}
    return out
