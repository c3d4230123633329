"""Outlives images that kill the process that decodes them.

A journal says which images are being decoded. When a worker dies, the next try of its part finds
in the journal those that were under way, and decodes each in a process of its own first.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

SECONDS = 120


class Journal:
    """The images that are being decoded, on disk; `suspects` are those of a try that died."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.suspects = _unfinished(path)
        self._stream: IO[str] | None = None

    def __enter__(self) -> Journal:
        self._stream = self._path.open("a", encoding="utf-8", buffering=1)
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._stream.close()
        if kind is None:
            self._path.unlink()

    @contextmanager
    def trying(self, key: str) -> Iterator[None]:
        """Note that an image is being decoded, and that it is done. Safe in threads."""
        name = ascii(key)
        self._stream.write(f"+{name}\n")
        try:
            yield
        finally:
            self._stream.write(f"-{name}\n")

    def is_suspect(self, key: str) -> bool:
        """Return whether an earlier try died while it decoded this image."""
        return ascii(key) in self.suspects


def _unfinished(path: Path) -> set[str]:
    """Return what was begun and not ended; a torn last line was begun."""
    begun: set[str] = set()
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            (begun.add if line[:1] == "+" else begun.discard)(line[1:])
    return begun


def crash_of(data: bytes, max_pixels: int, reduce_to: int | None) -> str:
    """Decode an image in a process of its own; return how that died, or an empty string."""
    code = (
        "import sys; from shared.images import ImageError, decode\n"
        "try: decode(sys.stdin.buffer.read(), "
        f"max_pixels={max_pixels!r}, reduce_to={reduce_to!r})\n"
        "except ImageError: pass"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=data,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"decoding takes over {SECONDS} s"
    return f"decoding kills the process (status {done.returncode})" if done.returncode else ""
