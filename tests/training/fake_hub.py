"""A hub of data sets on this machine: the part of its HTTP API that `datasets` asks, from memory.

Answers have the shape of the real hub's: small files come at once, those in its large file storage
by a redirect; reads are by range; what is not there is told in a header.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "5" * 40
LARGE = (".gz", ".xz", ".parquet")
NONE: Mapping[str, str] = MappingProxyType({})
Sets = Mapping[str, Mapping[str, bytes]]


class Hub(ThreadingHTTPServer):
    """`sets`: of each name, its files. `asked`: method and path of every request."""

    def __init__(self, sets: Sets) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.sets = sets
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(sets: Sets) -> Iterator[Hub]:
    """Run a hub until the block ends."""
    with Hub(sets) as hub:
        thread = Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        if found := re.fullmatch(
            r"/api/datasets/([^/]+/[^/]+)(?:/(revision|tree)/\w+)?(/.+)?", path
        ):
            name, what, under = found.groups("")
            if name not in self.server.sets:
                self._missing("RepoNotFound", 401)
            elif what == "tree":
                self._tree(self.server.sets[name], under.removeprefix("/"))
            else:
                self._json({"id": name, "sha": COMMIT, "siblings": []})
        elif found := re.fullmatch(r"/(datasets|stored)/([^/]+/[^/]+)(?:/resolve/\w+)?/(.+)", path):
            where, name, file = found.groups()
            if name not in self.server.sets:
                self._missing("RepoNotFound", 401)
            elif file not in self.server.sets[name]:
                self._missing("EntryNotFound", 404)
            else:
                self._file(self.server.sets[name][file], where, f"{name}/{file}")
        else:
            self._say(404)

    do_HEAD = do_GET

    def _tree(self, files: Mapping[str, bytes], under: str) -> None:
        """What lies in a folder; with `recursive`, below it too."""
        recursive = "recursive=true" in self.path
        found: dict[str, dict[str, Any]] = {}
        for path, body in files.items():
            if under and not path.startswith(f"{under}/"):
                continue
            parts = path.split("/")
            depth = under.count("/") + 1 if under else 0
            for end in range(depth + 1, len(parts) if recursive else min(len(parts), depth + 2)):
                folder = "/".join(parts[:end])
                found[folder] = {"type": "directory", "path": folder, "oid": COMMIT, "size": 0}
            if recursive or len(parts) == depth + 1:
                found[path] = {"type": "file", "path": path, "oid": _hash(body), "size": len(body)}
        if under and not found:
            self._missing("EntryNotFound", 404)
        else:
            self._json(list(found.values()))

    def _file(self, body: bytes, where: str, path: str) -> None:
        known = {"X-Repo-Commit": COMMIT, "ETag": f'"{_hash(body)}"', "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if where == "datasets" and path.endswith(LARGE):
            large = {"X-Linked-Size": str(len(body)), "X-Linked-ETag": f'"{_hash(body)}"'}
            self._say(302, b"", known | large | {"Location": f"/stored/{path}"})
        elif wanted:
            first, last = int(wanted[1]), min(int(wanted[2] or len(body)), len(body) - 1)
            known["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
            self._say(206, body[first : last + 1], known)
        else:
            self._say(200, body, known)

    def _missing(self, code: str, status: int) -> None:
        self._say(status, b"", {"X-Error-Code": code, "X-Repo-Commit": COMMIT})

    def _json(self, data: Any) -> None:
        self._say(200, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _say(self, status: int, body: bytes = b"", headers: Mapping[str, str] = NONE) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _hash(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()
