"""What the report says of images that are copies of another dataset's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curate.catalogue.collection import Collection, Numbers
from curate.dedup.chains import load_chains
from curate.dedup.several import Several
from curate.written_cosine import rounded_down

Sets = tuple[tuple[str, Collection], ...]
"""Other datasets, with their names."""


@dataclass(frozen=True)
class Hit:
    """An image of another dataset that one is a copy of."""

    name: str
    """Of the dataset."""
    key: str
    similarity: float

    def __str__(self) -> str:
        return f"cosine {rounded_down(self.similarity)} with {self.key}"


def of_included(seed: str) -> str:
    """Return how the reason of a copy of an image of an included seed ends."""
    return f"of seed {seed}, which is included"


def find_hits(
    folders: tuple[Path, ...], block_size: int, sets: Sets, numbers: Numbers
) -> dict[int, Hit]:
    """Return by number what those of `numbers`, and others of their blocks, are copies of."""
    found = {}
    for block in np.unique(numbers // block_size).tolist():
        if block < 0 or not folders:
            continue
        hits = np.load(folders[block] / "hits.npy")
        similarity = np.load(folders[block] / "similarity.npy")
        for (number, place, row), cosine in zip(hits.tolist(), similarity, strict=True):
            found[number] = _hit(sets, place, row, float(cosine))
    return found


@dataclass(frozen=True)
class Chain:
    """What leads from an image to a holdout image: copies of copies."""

    following: int
    """The next image, as `Several` numbers it, or the image itself where it is a copy of the holdout image."""
    similarity: float
    last: int
    """The image that is a copy of the holdout image."""
    hit: Hit


def find_chains(
    folder: Path | None, sets: Sets, numbers: Numbers, place: int = 0
) -> dict[int, Chain]:
    """Return by number, of those of `numbers` that holdouts drop, the chains.

    The images are of the dataset that has this place among those that are dropped from.
    """
    chains = load_chains(folder, place)
    found = {}
    for row in np.flatnonzero(np.isin(chains.number, numbers)).tolist():
        hit = _hit(
            sets, *(int(chains.place[row]), int(chains.row[row])), float(chains.to_holdout[row])
        )
        found[int(chains.number[row])] = Chain(
            *(int(chains.following[row]), float(chains.similarity[row])),
            *(int(chains.last[row]), hit),
        )
    return found


def describe_chain(chain: Chain, number: int, sets: Sets, by: str = "") -> str:
    """Say which holdout image an image is a copy of, or which copies lead to one that is.

    `number` is the image's own in `Several`, of the crawl and the included seeds, `sets`. `by` says what
    makes it a copy of the next one, {}, where no cosine does.
    """
    said = f"{chain.hit} of holdout {chain.hit.name}"
    if chain.following == number:
        return said
    images = Several(tuple(collection for _, collection in sets))
    following, last = (
        key if place == 0 else f"{key} of included seed {sets[place][0]}"
        for place, key in map(images.find, (chain.following, chain.last))
    )
    by = (by or f"cosine {rounded_down(chain.similarity)} with {{}}").format(following)
    if chain.following == chain.last:
        return f"{by}, which has {said}"
    return f"{by}, a copy of copies up to {last}, which has {said}"


def _hit(sets: Sets, place: int, row: int, cosine: float) -> Hit:
    name, data = sets[place]
    return Hit(name, data.keys(np.array([row]))[0], cosine)
