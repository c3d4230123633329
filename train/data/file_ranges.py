"""Reads byte ranges of files, here or behind a URL, as a worker that picks images out of shards does."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from shared.keys import shown
from shared.pictures.images import ImageError
from shared.storage.failures import kind_of, retry
from shared.storage.remote import is_remote
from train.data.signed_ranges import SignedRanges

_MOST_OPEN = 128
_AT_ONCE = 16
"""Ranges that a remote file system is asked for together, which it answers side by side."""
_AHEAD = 4
"""So many times as many are under way while those before them are decoded."""


@dataclass(frozen=True)
class Range:
    """`size` bytes at `offset` of a file that had `file_size` bytes when it was listed, if known."""

    location: str
    offset: int
    size: int
    file_size: int | None


class FileRanges:
    """Keeps the local files it opened last open, so that one range is one read. For one thread."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}
        self._signed = SignedRanges()

    def read(self, ranges: Sequence[Range]) -> Iterator[bytes | ImageError]:
        """Yield for each range its bytes, or the reason why they are not to be had.

        Ranges behind a URL are asked for many at a time, ahead of those that are yielded, and again
        where the network fails.
        """
        if not any(is_remote(wanted.location) for wanted in ranges):
            yield from map(self._read_local, ranges)
            return
        groups = [ranges[at : at + _AT_ONCE] for at in range(0, len(ranges), _AT_ONCE)]
        with ThreadPoolExecutor(_AHEAD) as pool:
            ahead = deque(pool.submit(self._read_systems, group) for group in groups[:_AHEAD])
            for number, group in enumerate(groups):
                answers = ahead.popleft().result()
                if number + _AHEAD < len(groups):
                    ahead.append(pool.submit(self._read_systems, groups[number + _AHEAD]))
                for wanted in group:
                    remote = answers.get(_protocol(wanted))
                    yield self._read_local(wanted) if remote is None else next(remote)

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def _read_local(self, wanted: Range) -> bytes | ImageError:
        try:
            descriptor = self._descriptor(wanted)
            data = os.pread(descriptor, wanted.size, wanted.offset)
            while len(data) < wanted.size:  # some network file systems stop early
                some = os.pread(descriptor, wanted.size - len(data), wanted.offset + len(data))
                if not some:
                    break
                data += some
        except OSError as error:
            self._forget(wanted.location)
            return ImageError(f"the file cannot be read: {error.strerror or error}")
        except ImageError as error:
            return error
        return _whole(data, wanted)

    def _read_systems(self, ranges: Sequence[Range]) -> dict[str, Iterator[bytes | ImageError]]:
        """Return by protocol the answers to those ranges that are remote, in their order."""
        systems: dict[str, list[Range]] = {}
        for wanted in ranges:
            if is_remote(wanted.location):
                systems.setdefault(_protocol(wanted), []).append(wanted)
        return {name: iter(self._read_remote(of_one)) for name, of_one in systems.items()}

    def _read_remote(self, ranges: Sequence[Range]) -> list[bytes | ImageError]:
        """Return the bytes of ranges of one remote file system, or the reasons."""
        signed = self._signed.read(ranges)
        others = iter(_ask([w for w, answer in zip(ranges, signed, strict=True) if answer is None]))
        answers = [next(others) if answer is None else answer for answer in signed]
        return [_whole(answer, wanted) for answer, wanted in zip(answers, ranges, strict=True)]

    def _descriptor(self, wanted: Range) -> int:
        descriptor = self._open.get(wanted.location)
        if descriptor is None:
            if len(self._open) >= _MOST_OPEN:
                self._forget(next(iter(self._open)))  # the one that was opened first
            descriptor = os.open(wanted.location, os.O_RDONLY | os.O_CLOEXEC)
            self._open[wanted.location] = descriptor
            now = os.fstat(descriptor).st_size
            if wanted.file_size not in (None, now):
                self._forget(wanted.location)
                raise ImageError(
                    f"{shown(wanted.location)} has changed since it was listed: {now} bytes, not "
                    f"{wanted.file_size}"
                )
        return descriptor

    def _forget(self, location: str) -> None:
        descriptor = self._open.pop(location, None)
        if descriptor is not None:
            os.close(descriptor)


def _protocol(wanted: Range) -> str:
    return wanted.location.partition("://")[0] if is_remote(wanted.location) else ""


def _ask(ranges: Sequence[Range]) -> list[bytes | Exception]:
    """Return what fsspec has of ranges of one file system, asked again where a failure may pass."""
    import fsspec

    places = [fsspec.core.url_to_fs(wanted.location) for wanted in ranges]
    answers: list[bytes | Exception] = [b""] * len(ranges)
    missing = [number for number, wanted in enumerate(ranges) if wanted.size]

    def ask() -> None:
        some = places[0][0].cat_ranges(
            [places[n][1] for n in missing],
            [ranges[n].offset for n in missing],
            [ranges[n].offset + ranges[n].size for n in missing],
            on_error="return",
        )
        for number, answer in zip(missing, some, strict=True):
            answers[number] = answer
        missing[:] = [n for n in missing if _may_pass(answers[n])]
        for n in missing[:1]:
            if isinstance(error := answers[n], Exception):
                raise error

    if missing:
        try:
            retry(ask)
        except Exception as error:
            if error not in answers:
                raise
    return answers


def _may_pass(answer: bytes | Exception) -> bool:
    return isinstance(answer, Exception) and kind_of(answer) == "transient"


def _whole(answer: bytes | Exception, wanted: Range) -> bytes | ImageError:
    if isinstance(answer, Exception):
        reason = " ".join(str(answer).split())[:200] or type(answer).__name__
        return ImageError(f"the file cannot be fetched: {reason}")
    if len(answer) != wanted.size:
        return ImageError(f"the file ends early: {len(answer)} of {wanted.size} bytes")
    return answer
