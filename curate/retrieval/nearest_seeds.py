"""Stage retrieve: the nearest seed images of every image that stands for itself.

A map over blocks of numbers. Every strategy ranks by it and every report lists it; `threshold` needs
no other search.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int64

from curate.catalogue.collection import BLOCK, Catalogued, Collection, Numbers
from curate.neighbours.search import gpus_wanted, top_k, use_threads
from curate.stage import Runner, Stage, Unit

VERSION = 2


@dataclass(frozen=True)
class Retrieved:
    """The nearest seeds of the images of each block, as `search` leaves them."""

    folders: tuple[Path, ...]
    address: str


def retrieve(
    runner: Runner,
    crawl: Catalogued,
    groups: Path,
    grouped: str,
    seed: Catalogued,
    k: int,
    threads: int,
) -> Retrieved:
    """Find the `k` nearest seed images of every image that stands for its group.

    `crawl` and `seed` are as the embedder for meaning sees them; `groups`, at the address
    `grouped`, is what dedup left.
    """
    addresses = [grouped, crawl.address, seed.address]
    stage = Stage("retrieve", VERSION, addresses, [k, threads])
    units = [
        Unit(
            f"{start:012d}",
            (crawl.collection, groups, seed.collection, start, stop, k, threads),
            stop - start,
        )
        for start, stop in crawl.collection.blocks()
    ]
    with runner.at_work("retrieve"):
        runner.run(stage, search, units, gpus=gpus_wanted())
    return Retrieved(tuple(runner.folder(stage) / unit.name for unit in units), stage.address)


def search(
    crawl: Collection,
    representative: Path,
    seed: Collection,
    start: int,
    stop: int,
    k: int,
    threads: int,
    *,
    out: Path,
) -> dict:
    """Write `numbers.npy`, and of each its nearest seed images: int64 and float32 [n, k]."""
    use_threads(threads)
    chosen = np.load(representative / "representative.npy", mmap_mode="r")[start:stop]
    numbers = np.flatnonzero(chosen == np.arange(start, stop)) + start
    images = seed.open_by_key
    similarity, row = top_k(crawl.vectors(numbers), seed.vectors(images), k)
    np.save(out / "numbers.npy", numbers)
    np.save(out / "similarity.npy", similarity)
    np.save(out / "seeds.npy", images[row])
    return {"images": len(numbers)}


def found(
    folders: list[Path], numbers: Numbers
) -> tuple[Bool[np.ndarray, " n"], Float32[np.ndarray, "n k"], Int64[np.ndarray, "n k"]]:
    """Return what the searches of all blocks say of images: whether they were seen, and their rows.

    The rows are similarities and seed numbers, nan and -1 where unseen.
    """
    widths = {np.load(folder / "seeds.npy", mmap_mode="r").shape[1] for folder in folders}
    k = max(widths, default=0)
    seen = np.zeros(len(numbers), bool)
    similarity = np.full((len(numbers), k), np.nan, np.float32)
    seeds = np.full((len(numbers), k), -1, np.int64)
    for block in np.unique(numbers // BLOCK):
        where = np.flatnonzero(numbers // BLOCK == block)
        searched = np.load(folders[block] / "numbers.npy")
        row = np.searchsorted(searched, numbers[where])
        row[row == len(searched)] = 0
        hit = searched[row] == numbers[where] if len(searched) else np.zeros(len(where), bool)
        seen[where] = hit
        similarity[where[hit]] = np.load(folders[block] / "similarity.npy", mmap_mode="r")[row[hit]]
        seeds[where[hit]] = np.load(folders[block] / "seeds.npy", mmap_mode="r")[row[hit]]
    return seen, similarity, seeds
