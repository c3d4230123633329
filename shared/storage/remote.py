"""Opens and reads files, here or behind a URL; what fails for a moment is tried again."""

from __future__ import annotations

import contextlib
import io
import os
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from shared.errors import LvdError
from shared.keys import shown
from shared.storage.failures import retry

if TYPE_CHECKING:
    from typing_extensions import Buffer

_BUFFER = 1 << 17


def is_remote(path: str) -> bool:
    """Tell a URL from a local path."""
    return "://" in path


@lru_cache(maxsize=1_024)
def locate(root: str, path: str) -> str:
    """Return the full path or URL of a file below a root."""
    return root.rstrip("/") + "/" + path if is_remote(root) else str(Path(root, path))


def open_binary(location: str) -> IO[bytes]:
    """Open a local path or a URL for reading bytes.

    A remote stream that breaks is opened again and goes on where it was; LvdError where the file
    is another one by then.
    """
    if is_remote(location):
        return io.BufferedReader(_RemoteStream(location), _BUFFER)
    return retry(Path(location).open, "rb")


def read_range(location: str, start: int, size: int) -> bytes:
    """Return `size` bytes from `start` of a local file or a URL.

    Raises LvdError where the file ends before, and so changed after it was listed.
    """
    read_some = _read_remote if is_remote(location) else _read_local
    data = b""
    while len(data) < size:
        some = retry(read_some, location, start + len(data), size - len(data))
        if not some:
            raise ends_early(location, start + len(data), start + size)
        data += some
    return data


def prefetch_range(path: str, start: int, size: int) -> None:
    """Tell the system that a range of a local file is read soon; what is wrong, its reader says."""
    if not hasattr(os, "posix_fadvise"):  # macOS
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, start, size, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)


def read_head(location: str, size: int | None, most: int) -> bytes:
    """Return the first bytes, `most` at the most, of a file of `size` bytes, None where unknown.

    Raises LvdError where the file ends before.
    """
    if size is not None:
        return read_range(location, 0, min(size, most))
    with open_binary(location) as source:
        return source.read(most)


def ends_early(location: str, end: int, expected: int) -> LvdError:
    """Return the error of a file that has fewer bytes than when it was listed."""
    return LvdError(
        f"{shown(location)} ends at byte {end}, before byte {expected}: it changed after it was "
        "listed; run the same command again"
    )


def stamp(info: dict[str, Any]) -> str:
    """Return what fsspec's `info` of a file says that changes when its content does, or ""."""
    marks = ("ETag", "etag", "checksum", "md5Hash", "LastModified", "mtime", "created")
    return next((f"{mark}={info[mark]}" for mark in marks if info.get(mark)), "")


def _read_local(location: str, start: int, size: int) -> bytes:
    descriptor = os.open(location, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(descriptor, size, start)
    except OSError as error:
        error.filename = location
        raise
    finally:
        os.close(descriptor)


def _read_remote(location: str, start: int, size: int) -> bytes:
    import fsspec

    system, path = fsspec.core.url_to_fs(location)
    data: bytes = system.cat_file(path, start=start, end=start + size)
    # some web servers know no ranges and send the whole file
    return data if len(data) <= size else data[start : start + size]


class _RemoteStream(io.RawIOBase):
    """A file behind a URL. Seeking costs nothing, even where the file system cannot seek."""

    def __init__(self, location: str) -> None:
        self._location = location
        self._offset = 0
        self._source: Any = None
        self._identity: tuple[int | None, str] | None = None
        retry(self._connect)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._offset

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            self._offset = self._find_end()
        self._offset = max(0, offset + (0 if whence == os.SEEK_SET else self._offset))
        return self._offset

    def readinto(self, buffer: Buffer) -> int:
        data = retry(self._read_some, len(memoryview(buffer)))
        memoryview(buffer)[: len(data)] = data
        self._offset += len(data)
        return len(data)

    def close(self) -> None:
        self._disconnect()
        super().close()

    @property
    def _size(self) -> int | None:
        return self._identity[0] if self._identity else None

    def _find_end(self) -> int:
        """Return the size: where the storage does not tell, the file is read to its end."""
        if self._size is not None:
            return self._size
        while self.readinto(bytearray(_BUFFER)):
            pass
        return self._offset

    def _read_some(self, size: int) -> bytes:
        try:
            self._connect()
            data: bytes = self._source.read(size)
            if not data and size and self._offset < (self._size or 0):
                raise ConnectionResetError(
                    f"{self._location} ended at byte {self._offset} of {self._size}"
                )
        except BaseException:
            self._disconnect()
            raise
        return data

    def _connect(self) -> None:
        """Open the file, unless it is, and stand at the offset."""
        import fsspec

        if self._source is None:
            system, path = fsspec.core.url_to_fs(self._location)
            if self._identity is not None:
                system.invalidate_cache()
            self._source = system.open(path, "rb")
            self._check(getattr(self._source, "details", None) or {})
        if self._source.tell() != self._offset:
            self._move()

    def _check(self, info: dict[str, Any]) -> None:
        identity = (info.get("size", getattr(self._source, "size", None)), stamp(info))
        if self._identity not in (None, identity):
            raise LvdError(
                f"{shown(self._location)} changed while it was read: run the same command again"
            )
        self._identity = identity

    def _move(self) -> None:
        try:
            self._source.seek(self._offset)
        except (ValueError, io.UnsupportedOperation):  # a stream: read up to there, from the start
            if self._source.tell() > self._offset:
                self._disconnect()
                self._connect()
            while (missing := self._offset - self._source.tell()) > 0:
                if not self._source.read(min(missing, _BUFFER)):
                    break

    def _disconnect(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            with contextlib.suppress(Exception):  # what broke may break again
                source.close()
