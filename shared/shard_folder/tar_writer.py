"""Writes a tar of many small files as Python's tarfile does in its USTAR format, for less time.

A shard has two headers an image. tarfile takes 25 microseconds for one; here the few fields that
differ are put into one that tarfile made, so that every byte is what tarfile would write.
"""

from __future__ import annotations

import tarfile
from typing import IO

from shared.datasets.tars import BLOCK

_NAME, _SIZE, _SUM = slice(0, 100), slice(124, 136), slice(148, 156)
_LARGEST = 8**11 - 1
"""Bytes of the largest file whose size eleven octal digits tell."""


def _made_by_tarfile(name: str, size: int) -> bytes:
    """Return the header of a file with the defaults: mtime 0, owner 0, no names, mode 0644."""
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry.tobuf(tarfile.USTAR_FORMAT)


_BLANK = bytearray(_made_by_tarfile("", 0))
_BLANK[_SIZE] = bytes(12)
_BLANK[_SUM] = b" " * 8  # as the sum of a header is taken
_REST = bytes(_BLANK)
_SUM_OF_REST = sum(_REST)


def header(name: str, size: int) -> bytes:
    """Return the 512 bytes that stand before a file of `size` bytes.

    ValueError where the format has no room for the name or the size.
    """
    if not name.isascii() or not 0 < len(name) <= 100 or size > _LARGEST or name[-1] == "/":
        return _made_by_tarfile(name, size)
    named, sized = name.encode("ascii"), b"%011o\0" % size
    summed = b"%06o\0 " % (_SUM_OF_REST + sum(named) + sum(sized))
    return (
        named.ljust(100, b"\0")
        + _REST[_NAME.stop : _SIZE.start]
        + sized
        + _REST[_SIZE.stop : _SUM.start]
        + summed
        + _REST[_SUM.stop :]
    )


class TarWriter:
    """Appends files to a tar, in a binary stream that stands at its begin."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.nbytes = 0
        """What is written so far."""

    def add(self, name: str, data: bytes) -> int:
        """Append a file, and return where its bytes begin."""
        place = self.nbytes + BLOCK
        self._stream.write(header(name, len(data)))
        self._stream.write(data)
        if padding := -len(data) % BLOCK:
            self._stream.write(bytes(padding))
        self.nbytes = place + len(data) + padding
        return place

    def close(self) -> None:
        """Write the end; the stream is the caller's to close."""
        end = self.nbytes + 2 * BLOCK
        end += -end % tarfile.RECORDSIZE
        self._stream.write(bytes(end - self.nbytes))
        self.nbytes = end
