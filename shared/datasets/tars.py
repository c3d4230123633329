"""Lists the members of an untrusted tar: byte ranges only, nothing is extracted or interpreted.

The standard library parses each header; the walk over them is our own, because `tarfile`'s follows
negative sizes and chains of extended headers without end, reads headers of any size into
memory, and stops at the first damaged one without a word.
"""

from __future__ import annotations

import os
import posixpath
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from shared.keys import shown

BLOCK = 512
_SCAN = 8 << 20  # bytes read at once while looking for the next header
_LARGEST_EXTENSION = 1 << 20  # bytes of a long name or of pax records; real ones are under a page
_MOST_LINKS = 40  # as Linux
_LONG = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}
_EXTENSIONS = {*_LONG, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE}
_RECORD_LENGTH = re.compile(rb"(\d{1,7}) ")


@dataclass(frozen=True)
class TarEntry:
    """A file in a tar: where its bytes are, or why (`problem`) they are not to be had."""

    name: str
    offset: int
    size: int
    problem: str = ""
    link: str = ""
    """The path in the tar that this leads to, "" for a file with bytes of its own."""
    hard: bool = False
    """Whether it leads to what had that path when this member was written."""


class TarBytes(Protocol):
    """The bytes of a tar, wherever they are."""

    size: int

    def read(self, size: int, offset: int) -> bytes:
        """Return `size` bytes at `offset`, fewer where the tar ends before."""


class _Descriptor:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size

    def read(self, size: int, offset: int) -> bytes:
        return os.pread(self._descriptor, size, offset)


def list_tar(tar: int | TarBytes, problems: list[str]) -> list[TarEntry]:
    """Return the files of a tar in their order there; links have the bytes of what they name.

    `tar` is the descriptor of an open file, or what reads its bytes; headers are all that is read.

    Damage is no exception: it is appended to `problems`, and reading goes on at the next header.
    """
    entries: list[TarEntry] = []
    named: dict[str, TarEntry] = {}
    for entry in _walk(_Descriptor(tar) if isinstance(tar, int) else tar, problems):
        if entry.hard and entry.link in named:
            entry = replace(named[entry.link], name=entry.name)
        entries.append(entry)
        named[_path(entry.name)] = entry
    return [_followed(entry, named) for entry in entries]


def _followed(entry: TarEntry, named: dict[str, TarEntry]) -> TarEntry:
    target = entry
    for _ in range(_MOST_LINKS):
        if not target.link:
            return replace(target, name=entry.name)
        if target.link not in named:
            problem = f"a link to {target.link[:200]}, which is not in the tar"
            return TarEntry(entry.name, entry.offset, 0, problem)
        target = named[target.link]
    return TarEntry(entry.name, entry.offset, 0, "a link in a circle of links")


def _path(name: str) -> str:
    return posixpath.normpath(name.lstrip("/"))


