"""A Hugging Face hub on this machine: the routes that the hub's own client asks, answered from a folder of repositories.

``models/<owner>/<name>/<commit>/…`` and ``datasets/…``; branches and tags are files ``refs/<name>`` beside the commits. A
repository with a file ``gated`` refuses whoever asks, as the hub does before a licence is accepted.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class LocalHub:
    """Where it is, and what it was asked for."""

    def __init__(self, root: Path, address: str) -> None:
        self.root, self.address = root, address
        self.sent: list[str] = []
        """Files whose content was downloaded."""

    def add(self, kind: str, name: str, commit: str, files: Path, *refs: str) -> None:
        """Publish the files of a folder as a commit, and let `refs` point to it."""
        repository = self.root / kind / name
        repository.mkdir(parents=True, exist_ok=True)
        files.rename(repository / commit)
        (repository / "refs").mkdir(exist_ok=True)
        for ref in refs:
            (repository / "refs" / ref).write_text(commit)


@contextmanager
def serving(root: Path) -> Iterator[LocalHub]:
    """Answer on a free port until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub = LocalHub(root, f"http://127.0.0.1:{server.server_address[1]}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        api = parts[0] == "api"
        parts = parts[1:] if api else parts
        kind = parts.pop(0) if parts[0] in ("models", "datasets") else "models"
        repository = self._hub.root / kind / parts[0] / parts[1]
        if not repository.is_dir():
            return self._refuse(404, "RepoNotFound")
        if (repository / "gated").exists():
            return self._refuse(403, "GatedRepo")
        what, revision, *rest = parts[2:] or ["revision", "main"]
        ref = repository / "refs" / revision
        commit = repository / (ref.read_text() if ref.exists() else revision)
        if not commit.is_dir():
            return self._refuse(404, "RevisionNotFound")
        files = sorted(str(p.relative_to(commit)) for p in commit.rglob("*") if p.is_file())
        if not api:
            return self._file(commit, "/".join(rest), body)
        sizes = [{"rfilename": name, "size": (commit / name).stat().st_size} for name in files]
        answer: Any = {"id": f"{parts[0]}/{parts[1]}", "sha": commit.name, "siblings": sizes, "private": False}
        if what == "tree":
            answer = [{"type": "file", "path": f["rfilename"], "size": f["size"], "oid": f["rfilename"]} for f in sizes]
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, body)
        return None

    def _file(self, commit: Path, name: str, body: bool) -> None:
        path = commit / name
        if not path.is_file():
            return self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit.name})
        content = path.read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        if body:
            self._hub.sent.append(name)
        self._send(200, content, {"X-Repo-Commit": commit.name, "ETag": f'"{etag}"'}, body)
        return None

    def _refuse(self, status: int, code: str, more: dict[str, str] | None = None) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, **(more or {})}, True)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(content)

    @property
    def _hub(self) -> LocalHub:
        return self.server.hub  # type: ignore[attr-defined,no-any-return]
