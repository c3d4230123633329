"""The members of every group side by side, so that what looks at whole groups reads a range.

Groups are in the order of the keys of their representatives.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Int64

from curate.catalogue.collection import Collection, Numbers

VERSION = 1
TOGETHER = 65_536
"""Members of the groups of one unit, about: a range of groups is closed when it holds as many."""


def list_members(collection: Collection, groups: Path, *, out: Path) -> dict[str, int]:
    """Write `members.npy` int64, the images of all groups by group and key, and `starts.npy`.

    The latter, int64 [groups + 1], says where each group begins. A reduce.
    """
    numbers = np.flatnonzero(np.load(groups / "grouped.npy", mmap_mode="r"))
    place = collection.place
    group = place[np.load(groups / "representative.npy", mmap_mode="r")[numbers]]
    order = np.lexsort((place[numbers], group))
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    np.save(out / "members.npy", numbers[order])
    np.save(out / "starts.npy", np.append(starts, len(order)).astype(np.int64))
    return {"groups": len(starts)}


def ranges_of(listed: Path) -> list[tuple[int, int]]:
    """Return the ranges of groups, of about `TOGETHER` images each."""
    starts = np.load(listed / "starts.npy", mmap_mode="r")
    ranges, first = [], 0
    while first < len(starts) - 1:
        last = int(np.searchsorted(starts, starts[first] + TOGETHER))
        ranges.append((first, min(last, len(starts) - 1)))
        first = last
    return ranges


def load_members(listed: Path, first: int, last: int) -> tuple[Numbers, Int64[np.ndarray, " m"]]:
    """Return the images of the groups `first` to `last`, and of each which group it is of, from 0."""
    starts = np.load(listed / "starts.npy", mmap_mode="r")[first : last + 1]
    members = np.load(listed / "members.npy", mmap_mode="r")[starts[0] : starts[-1]]
    return np.array(members), np.repeat(np.arange(last - first), np.diff(starts))
