"""A hub of models on this machine: what `huggingface_hub` asks of one, and ways for it to fail.

A file of weights is answered as the real hub answers large files, by a link to another host with
`X-Linked-Etag`, the sha256; any other file directly, its ETag git's hash of it. GET serves ranges.
"""

import hashlib
import re
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

STALL_SECONDS = 30.0
"""The longest that a server which says nothing holds a request."""


@dataclass
class Request:
    """What was asked, and how many bytes of a file went out."""

    method: str
    path: str
    range: str | None
    sent: int = 0


@dataclass
class Fault:
    """A way to fail, of the first `times` requests for `path` by `method`."""

    method: str = "GET"
    path: str = ""
    """A part of the request's path."""
    times: int = 1_000
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    after: int | None = None
    """So many bytes are sent, then the connection ends."""
    end: str = "close"
    """How it ends: close, reset (RST), or stall."""
    content: bytes | None = None
    """Sent in place of the file's, with the right headers but for its own length."""


class HubServer:
    """Serves what was published; everything it was asked is in `requests`."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        """Files by repository and commit; the last one is `main`."""
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.stalled = threading.Event()
        """Set as soon as a request is left without an end."""
        self._leaving = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.elsewhere = f"http://localhost:{self._server.server_port}"
        """Another host, to whoever compares names."""

    def publish(self, repository: str, files: Mapping[str, bytes]) -> str:
        """Make these files the newest commit of a repository, and return it."""
        content = b"".join(name.encode() + files[name] for name in sorted(files))
        commit = hashlib.sha1(content).hexdigest()
        self.commits.setdefault(repository, {})[commit] = dict(files)
        return commit

    def close(self) -> None:
        """Answer nobody any more: connections are refused."""
        self._leaving.set()
        self._server.shutdown()
        self._server.server_close()

    def sent(self, path: str) -> int:
        """Return how many bytes of files went out for a path with this part."""
        return sum(request.sent for request in self.requests if path in request.path)

    def asked(self, method: str, path: str) -> list[Request]:
        """Return the requests for a path with this part."""
        return [each for each in self.requests if each.method == method and path in each.path]

    def stall(self) -> None:
        """Wait until the server is closed, or for STALL_SECONDS."""
        self.stalled.set()
        self._leaving.wait(STALL_SECONDS)

    def take_fault(self, method: str, path: str) -> Fault | None:
        """Return the fault of a request, and count it."""
        for fault in self.faults:
            if fault.times > 0 and fault.method == method and fault.path in path:
                fault.times -= 1
                return fault
        return None


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self) -> None:
            asked = Request(self.command, self.path, self.headers.get("Range"))
            hub.requests.append(asked)
            fault = hub.take_fault(self.command, self.path)
            if fault and fault.status:
                self._refuse(fault.status, fault.headers)
            elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path):
                self._resolve(asked, fault, *found.groups())
            elif found := re.fullmatch("/cdn/([0-9a-f]{64})", self.path):
                self._send(asked, fault, self._large(found[1]), {"ETag": f'"{found[1]}"'})
            else:
                self._refuse(200 if self.path == "/" else 404, {})

        def _resolve(
            self, asked: Request, fault: Fault | None, repository: str, revision: str, name: str
        ) -> None:
            commits = hub.commits.get(repository)
            if commits is None:  # what is private and what is not there look the same
                return self._refuse(401, {"X-Error-Code": "RepoNotFound"})
            commit = list(commits)[-1] if revision == "main" else revision
            if commit not in commits:
                return self._refuse(404, {"X-Error-Code": "RevisionNotFound"})
            about = {"X-Repo-Commit": commit}
            content = commits[commit].get(name)
            if content is None:
                return self._refuse(404, {**about, "X-Error-Code": "EntryNotFound"})
            if not name.endswith(".safetensors"):
                blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                return self._send(asked, fault, content, {**about, "ETag": f'"{blob}"'})
            digest = hashlib.sha256(content).hexdigest()
            about |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{digest}"'}
            return self._refuse(302, {**about, "Location": f"{hub.elsewhere}/cdn/{digest}"})

        def _send(
            self, asked: Request, fault: Fault | None, content: bytes, headers: Mapping[str, str]
        ) -> None:
            if fault and fault.content is not None:
                content = fault.content
            start = int(re.fullmatch(r"bytes=(\d+)-", asked.range)[1]) if asked.range else 0
            self.send_response(206 if asked.range else 200)
            if asked.range:
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}"
                )
            for key, value in {**headers, "Content-Length": len(content) - start}.items():
                self.send_header(key, str(value))
            self.end_headers()
            if self.command == "HEAD":
                return
            until = len(content) if fault is None or fault.after is None else start + fault.after
            asked.sent = len(content[start:until])  # before whoever asked has it, and looks
            self.wfile.write(content[start:until])
            self.wfile.flush()
            if until < len(content) and fault:
                self._end(fault.end)

        def _end(self, how: str) -> None:
            if how == "stall":
                hub.stall()
            elif how == "reset":
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.connection.close()

        def _refuse(self, status: int, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": "0"}.items():
                self.send_header(key, value)
            self.end_headers()

        def _large(self, digest: str) -> bytes:
            files = [file for commits in hub.commits.values() for each in commits.values()
                     for file in each.values()]  # fmt: skip
            return next(file for file in files if hashlib.sha256(file).hexdigest() == digest)

    return Handler


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A hub that is closed at the end, if it was not before."""
    server = HubServer()
    try:
        yield server
    finally:
        server.close()


def use_hub(monkeypatch: pytest.MonkeyPatch, endpoint: str, cache: Path) -> None:
    """Let `huggingface_hub` in this process do what HF_ENDPOINT and HF_HUB_CACHE would make it do."""
    from huggingface_hub import constants

    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{endpoint}{template}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 2)
