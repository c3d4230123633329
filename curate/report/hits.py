"""What the report says of images that are copies of another dataset's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curate.catalogue.collection import Collection, Numbers

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


def find_hits_of_groups(
    selected: Path, sets: Sets, representative: Numbers
) -> dict[int, tuple[int, Hit]]:
    """Return by representative which member of its group is hit best, and by what."""
    held = np.load(selected / "held.npy", mmap_mode="r")
    here = np.flatnonzero(np.isin(held[:, 0], representative))
    similarity = np.load(selected / "held_similarity.npy", mmap_mode="r")[here].tolist()
    return {
        group: (member, _hit(sets, place, row, cosine))
        for (group, member, place, row), cosine in zip(held[here].tolist(), similarity, strict=True)
    }


def _hit(sets: Sets, place: int, row: int, cosine: float) -> Hit:
    name, data = sets[place]
    return Hit(name, data.keys(np.array([row]))[0], cosine)
