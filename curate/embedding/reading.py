"""Reads, checks and decodes the images of a part: what is found of each, and what embedders are to see."""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import UInt8

from curate.embedding.decoder import Decoder
from curate.embedding.previous import Previous
from curate.embedding.threads import LeftBehindError
from curate.filters.look import Look
from shared.datasets.parts import Member, PartReader
from shared.embedders.embedder import Preparation
from shared.pictures.images import Header, ImageError, read_header

LONGEST_SIDE = 2**31 - 1
"""The longest side that the facts can hold; hostile headers say more."""
Prepared = UInt8[np.ndarray, "h w 3"]
"""The input of an embedder."""


@dataclass
class Picture:
    """What is found of an image's bytes; rows of the same bytes share it."""

    header: Header | None = None
    problem: str = ""
    contrast: float = 0.0
    earlier: int = -1
    """The row of the same bytes in an earlier state of the part, whose results stand."""
    prepared: dict[int, Prepared] = field(default_factory=dict)
    """What each embedder is to see, by its place in the request."""
    looks: dict[str, Any] = field(default_factory=dict)
    """What was taken of the picture, by column."""


@dataclass
class Row:
    """An image of a part, in the order of the part, with what was found of its bytes."""

    member: Member
    size: int
    picture: Picture
    sha256: str | None = None


@dataclass(frozen=True)
class Reading:
    """Reads, checks and decodes one image; safe in threads."""

    reader: PartReader
    decoder: Decoder
    preparations: tuple[Preparation, ...]
    wanted: tuple[int, ...]
    previous: Previous | None
    measured: bool
    """Whether the facts are missing, and so the contrast."""
    looks: tuple[Look, ...]
    """Those whose units are missing."""
    only: frozenset[str] | None = None
    """The sha256 of those that are wanted; None: all."""
    taken: dict[str, tuple[str, Future[Picture]]] = field(default_factory=dict)
    """By the hash of the bytes, the key of the image whose picture is taken, and what is found."""

    def __call__(self, member: Member) -> Row:
        """Return an image's row, with the problem in it where it cannot be read or decoded."""
        row = Row(member, member.size, Picture(problem=member.problem))
        if member.problem:
            return row
        try:
            data = self.reader.read(member)
        except ImageError as error:
            row.picture.problem = str(error) or "unreadable"
            return row
        row.size, row.sha256 = len(data), hashlib.sha256(data).hexdigest()
        if self.only is None or row.sha256 in self.only:
            row.picture = self._take_once(member.key, row.sha256, data)
        return row

    def _take_once(self, key: str, sha256: str, data: bytes) -> Picture:
        """Take the picture, or wait for the thread that takes it of the same bytes."""
        taker, taken = self.taken.setdefault(sha256, (key, Future()))
        if taker == key:  # or its thread was left behind, and this is another
            try:
                taken.set_result(self._take(key, sha256, data))
            except LeftBehindError:
                raise
            except BaseException as error:  # that of all rows of these bytes
                taken.set_exception(error)
        return taken.result()

    def _take(self, key: str, sha256: str, data: bytes) -> Picture:
        picture = Picture()
        if self.previous is not None and (earlier := self.previous.rows.get(sha256)):
            picture.earlier, picture.header, picture.problem, picture.contrast = earlier
            self._look_again(picture, key, data)
            return picture
        try:
            header = read_header(data)
            if max(header.width, header.height) > LONGEST_SIDE:
                raise ImageError(f"its header says {header.width} x {header.height} pixels")
            picture.header = header
            self._decode(picture, header, key, data)
        except ImageError as error:
            picture.problem = str(error) or "unreadable"
        return picture

    def _look_again(self, picture: Picture, key: str, data: bytes) -> None:
        """Take what was taken of an earlier state, or take it of the picture where nothing was."""
        assert self.previous is not None
        for look in self.looks:
            if look.name in self.previous.looks:
                picture.looks |= self.previous.looks[look.name][picture.earlier]
            elif picture.header is not None:
                with suppress(ImageError):
                    image = self.decoder.decode(key, data, picture.header, look.side)
                    picture.looks |= look.take(image)

    def _decode(self, picture: Picture, header: Header, key: str, data: bytes) -> None:
        """Prepare the image for each embedder, from one decode for each scale they look at."""
        first = self.preparations[0]
        by_scale: dict[int | None, list[int]] = {first.reduce_to: []} if self.measured else {}
        for place in self.wanted:
            scale = self.preparations[place].reduce_to
            by_scale.setdefault(scale, []).append(place)
        scales = dict.fromkeys([*by_scale, *(look.side for look in self.looks)])
        for same in _same_scale(header, scales):
            try:
                image = self.decoder.decode(key, data, header, same[0])
            except ImageError:
                if by_scale.keys().isdisjoint(same):  # only for looks: that is no fact of the image
                    continue
                raise
            for scale in same:
                if scale == first.reduce_to:
                    picture.contrast = _contrast(image)
                for look in self.looks:
                    if look.side == scale:
                        picture.looks |= look.take(image)
                for place in by_scale.get(scale, ()):
                    picture.prepared[place] = self.preparations[place].prepare(image)


def _same_scale(header: Header, scales: Iterable[int | None]) -> list[list[int | None]]:
    """Return the sides to reduce to, those together that a JPEG's decoder answers with one scale."""
    groups: dict[int, list[int | None]] = defaultdict(list)
    short = min(header.width, header.height)
    for side in scales:
        scale = 1
        if side is not None and header.format == "jpeg":
            while scale < 8 and short >= 2 * scale * side:
                scale *= 2
        groups[scale].append(side)
    return list(groups.values())


def once_each(rows: Iterable[Row], wanted: frozenset[str]) -> Iterator[Row]:
    """Yield the first row of each of the wanted sha256."""
    left = set(wanted)
    for row in rows:
        if row.sha256 in left:
            left.remove(row.sha256)
            yield row


def read_ahead(
    members: list[Member], read: Reading, ahead: int, threads: int
) -> Generator[Row, None, None]:
    """Yield the rows in the members' order, decoded by threads, `ahead` images ahead of time."""
    waiting: deque[Future[Row]] = deque()
    with read.decoder.threads(threads) as readers:
        for member in members:
            waiting.append(readers.submit(read, member))
            if len(waiting) > ahead:
                yield readers.result(waiting.popleft())
        while waiting:
            yield readers.result(waiting.popleft())


def _contrast(image: Any) -> float:
    small = image.reduce(max(1, min(image.size) // 64)) if min(image.size) >= 128 else image
    return float(np.asarray(small.convert("L"), np.float64).std())
