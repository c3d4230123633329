"""Names the images that were being decoded when a worker died, to the next try of their part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from shared.storage.stores import is_there, publish, remove

FOLDER = "decoding"
"""Of WORK."""


class Journal:
    """The images that are being decoded, on disk; `suspects` are those of a try that died.

    Of a WORK on a store, this machine's own file comes before one that `publish_journals` stored.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.suspects = _unfinished(path)
        self._stream: IO[str]

    def __enter__(self) -> Journal:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self._path.open("a", encoding="utf-8", buffering=1)
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._stream.close()
        if kind is None:
            remove(self._path)

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
    if is_there(path):
        for line in path.read_text(encoding="utf-8").splitlines():
            (begun.add if line[:1] == "+" else begun.discard)(line[1:])
    return begun


def publish_journals(work: Path) -> None:
    """Let the next try of a part read the journals of this machine on any other, through a store."""
    for path in (work / FOLDER).glob("*"):
        publish(path)
