"""Serves one page on loopback while a run works, in threads that end with the run and never harm it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any

import click

from shared.errors import LvdError
from shared.progress import say

LOOPBACK = "127.0.0.1"
NAMES = ("localhost", LOOPBACK, "[::1]")
"""What a browser may call this server: any other name is one that a page elsewhere has bent to it."""
KEPT = 1.0
"""Seconds for which a page is given again, so that many readers cost no more than one."""
PATIENCE = 10.0
"""Seconds that a connection may be silent."""
_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True)
class LivePage:
    """What a run says of itself at one moment."""

    title: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    """`(name, value)`."""
    share: float | None = None
    """Of the stage that is done, 0 to 1."""
    pictures: list[tuple[str, bytes]] = field(default_factory=list)
    """`(caption, JPEG)`."""


class LiveServer:
    """A page that `show` gives at each request; until it is set, that the run is starting."""

    def __init__(self, port: int) -> None:
        """Bind `port` of loopback; LvdError where that cannot be had."""
        self.show: Callable[[], LivePage] = lambda: LivePage("A run is starting")
        self._page, self._until, self._lock = b"", 0.0, threading.Lock()
        try:
            self._server = _Server((LOOPBACK, port), _handler(self.page))
        except OSError as error:
            raise LvdError(
                f"--serve {port}: {LOOPBACK}:{port} cannot be served ({error.strerror}): name "
                "another port"
            ) from error
        self.port: int = self._server.server_address[1]

    def page(self) -> bytes:
        """Return the page of this moment, or of the second before."""
        with self._lock:
            if time.monotonic() >= self._until:
                self._page = _rendered(self.show())
                self._until = time.monotonic() + KEPT
            return self._page

    @contextmanager
    def running(self) -> Iterator[None]:
        """Answer requests until the end of the block."""
        serve = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)
        serve.start()
        try:
            yield
        finally:
            self._server.shutdown()
            self._server.server_close()


@contextmanager
def serving(port: int | None) -> Iterator[LiveServer | None]:
    """Serve a live page on a port of loopback for the length of the block; None where none is asked.

    Raises LvdError at once where the port cannot be had.
    """
    if port is None:
        yield None
        return
    server = LiveServer(port)
    with server.running():
        say(f"live page, until the run ends: http://{LOOPBACK}:{server.port}/")
        yield server


def serve_option() -> Any:
    """Return the option `--serve`."""
    return click.option(
        "--serve",
        type=click.IntRange(1, 65535),
        metavar="PORT",
        help="Show a live page on this port of loopback while the run works: how far it is, rate, "
        "time left, failures, pictures.",
    )


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def server_bind(self) -> None:
        """Bind without asking a name server what the host is called."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = LOOPBACK, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a reader who went away is no matter of the run's."""


def _handler(page: Callable[[], bytes]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = PATIENCE
        server: HTTPServer

        def do_GET(self) -> None:
            """Answer with the page, on its one path and under a name of loopback."""
            host = re.sub(r":\d+$", "", self.headers.get("Host", "")).lower()
            if host not in NAMES:
                self.send_error(403, "this page is for loopback only")
            elif self.path != "/":
                self.send_error(404)
            else:
                self._answer()

        def _answer(self) -> None:
            try:
                body = page()
            except Exception:  # whatever it is, the run goes on
                self.send_error(500, "how far the run is cannot be read now")
                return
            self.send_response(200)
            for name, value in (*_HEADERS.items(), ("Content-Length", str(len(body)))):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Leave the terminal to the run."""

        def version_string(self) -> str:
            """Return nothing about the machine."""
            return "lvd"

    return Handler


def _rendered(page: LivePage) -> bytes:
    from shared.pages.page import (
        render_page,  # jinja2, which a command without a page does not pay for
    )

    here = Path(__file__)
    return render_page(
        here.with_name("live.html"),
        script=here.with_name("live.js").read_text(encoding="utf-8"),
        connects=True,
        title=page.title,
        figures=[],
        page=page,
    ).encode()
