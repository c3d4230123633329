"""Copies by a hash of the picture: identical hashes are copies, before any vector is compared.

*pca*: the signs of a small grey picture's first principal components, which are fitted on a sample of
the pool. The DINOv2 paper (arXiv 2304.07193, section 3) names a PCA hash and says no more of it: the
sizes are chosen here. *phash*: that of `filters.phash`.

Units: `fit` and `cover_copies` (reduces), and `hash_pictures` (a map over blocks of images). The best
image of each hash goes on; the others are covered, and neither ask nor answer in the search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float64, UInt8, UInt64

from curate.catalogue.collection import Collection
from curate.dedup.groups import COVERED, UNDECIDED, write_groups
from curate.dedup.keep import NUMBER, RANK
from curate.filters import grey

VERSION = 1
BITS = 64
SAMPLED = 100_000
"""Pictures that components are fitted on, at most."""
FEWEST = grey.SIDE**2
"""Distinct pictures that components are fitted on, at least: of fewer none has a hash."""
STEPS = 1 << 15
"""Of a component's weights, which are rounded: sums of them are exact, on any number of threads."""
_TOGETHER = 8_192
FITTED, HASHES, STANDS = "fitted.npz", "hashes.npz", "stands.npy"

HashName = Literal["pca", "phash"]
Hashes = tuple[UInt64[np.ndarray, " n"], Bool[np.ndarray, " n"]]
"""Of each picture, and which of them have one."""


@dataclass(frozen=True)
class HashMethod:
    """How pictures are hashed."""

    look: str
    """The name of the look that takes what it needs, and of that look's column."""
    title: str
    """What people call it."""
    compute: Callable[[pa.ChunkedArray, Path], Hashes]
    """Of the look's column, and the folder of what `fit` wrote."""


@dataclass(frozen=True)
class Hashed:
    """What a pass by hashes found."""

    name: HashName
    stands: Path
    """As `cover_copies` writes it."""
    counts: dict[str, int]

    @property
    def title(self) -> str:
        """What people call the hash."""
        return METHODS[self.name].title

    @property
    def problem(self) -> str | None:
        """What is wrong, if anything."""
        if self.counts["hashed"]:
            return None
        return f"dedup.hash={self.name}: no picture has a hash (pca is fitted on {FEWEST} at least)"


def fit(collection: Collection, name: HashName, seed: int, *, out: Path) -> dict[str, int]:
    """Write `fitted.npz` where the hash is fitted on the pool, on a seeded sample of it.

    `directions` float64 [256, 64], whole numbers: the first principal components, times `STEPS`;
    none of them where there are too few pictures, or these are too alike. `middle` float64 [64]: the
    mean picture along them.
    """
    if name != "pca":
        return {"pictures": 0}
    usable = collection.usable
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.choice(usable, min(SAMPLED, len(usable)), replace=False))
    pictures, _ = _pictures(collection.facts(sample, ["grey"])["grey"])
    directions, middle = principal_directions(pictures)
    np.savez(out / FITTED, directions=directions, middle=middle)
    return {"pictures": len(pictures)}


def principal_directions(
    pictures: UInt8[np.ndarray, "n p"],
) -> tuple[Float64[np.ndarray, "p bits"], Float64[np.ndarray, " bits"]]:
    """Return rounded principal components, the first first, and the mean picture along them.

    Without components where there are fewer than `FEWEST` pictures, or they vary in fewer than
    `BITS` directions.
    """
    count, side = pictures.shape
    none = np.empty((side, 0)), np.empty(0)
    if count < FEWEST:
        return none
    wide = pictures.astype(np.float64)
    total = wide.sum(0)
    # whole numbers below 2^53, so that no order of summing changes them
    scatter = count * (wide.T @ wide) - np.outer(total, total)
    values, vectors = np.linalg.eigh(scatter)
    if values[-BITS] <= values[-1] * 1e-9:
        return none
    directions = np.rint(vectors[:, ::-1][:, :BITS] * STEPS)
    return directions, np.rint(total @ directions / count)


def _by_components(column: pa.ChunkedArray, fitted: Path) -> Hashes:
    pictures, has = _pictures(column)
    with np.load(fitted / FITTED) as found:
        directions, middle = found["directions"], found["middle"]
    hashes = np.zeros(len(column), np.uint64)
    if not directions.size:
        return hashes, np.zeros(len(column), bool)
    places = np.flatnonzero(has)
    for at in range(0, len(places), _TOGETHER):
        along = pictures[at : at + _TOGETHER].astype(np.float64) @ directions
        bits = np.packbits(along > middle, axis=1)
        hashes[places[at : at + _TOGETHER]] = bits.view(np.uint64)[:, 0]
    return hashes, has


def _pictures(column: pa.ChunkedArray) -> tuple[UInt8[np.ndarray, "n p"], Bool[np.ndarray, " m"]]:
    """Return the grey pictures of a column, and which of its rows have one."""
    has = column.is_valid().to_numpy()
    joined = b"".join(column.drop_null().to_pylist())
    return np.frombuffer(joined, np.uint8).reshape(-1, grey.SIDE**2), has


def _by_digest(column: pa.ChunkedArray, fitted: Path) -> Hashes:
    has = column.is_valid().to_numpy()
    return np.array([int(digest or "0", 16) for digest in column.to_pylist()], np.uint64), has


METHODS: dict[HashName, HashMethod] = {
    "pca": HashMethod("grey", "PCA hash", _by_components),
    "phash": HashMethod("phash", "pHash", _by_digest),
}
"""A new one is its function and its line here."""


def hash_pictures(
    collection: Collection, name: HashName, fitted: Path, start: int, stop: int, *, out: Path
) -> dict[str, int]:
    """Write `hashes.npz` of the images `start` to `stop`: `hashes` uint64, and `has` bool."""
    method = METHODS[name]
    facts = collection.facts(np.arange(start, stop), [method.look])
    hashes, has = method.compute(facts[method.look], fitted)
    np.savez(out / HASHES, hashes=hashes, has=has)
    return {"hashed": int(has.sum())}


def cover_copies(
    ranks: Path, blocks: Sequence[Path], stays: int = 0, *, out: Path
) -> dict[str, int]:
    """Write groups as `groups.write_groups` does: all undecided, but copies by hash are covered.

    The best content of a hash stands for the others, but for the `stays` best of all, which stand
    for themselves. `stands.npy` int64 by image number says which image stands for all of its hash,
    -1 without one. Returns how many contents are `hashed`, and how many `covered`. A reduce.
    """
    number_of, rank = np.load(ranks / NUMBER), np.load(ranks / RANK)
    hashes, has = (
        np.concatenate([np.empty(0, kind), *(np.load(block / HASHES)[name] for block in blocks)])
        for name, kind in (("hashes", np.uint64), ("has", bool))
    )
    hashed = np.flatnonzero(has[number_of])
    _, first, place = np.unique(hashes[number_of[hashed]], return_index=True, return_inverse=True)
    best = np.full(len(number_of), -1, np.int64)
    best[hashed] = hashed[first[place]]
    covered = (best >= 0) & (best != np.arange(len(best))) & (np.arange(len(best)) >= stays)
    status = np.where(covered, COVERED, UNDECIDED).astype(np.int8)
    write_groups(ranks, status, np.where(covered, best, -1), out)
    stands = np.full(len(rank), -1, np.int64)
    stands[rank >= 0] = np.where(best >= 0, number_of[best], -1)[rank[rank >= 0]]
    np.save(out / STANDS, stands)
    return {"hashed": len(hashed), "covered": int(covered.sum())}
