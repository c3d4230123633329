"""Lists the members of an untrusted tar: byte ranges only, nothing is extracted or interpreted.

The standard library parses each header; the walk over them is our own, because `tarfile`'s follows
negative sizes and chains of extended headers without end, reads headers of any size into
memory, and stops at the first damaged one without a word.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from shared.keys import shown

BLOCK = 512
_SCAN = 8 << 20  # bytes read at once while looking for the next header
_LARGEST_EXTENSION = 1 << 20  # bytes of a long name or of pax records; real ones are under a page


@dataclass(frozen=True)
class TarEntry:
    """A regular file in a tar: where its bytes are, or why (`problem`) they are not to be had."""

    name: str
    offset: int
    size: int
    problem: str = ""


def walk_tar(descriptor: int, problems: list[str]) -> Iterator[TarEntry]:
    """Yield the regular files of a tar in their order there.

    Damage is no exception: it is appended to `problems`, and the walk goes on at the next header.
    """
    end = os.fstat(descriptor).st_size
    if end == 0:
        problems.append("not a tar file: 0 bytes")
        return
    position, ended, found = 0, False, False
    extension: dict[str, str] = {}  # what long-name and pax headers say of the next member
    while position < end:
        block = os.pread(descriptor, BLOCK, position)
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            size = info.size if info.size >= 0 else None
        except tarfile.EOFHeaderError:
            ended, position = True, _next_header(descriptor, position + BLOCK, end)
            continue
        except tarfile.HeaderError:
            size = None
        if size is None:
            resumed = _next_header(descriptor, position + BLOCK, end)
            problems.append(_damage(position, resumed, end, found))
            if resumed == end:
                return
            extension, position = {}, resumed
            continue
        found, ended = True, False
        data = position + BLOCK
        position = data + (size + BLOCK - 1) // BLOCK * BLOCK
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            if size > _LARGEST_EXTENSION:
                problems.append(f"extended header of {size} bytes at byte {data - BLOCK}: not read")
            else:
                extension |= _extension(info.type, os.pread(descriptor, size, data))
            continue
        if info.type in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            continue
        extended, extension = extension, {}
        if info.type == tarfile.GNUTYPE_SPARSE and block[482]:
            position = _after_sparse_headers(descriptor, data, size)
        if extended.get("size", "").isdecimal() and len(extended["size"]) < 20:
            size = int(extended["size"])
            position = data + (size + BLOCK - 1) // BLOCK * BLOCK
        name = extended.get("GNU.sparse.name") or extended.get("path") or info.name
        if info.isreg():
            problem = ""
            if data + size > end:
                problem = "tar ends inside this member"
            elif info.type == tarfile.GNUTYPE_SPARSE or any("sparse" in key for key in extended):
                problem = "sparse tar members are not read"
            yield TarEntry(shown(name), data, size, problem)
    if position > end:
        problems.append(f"tar ends early at byte {end}, inside a member")
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


def _next_header(descriptor: int, position: int, end: int) -> int:
    """Return where the next block with a valid header and the ustar magic begins, or `end`."""
    while position < end:
        chunk = os.pread(descriptor, _SCAN, position)
        blocks = np.frombuffer(chunk, np.uint8, len(chunk) // BLOCK * BLOCK).reshape(-1, BLOCK)
        magic = (blocks[:, 257:262] == np.frombuffer(b"ustar", np.uint8)).all(axis=1)
        for index in np.flatnonzero(magic):
            if _is_header(blocks[index].tobytes()):
                return position + int(index) * BLOCK
        position += _SCAN
    return end


def _is_header(block: bytes) -> bool:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").size >= 0
    except tarfile.HeaderError:
        return False


def _extension(kind: bytes, data: bytes) -> dict[str, str]:
    """Return what a long-name or pax header says; what is malformed in it says nothing."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.partition(b"\0")[0].decode("utf-8", "surrogateescape")}
    said = {}
    while data:
        digits = data.partition(b" ")[0]
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        if not len(digits) + 1 < length <= len(data):
            break
        key, _, value = data[len(digits) + 1 : length - 1].partition(b"=")
        said[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        data = data[length:]
    return said


def _after_sparse_headers(descriptor: int, position: int, size: int) -> int:
    """Return where the member after an old GNU sparse one begins: its map may take more blocks."""
    more = True
    while more:
        block = os.pread(descriptor, BLOCK, position)
        more = len(block) == BLOCK and bool(block[504])
        position += BLOCK
    return position + (size + BLOCK - 1) // BLOCK * BLOCK