def _walk(tar: TarBytes, problems: list[str]) -> Iterator[TarEntry]:
    """Yield the regular files and links of a tar in their order there."""
    end = tar.size
    if end == 0:
        problems.append("not a tar file: 0 bytes")
        return
    position, content_end, ended, found = 0, 0, False, False
    headers = _Headers(tar)
    extension: dict[str, str] = {}  # what long-name and pax headers say of the next member
    while position < end:
        block = tar.read(BLOCK, position)
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            size = info.size if info.size >= 0 else None
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # typeshed lacks it
            ended, position = True, headers.next(position + BLOCK)
            continue
        except tarfile.HeaderError:
            size = None
        if size is None:
            resumed = headers.next(position + BLOCK)
            problems.append(_damage(position, resumed, end, found))
            if resumed == end:
                return
            extension, position = {}, resumed
            continue
        found, ended = True, False
        data = position + BLOCK
        content_end = data + size
        position = data + (size + BLOCK - 1) // BLOCK * BLOCK
        if info.type in _EXTENSIONS:
            if size > _LARGEST_EXTENSION:
                problems.append(f"extended header of {size} bytes at byte {data - BLOCK}: not read")
            else:
                extension |= _extension(info.type, tar.read(size, data))
            continue
        if info.type == tarfile.XGLTYPE:
            continue
        extended, extension = extension, {}
        if info.type == tarfile.GNUTYPE_SPARSE and block[482]:
            content_end = _after_sparse_headers(tar, data) + size
            position = (content_end + BLOCK - 1) // BLOCK * BLOCK
        if extended.get("size", "").isdecimal() and len(extended["size"]) < 20:
            size = int(extended["size"])
            content_end = data + size
            position = data + (size + BLOCK - 1) // BLOCK * BLOCK
        name = extended.get("GNU.sparse.name") or extended.get("path") or info.name
        if info.isreg():
            problem = ""
            if data + size > end:
                problem = "tar ends inside this member"
            elif info.type == tarfile.GNUTYPE_SPARSE or any("sparse" in key for key in extended):
                problem = "sparse tar members are not read"
            yield TarEntry(shown(name), data, size, problem)
        elif info.type in (tarfile.LNKTYPE, tarfile.SYMTYPE):
            target, hard = extended.get("linkpath") or info.linkname, info.type == tarfile.LNKTYPE
            target = target if hard else posixpath.join(posixpath.dirname(name), target)
            yield TarEntry(shown(name), data, 0, link=_path(shown(target)), hard=hard)
    if position > end:
        where = "a member" if content_end > end else "the padding of a whole member"
        problems.append(f"tar ends early at byte {end}, inside {where}")
    elif not ended and found:
        problems.append(f"tar ends early at byte {end}, without an end mark")


def _damage(position: int, resumed: int, end: int, found: bool) -> str:
    if resumed < end:
        return f"bad tar header at byte {position}: reading went on at byte {resumed}"
    if not found:
        return "not a tar file"
    if end - position < BLOCK:
        return f"tar ends early at byte {end}, inside a header"
    return f"bad tar header at byte {position}: nothing could be read after it"


class _Headers:
    """Finds the next header behind damage; it reads each stretch of the file once."""

    def __init__(self, tar: TarBytes) -> None:
        self._tar, self._end = tar, tar.size
        self._stop = 0
        self._magic = np.empty(0, np.int64)

    def next(self, position: int) -> int:
        """Return where the next block with a valid header and the ustar magic begins, or the end.

        Positions never go back.
        """
        while position < self._end:
            if position >= self._stop:
                self._scan(position)
            for at in map(int, self._magic[np.searchsorted(self._magic, position) :]):
                if _is_header(self._tar.read(BLOCK, at)):
                    return at
            position = self._stop
        return self._end

    def _scan(self, position: int) -> None:
        chunk = self._tar.read(_SCAN, position)
        blocks = np.frombuffer(chunk, np.uint8, len(chunk) // BLOCK * BLOCK).reshape(-1, BLOCK)
        magic = (blocks[:, 257:262] == np.frombuffer(b"ustar", np.uint8)).all(axis=1)
        self._magic = position + np.flatnonzero(magic) * BLOCK
        self._stop = position + _SCAN


def _is_header(block: bytes) -> bool:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").size >= 0
    except tarfile.HeaderError:
        return False


def _extension(kind: bytes, data: bytes) -> dict[str, str]:
    """Return what a long-name or pax header says; what is malformed in it says nothing."""
    if kind in _LONG:
        return {_LONG[kind]: data.partition(b"\0")[0].decode("utf-8", "surrogateescape")}
    said = {}
    at = 0
    while number := _RECORD_LENGTH.match(data, at):
        length = int(number[1])
        if not number.end() - at < length <= len(data) - at:
            break
        key, _, value = data[number.end() : at + length - 1].partition(b"=")
        said[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        at += length
    return said


def _after_sparse_headers(tar: TarBytes, position: int) -> int:
    """Return where the content of an old GNU sparse member begins: its map may take more blocks."""
    more = True
    while more:
        block = tar.read(BLOCK, position)
        more = len(block) == BLOCK and bool(block[504])
        position += BLOCK
    return position
