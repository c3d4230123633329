"""How far the members of groups are from one another: a map over ranges of groups.

Of a group of more than `SAMPLED` distinct contents, so many are compared with one another: those
whose keys have the least hash. All are compared with the representative.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int64

from curate.catalogue.collection import Collection, Numbers
from curate.catalogue.keyed_order import hash_keys
from curate.dedup.members import load_members
from curate.neighbours.search import cosine, unit

VERSION = 2
SAMPLED = 512
SHAPE = "shape.npz"
_TOGETHER = 8_192
_SEED = 0


def measure_groups(
    collection: Collection,
    groups: Path,
    listed: Path,
    first: int,
    last: int,
    threshold: float,
    *,
    out: Path,
) -> dict[str, int]:
    """Write `shape.npz` of the groups `first` to `last`, an entry of each array for each group.

    `representative` int64, `size`, `contents` and `lent` int64 (images, distinct ones, and those whose
    vector is another's, by which they are compared), `lowest` float32 (the lowest cosine of any two
    members), `to_representative` float32 (the lowest with it), `sampled` bool (whether not all were
    compared for `lowest`). Returns how many are `chains`: two of their members do not reach the threshold.
    """
    members, group = load_members(listed, first, last)
    stands = np.load(groups / "representative.npy", mmap_mode="r")[members]
    starts = np.searchsorted(group, np.arange(last - first))
    distinct = collection.canonical[members] == members
    counts = np.bincount(group, weights=distinct, minlength=last - first).astype(np.int64)
    lowest, sampled = _compare_members(collection, members[distinct], counts)
    to_one = np.minimum.reduceat(_similarity(collection, members, stands), starts)
    np.savez(
        out / SHAPE,
        representative=stands[starts],
        size=np.bincount(group, minlength=last - first),
        contents=counts,
        lent=np.add.reduceat(collection.lent(members).astype(np.int64), starts),
        lowest=np.minimum(lowest, to_one),
        to_representative=to_one,
        sampled=sampled,
    )
    chains = int((np.minimum(lowest, to_one) < np.float32(threshold)).sum())
    return {"groups": last - first, "chains": chains}


def _compare_members(
    collection: Collection, members: Numbers, counts: Int64[np.ndarray, " g"]
) -> tuple[Float32[np.ndarray, " g"], Bool[np.ndarray, " g"]]:
    """Return the lowest cosine of any two members of each group, and whether it was sampled.

    `members` are those of all groups by group, `counts` how many each has. Groups of one size are
    compared together.
    """
    lowest = np.ones(len(counts), np.float32)
    starts = np.concatenate([[0], np.cumsum(counts)])
    for size in np.unique(counts[counts > 1]).tolist():
        own = np.flatnonzero(counts == size)
        taken = min(size, SAMPLED)
        step = max(1, _TOGETHER // taken)
        for at in range(0, len(own), step):
            some = own[at : at + step]
            numbers = members[starts[some][:, None] + np.arange(size)]
            if size > taken:
                numbers = np.stack([_sample(collection, each) for each in numbers])
            lowest[some] = _lowest_cosines(collection, numbers)
    return lowest, counts > SAMPLED


def _sample(collection: Collection, members: Numbers) -> Int64[np.ndarray, " s"]:
    hashes = hash_keys(collection, members, _SEED)
    return members[np.argsort(hashes, kind="stable")[:SAMPLED]]


def _lowest_cosines(
    collection: Collection, numbers: Int64[np.ndarray, "g s"]
) -> Float32[np.ndarray, " g"]:
    count, size = numbers.shape
    units = unit(collection.vectors(numbers.reshape(-1))).reshape(count, size, -1)
    wide = units.astype(np.float64)
    products = (wide @ wide.transpose(0, 2, 1)).reshape(count, -1)
    one, other = np.divmod(products.argmin(1), size)
    every = np.arange(count)
    return cosine(units[every, one], units[every, other])


def _similarity(
    collection: Collection, members: Numbers, stands: Numbers
) -> Float32[np.ndarray, " m"]:
    """Return the cosine of each image with the one that stands for it: 1 of the same bytes."""
    own, other = collection.canonical[members], collection.canonical[stands]
    result = np.ones(len(members), np.float32)
    differ = np.flatnonzero(own != other)
    for at in range(0, len(differ), _TOGETHER):
        some = differ[at : at + _TOGETHER]
        vectors = (unit(collection.vectors(numbers[some])) for numbers in (own, other))
        result[some] = cosine(*vectors)
    return result
