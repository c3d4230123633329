"""An S3 server on this machine, moto's, and ways for it to fail before it answers."""

import asyncio
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest

BUCKET = "bucket"
ERRORS = {
    "SlowDown": "503 Slow Down",
    "InternalError": "500 Internal Server Error",
    "AccessDenied": "403 Forbidden",
    "ExpiredToken": "400 Bad Request",
}


@dataclass
class Request:
    """What was asked of the server."""

    method: str
    path: str
    query: str
    range: str | None
    client: str
    """The address that it came from."""


@dataclass
class Fault:
    """A way to fail, of every `every`-th request by `method` whose path and query hold these."""

    way: str
    """A code of `ERRORS`, `reset` (the connection, before an answer), `cut` (half of the body) or
    `whole` (all of the object instead of a range)."""
    method: str = ""
    path: str = ""
    query: str = ""
    every: int = 1
    times: int = 1_000_000
    asked: int = 0
    failed: int = 0

    def strikes(self, request: Request) -> bool:
        """Count a request that is meant, and tell whether it is to fail."""
        if self.method not in ("", request.method) or self.path not in request.path:
            return False
        if self.query not in request.query:
            return False
        self.asked += 1
        if self.asked % self.every or self.failed >= self.times:
            return False
        self.failed += 1
        return True


@dataclass
class S3Server:
    """What was asked, and what is to fail."""

    url: str = ""
    """Of the server; `s3://bucket` is of the bucket."""
    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    latency: float = 0.0
    """Seconds before each answer."""
    watch: Callable[[Request], None] | None = None
    """Called with each request before it is answered."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to be told for `s3://` to be this server."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "own",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",  # the client waits long before it tries again
        }

    def put(self, folder: Path, name: str) -> str:
        """Store the files of a folder, and return their URL."""
        system = fsspec.filesystem("s3")
        for path in folder.rglob("*"):
            if path.is_file():
                place = f"{BUCKET}/{name}/{path.relative_to(folder).as_posix()}"
                system.pipe_file(place, path.read_bytes())
        return f"s3://{BUCKET}/{name}"

    def get(self, name: str) -> dict[str, bytes]:
        """Return all that is stored below a name."""
        system = fsspec.filesystem("s3")
        system.invalidate_cache()
        root = f"{BUCKET}/{name}"
        read = partial(system.cat_file, max_concurrency=1)  # else it asks for the size first
        return {path[len(root) + 1 :]: read(path) for path in system.find(root)}

    def clear(self) -> None:
        """Remove all that is stored, asked and to fail."""
        self.faults.clear()
        self.watch = None
        system = fsspec.filesystem("s3")
        system.invalidate_cache()
        if stored := system.find(BUCKET):
            system.rm(stored)
        self.requests.clear()

    def answer(self, app: Any, environ: dict[str, Any], start: Any) -> Any:
        """Answer a WSGI request by `app`, unless it is to fail."""
        about = Request(
            environ["REQUEST_METHOD"],
            environ["PATH_INFO"],
            environ["QUERY_STRING"],
            environ.get("HTTP_RANGE"),
            environ["REMOTE_ADDR"],
        )
        time.sleep(self.latency)
        with self._lock:
            self.requests.append(about)
            if self.watch is not None:
                self.watch(about)
            fault = next((fault for fault in self.faults if fault.strikes(about)), None)
        if fault is not None and fault.way == "whole":
            environ.pop("HTTP_RANGE", None)
        if fault is None or fault.way == "whole":
            return app(environ, start)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if fault.way == "cut":
            return _cut(app, environ, start)
        if fault.way == "reset":
            connection = environ["werkzeug.socket"]
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(connection.detach())
            raise ConnectionResetError
        body = f"<Error><Code>{fault.way}</Code><Message>so it is</Message></Error>".encode()
        head = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        start(ERRORS[fault.way], head)
        return [body]


def _cut(app: Any, environ: dict[str, Any], start: Any) -> Iterator[bytes]:
    """Answer with the headers of the whole body and half of it, and end the connection."""
    body = b"".join(app(environ, start))
    yield body[: len(body) // 2]
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)


async def _go_on(seconds: float) -> None:
    """Stand in for the client's wait before it tries again."""
    await asyncio.sleep(0)


@contextmanager
def serve(address: str = "127.0.0.1") -> Iterator[S3Server]:
    """Serve an empty bucket, which `s3://` means here and in the processes of the test."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_: Any) -> None:
            pass

    made = S3Server()
    app = DomainDispatcherApplication(create_backend_app)
    server = make_server(
        address,
        0,
        lambda environ, start: made.answer(app, environ, start),
        threaded=True,
        request_handler=Quiet,
    )
    server.handle_error = lambda *_: None  # of a connection that was reset
    made.url = f"http://{address}:{server.port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in made.environment.items():
            patch.setenv(name, value)
        patch.setattr("s3fs.core.asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": _go_on}))
        # What moto stores belongs to the process, and not to this server.
        fsspec.filesystem("s3").makedirs(BUCKET, exist_ok=True)
        made.clear()
        try:
            yield made
        finally:
            server.shutdown()
            fsspec.filesystem("s3").clear_instance_cache()
