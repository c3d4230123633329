"""What the report says of images that are copies of another dataset's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curate.catalogue.collection import Collection, Numbers
from curate.dedup.chains import load_chains

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
        return f"cosine {self.similarity:.4f} with {self.key}"


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
    """What leads from a crawled image to a holdout image: copies of copies."""

    following: int
    """The next image, or the image itself where it is a copy of the holdout image."""
    similarity: float
    last: int
    """The image that is a copy of the holdout image."""
    hit: Hit


def find_chains(folder: Path | None, sets: Sets, numbers: Numbers) -> dict[int, Chain]:
    """Return by number, of those of `numbers` that holdouts drop, the chains."""
    chains = load_chains(folder)
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


def _hit(sets: Sets, place: int, row: int, cosine: float) -> Hit:
    name, data = sets[place]
    return Hit(name, data.keys(np.array([row]))[0], cosine)
