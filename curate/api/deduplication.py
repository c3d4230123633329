"""`dedup`: groups of copies among vectors, and by a look at pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Int8, Int64
from PIL import Image
from pydantic import ValidationError

from curate.api.arrays import checked
from curate.api.embedding import Picture, to_image
from curate.catalogue.originals import PartBytes
from curate.dedup.below import (
    NEAREST,
    add_pairs,
    budget,
    draw_sample,
    floor_of,
    look_while_it_pays,
    most_similar,
)
from curate.dedup.groups import (
    COVERED,
    REPRESENTATIVE,
    UNDECIDED,
    EdgeBuffer,
    decide,
    sorted_edges,
)
from curate.dedup.looks import join_pairs
from curate.dedup.most_similar import MostSimilar
from curate.dedup.near import DedupSettings
from curate.dedup.pictures import decode_for_look
from curate.embedding.request import EmbedSettings
from curate.neighbours.search import Searchable, cosine, neighbours, unit, use_threads
from curate.pixels.same import is_clear_copy
from shared.datasets.dataset import DatasetSettings, list_parts
from shared.datasets.parts import Member, PartReader

Pictures = str | Path | Sequence[Picture | str | Path]
"""What `embed` takes for a dataset, or a picture for each row: in memory, or the path of its file."""
See = Callable[[int], Image.Image | None]
"""Gives the RGB picture of a row, None where it cannot be decoded."""


@dataclass(frozen=True)
class Groups:
    """Who stands for whom among n images."""

    representative: Int64[np.ndarray, " n"]
    """The row of the image that stands for each, its own where it is one; -1 without a vector."""
    similarity: Float32[np.ndarray, " n"]
    """The cosine with that one: 1 where it is the image itself, nan without a vector."""

    @property
    def kept(self) -> Bool[np.ndarray, " n"]:
        """Tell of each image whether it stands for itself."""
        own: Bool[np.ndarray, " n"] = self.representative == np.arange(len(self.representative))
        return own

    def members(self) -> dict[int, list[int]]:
        """Return the rows of each group of two or more, by its representative."""
        found: dict[int, list[int]] = {}
        for row, stands in enumerate(self.representative.tolist()):
            if stands >= 0:
                found.setdefault(stands, []).append(row)
        return {stands: rows for stands, rows in found.items() if len(rows) > 1}


def dedup(
    vectors: Float[np.ndarray, "n d"],
    threshold: float,
    *,
    groups: Literal["greedy", "components"] = "greedy",
    best: Sequence[int] | Int64[np.ndarray, " n"] | None = None,
    edges_per_image: int = 64,
    pictures: Pictures | None = None,
    looks: float | None = None,
    look_floor: float | None = None,
    threads: int = 1,
) -> Groups:
    """Group copies: images whose cosine reaches `threshold`, inclusive, from -1 to 1.

    All pairs are compared. `best` are the rows from the best image to the worst, by default as they
    stand: the best of a group stands for it. `greedy`: every member reaches the threshold with its
    representative; `components`: whatever is connected is one group. Vectors need not be of
    length 1; one of zeros takes no part.

    With `pictures` the most similar pairs below the threshold are looked at, as a run does: what is one
    picture for certain, and no drawing, is a copy. They are those of the rows: the path that `embed`
    was given, or a picture for each row. `looks` and `look_floor` are those of `dedup` in a pipeline.

    Raises ValueError for other shapes, what is not finite, a `best` that is no order of all rows, and
    pictures that are not as many as the rows; LvdError where there are none at the path.
    """
    stored = checked("vectors", vectors)
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}: a cosine lies between -1 and 1")
    settings = _settings(groups, threshold, pictures, looks, look_floor)
    row_of = np.arange(len(stored)) if best is None else np.asarray(best, np.int64)
    if not np.array_equal(np.sort(row_of), np.arange(len(stored))):
        raise ValueError(f"best must name each of the {len(stored)} rows once")
    use_threads(threads)
    rank = np.empty(len(stored), np.int64)
    rank[row_of] = np.arange(len(stored))
    has = (stored != 0).any(1)
    status = np.where(has[row_of], UNDECIDED, COVERED).astype(np.int8)
    chosen = np.full(len(stored), -1, np.int64)
    undecided = len(stored)
    while undecided:
        alive = np.flatnonzero(status[rank] != COVERED)
        found = _edges(Searchable(stored[alive], alive), rank, threshold, groups, edges_per_image)
        undecided = decide(*found, groups, edges_per_image, status, chosen)
    if pictures is not None:
        with _seen(pictures, len(stored)) as see:
            most, in_round = budget(settings.looks, len(np.unique(stored[has], axis=0)))
            asked = threshold, settings, most, in_round
            pairs = _pairs_below(stored, rank, row_of, status, *asked)
            edges = _confirmed(pairs, in_round, rank, see)
            chosen = join_pairs(edges, groups, status, chosen)
    representative = np.where(chosen >= 0, row_of[chosen], -1)[rank]
    similarity = np.full(len(stored), np.nan, np.float32)
    similarity[has] = cosine(unit(stored[has]), unit(stored[representative[has]]))
    similarity[representative == np.arange(len(stored))] = 1
    return Groups(representative, similarity)


def _settings(
    groups: Literal["greedy", "components"],
    threshold: float,
    pictures: Pictures | None,
    looks: float | None,
    look_floor: float | None,
) -> DedupSettings:
    asked = {"looks": looks, "look_floor": look_floor}
    said = {name: value for name, value in asked.items() if value is not None}
    if said and pictures is None:
        raise ValueError(f"{min(said)} is for a look at pictures: give pictures, or leave it out")
    try:
        return DedupSettings(groups=groups, threshold=threshold, **said)
    except ValidationError as error:
        [first, *_] = error.errors()
        raise ValueError(": ".join(["dedup", *map(str, first["loc"]), first["msg"]])) from None


def _pairs_below(
    stored: Float[np.ndarray, "n d"],
    rank: Int64[np.ndarray, " n"],
    row_of: Int64[np.ndarray, " n"],
    status: Int8[np.ndarray, " n"],
    threshold: float,
    settings: DedupSettings,
    most: int,
    in_round: int,
) -> Int64[np.ndarray, "p 2"]:
    """Return the rows of the `most` most similar pairs that the threshold leaves apart, by rounds."""
    asking = np.flatnonzero(status[rank] == REPRESENTATIVE)
    sample = draw_sample(asking, settings.seed)
    floor = floor_of(Searchable(stored[sample], sample), len(asking), threshold, settings)
    if floor >= threshold or not most:
        return np.empty((0, 2), np.int64)
    kept, queries = MostSimilar(NEAREST), Searchable(stored[asking], asking)
    add_pairs(kept, queries, np.arange(len(asking)), queries, rank, floor)
    return most_similar(kept, row_of, most, in_round)[0]


def _confirmed(
    pairs: Int64[np.ndarray, "p 2"], in_round: int, rank: Int64[np.ndarray, " n"], see: See
) -> Int64[np.ndarray, "c 2"]:
    """Return the edges between ranks of the pairs of rows that are one picture for certain."""
    verdicts = np.zeros(len(pairs), bool)

    def look_at(first: int, last: int) -> int:
        for place, pair in enumerate(pairs[first:last].tolist(), first):
            one, other = map(see, pair)
            verdicts[place] = one is not None and other is not None and is_clear_copy(one, other)
        return int(verdicts[first:last].sum())

    look_while_it_pays(len(pairs), in_round, look_at)
    return sorted_edges([rank[pairs[verdicts]]])


@contextmanager
def _seen(pictures: Pictures, rows: int) -> Iterator[See]:
    """Give what sees the picture of a row; ValueError where there are not as many as `rows`."""
    max_pixels = EmbedSettings().max_pixels
    if isinstance(pictures, str | Path):
        with _members_seen(pictures, rows, max_pixels) as see:
            yield see
        return
    _require_as_many(len(pictures), rows)

    def see_one(row: int) -> Image.Image | None:
        picture = pictures[row]
        if isinstance(picture, str | Path):
            return decode_for_look(Path(picture).read_bytes(), max_pixels)
        return to_image(picture, row)

    yield see_one


@contextmanager
def _members_seen(path: str | Path, rows: int, max_pixels: int) -> Iterator[See]:
    """Give what sees the images of a dataset, in the order of `embed`."""
    parts = list_parts("pictures", DatasetSettings(path=str(path)))
    members: list[tuple[int, Member]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for index, part in enumerate(parts):
            with PartReader(part, Path(scratch)) as reader:
                members += [(index, member) for member in reader.members]
        _require_as_many(len(members), rows)
        members.sort(key=lambda member: member[1].key.encode())
        with PartBytes(parts, Path(scratch)) as read:

            def see(row: int) -> Image.Image | None:
                index, member = members[row]
                data = read.read(index, member.key, member.member, member.offset, member.size)
                return decode_for_look(data, max_pixels)

            yield see


def _require_as_many(pictures: int, rows: int) -> None:
    if pictures != rows:
        raise ValueError(f"there are {pictures} pictures and {rows} vectors: give one for each row")


def _edges(
    alive: Searchable,
    rank: Int64[np.ndarray, " n"],
    threshold: float,
    groups: Literal["greedy", "components"],
    edges_per_image: int,
) -> tuple[Int64[np.ndarray, "e 2"], Int64[np.ndarray, " t"]]:
    edges = EdgeBuffer(groups, edges_per_image)
    for row, found in neighbours(alive, np.arange(len(alive)), alive, threshold):
        a, b = rank[alive.numbers[row]], rank[alive.numbers[found]]
        edges.add(np.maximum(a, b), np.minimum(a, b))
    return edges.result()
