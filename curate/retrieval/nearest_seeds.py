"""Stage retrieve: the nearest seed images of every image that stands for itself.

A map over blocks of numbers, for each seed by itself, so that one seed more searches no other again.
Every strategy ranks by it and every report lists it; `threshold` needs no other search. A large seed
is searched in clusters (`seed_index.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int64

from curate.catalogue.collection import Catalogued, Collection, Numbers
from curate.neighbours.in_dataset import nearest_images
from curate.neighbours.search import gpus_wanted, use_threads
from curate.retrieval.seed_index import VERSION as INDEX_VERSION
from curate.retrieval.seed_index import (
    SeedIndex,
    SeedIndexSettings,
    index_seed,
    measure_recall,
    nearest_in_clusters,
)
from curate.stage import Runner, Stage, Unit
from shared.memory import release_memory
from shared.storage.arrays import map_array

VERSION = 2
IN_CLUSTERS = 15_360
"""Images that are searched together in a large seed, at least: the unit vectors of all of its clusters
are made for each such block, which takes as long as searching some thousands of images there. A million images are 66 blocks."""


@dataclass(frozen=True)
class Retrieved:
    """The nearest images of one seed to the images of each block, as `search` leaves them."""

    name: str
    seed: Collection
    folders: tuple[Path, ...]
    address: str
    block: int
    """Images of a block."""
    recall: dict[str, Any] | None = None
    """Of a seed that is searched in clusters, as `seed_index.measure_recall` returns it."""


def retrieve(
    runner: Runner,
    crawl: Catalogued,
    groups: Path,
    grouped: str,
    seeds: Sequence[Catalogued],
    k: int,
    threads: int,
    large: SeedIndexSettings | None = None,
) -> tuple[Retrieved, ...]:
    """Find the `k` nearest images of each seed to every image that stands for its group.

    `crawl` and `seeds` are as the embedder for meaning sees them; `groups`, at the address
    `grouped`, is what dedup left.
    """
    large = large or SeedIndexSettings()
    with runner.at_work("retrieve"):
        return tuple(
            _retrieve(runner, crawl, groups, grouped, seed, k, threads, large, len(seeds) > 1)
            for seed in seeds
        )


def _retrieve(
    runner: Runner,
    crawl: Catalogued,
    groups: Path,
    grouped: str,
    seed: Catalogued,
    k: int,
    threads: int,
    large: SeedIndexSettings,
    named: bool,
) -> Retrieved:
    index = index_seed(runner, seed, large, threads)
    addresses, how = [grouped, crawl.address, seed.address], [k, threads]
    if index is None:
        stage = Stage("retrieve", VERSION, addresses, how)
    else:
        versions = [VERSION, INDEX_VERSION]
        stage = Stage("retrieve", versions, [*addresses, index.address], [*how, index.probes])
    images, block = len(crawl.collection), crawl.collection.block
    if index is not None:
        block = max(block, IN_CLUSTERS)
    units = [
        Unit(
            f"{start:012d}",
            (crawl.collection, groups, seed.collection, start, stop, k, threads, index),
            stop - start,
        )
        for start in range(0, images, block)
        for stop in [min(start + block, images)]
    ]
    runner.run(stage, search, units, gpus=gpus_wanted(), note=seed.name if named else "")
    folders = tuple(runner.folder(stage) / unit.name for unit in units)
    recall = None
    if index is not None:
        size = large.recall_sample
        measured = Stage("retrieve", ["recall", INDEX_VERSION], stage.address, size)
        args = (crawl.collection, seed.collection, index, folders, size, k, threads)
        recall = measure_recall(runner, measured, *args)
    return Retrieved(seed.name, seed.collection, folders, stage.address, block, recall)


def search(
    crawl: Collection,
    representative: Path,
    seed: Collection,
    start: int,
    stop: int,
    k: int,
    threads: int,
    index: SeedIndex | None = None,
    *,
    out: Path,
) -> dict[str, Any]:
    """Write `numbers.npy`, and of each its nearest seed images: int64 and float32 [n, k]."""
    use_threads(threads)
    chosen = np.load(representative / "representative.npy", mmap_mode="r")[start:stop]
    numbers = np.flatnonzero(chosen == np.arange(start, stop)) + start
    vectors = crawl.vectors(numbers)
    if index is None:
        similarity, images = nearest_images(vectors, seed, k)
    else:
        similarity, images = nearest_in_clusters(vectors, seed, index.clusters, index.probes, k)
        release_memory()  # clusters differ in size: what is free between their arrays adds up
    np.save(out / "numbers.npy", numbers)
    np.save(out / "similarity.npy", similarity)
    np.save(out / "seeds.npy", images)
    return {"images": len(numbers)}


@dataclass(frozen=True)
class NearestSeeds:
    """The nearest seed images of crawled images over several seeds, at most `k`.

    Ties go to the first seed, and in it to the first key.
    """

    seeds: tuple[Retrieved, ...]
    k: int

    def find(self, numbers: Numbers) -> Neighbours:
        """Return the nearest seed images of images, given by number."""
        seen = np.zeros(len(numbers), bool)
        parts = []
        for place, each in enumerate(self.seeds):
            seen, similarity, images = found(each.folders, each.block, numbers)
            parts.append((similarity, np.full_like(images, place), images))
        similarity, places, images = (np.hstack(arrays) for arrays in zip(*parts, strict=True))
        order = np.argsort(-similarity, axis=1, kind="stable")[:, : self.k]
        return Neighbours(
            seen, *(np.take_along_axis(x, order, 1) for x in (similarity, places, images))
        )

    def keys(
        self, places: Int64[np.ndarray, " n"], images: Int64[np.ndarray, " n"]
    ) -> pa.StringArray:
        """Return the keys of seed images: the seed of each, and its number there."""
        keys, order = [pa.array([], pa.string())], [np.empty(0, np.int64)]
        for place in np.unique(places).tolist():
            mine = np.flatnonzero(places == place)
            keys.append(self.seeds[place].seed.key_array(images[mine]))
            order.append(mine)
        return pa.concat_arrays(keys).take(pa.array(np.argsort(np.concatenate(order))))


@dataclass(frozen=True)
class Neighbours:
    """The nearest seed images of images, best first."""

    seen: Bool[np.ndarray, " n"]
    """Whether they were searched for; else their rows are nan and -1."""
    similarity: Float32[np.ndarray, "n k"]
    places: Int64[np.ndarray, "n k"]
    """Which of the seeds."""
    images: Int64[np.ndarray, "n k"]
    """Numbers in that seed."""


def found(
    folders: Sequence[Path], block_size: int, numbers: Numbers
) -> tuple[Bool[np.ndarray, " n"], Float32[np.ndarray, "n k"], Int64[np.ndarray, "n k"]]:
    """Return what the searches of all blocks say of images: whether they were seen, and their rows.

    The rows are similarities and seed numbers, nan and -1 where unseen.
    """
    k = map_array(folders[0] / "seeds.npy").shape[1] if folders else 0
    seen = np.zeros(len(numbers), bool)
    similarity = np.full((len(numbers), k), np.nan, np.float32)
    seeds = np.full((len(numbers), k), -1, np.int64)
    blocks = numbers // block_size
    for block in np.unique(blocks).tolist():
        where = np.flatnonzero(blocks == block)
        searched = map_array(folders[block] / "numbers.npy")
        row = np.searchsorted(searched, numbers[where])
        row[row == len(searched)] = 0
        hit = searched[row] == numbers[where] if len(searched) else np.zeros(len(where), bool)
        seen[where] = hit
        similarity[where[hit]] = map_array(folders[block] / "similarity.npy")[row[hit]]
        seeds[where[hit]] = map_array(folders[block] / "seeds.npy")[row[hit]]
    return seen, similarity, seeds
