"""Large seeds: their vectors cut into clusters, of which an image is searched in the nearest.

The clusters are files of the work folder, mapped by every process that searches, so that a node holds
a seed once, in memory that the system may take back. Images of the same bytes count as one, that of
the first key. What is found inside a cluster is exact (`neighbours.search.top_k`: float32 products
propose, cosines accumulated in float64 decide); what the clusters that are not searched hold is
lost, and how much that is, a sample says.

Units, beside those of stage cluster: `draw_sample` (reduce), `search_all` (map over ranges of
clusters: the sample against all that they hold) and `compare` (reduce, of the sample alone).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float, Float16, Float32, Int64
from pydantic import BaseModel, ConfigDict, Field

from curate.catalogue.collection import Catalogued, Collection
from curate.catalogue.part_files import VECTORS
from curate.neighbours.cluster import ClusterSettings, cluster_vectors
from curate.neighbours.clusters import Clusters, LoadedClusters
from curate.neighbours.cpu import import_torch
from curate.neighbours.search import first_k, top_k, use_threads
from curate.stage import Runner, Stage, Unit

VERSION = 2
FOUND, NEAREST = "found.npy", "nearest.npz"
NOWHERE = np.iinfo(np.int64).max
"""The place of no image: behind all others."""


class SeedIndexSettings(BaseModel):
    """How the nearest images of a large seed are found."""

    model_config = ConfigDict(extra="forbid")

    exact: int = Field(1_000_000, ge=1)
    """Images of a seed, of different bytes, up to which every one is compared with every crawled image."""
    probes: int = Field(64, ge=1)
    """Of a larger seed, the clusters that are searched for an image: those of the nearest centroids."""
    clusters: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Clusters of a larger seed; auto is the square root of the number of its images. Fewer are found
    sooner, and each takes longer to search."""
    recall_sample: int = Field(256, ge=0)
    """Crawled images whose nearest seed images are looked for in all clusters too, to measure what
    is lost."""


@dataclass(frozen=True)
class SeedIndex:
    """The clusters of a seed, and in how many of them an image is searched."""

    clusters: Clusters
    probes: int
    address: str


def index_seed(
    runner: Runner, seed: Catalogued, settings: SeedIndexSettings, threads: int
) -> SeedIndex | None:
    """Return the clusters of a seed; None for one that is searched exactly."""
    images = len(seed.collection.usable)
    if images <= settings.exact:
        return None
    auto = auto_clusters(images)
    cut = ClusterSettings(clusters=auto if settings.clusters == "auto" else settings.clusters)
    clustered = cluster_vectors(runner, seed, cut, threads)
    return SeedIndex(clustered.clusters, settings.probes, clustered.address)


def auto_clusters(images: int) -> int:
    """Return the number of clusters of a seed of so many images, where no setting says it."""
    return round(images**0.5)


def nearest_in_clusters(
    queries: Float[np.ndarray, "n d"], seed: Collection, clusters: Clusters, probes: int, k: int
) -> tuple[Float32[np.ndarray, "n k"], Int64[np.ndarray, "n k"]]:
    """Return cosines and numbers of the `k` nearest seed images in the nearest `probes` clusters.

    By falling similarity, ties by key. A stored vector near whose clusters hold fewer is searched in
    all; a seed of fewer than `k` images gives as many columns as it has. The clusters stay where they
    are mapped: one at a time is copied, 6 d bytes for each vector of it.
    """
    loaded, k = clusters.load(), min(k, clusters.images)
    import_torch(queries.size * clusters.images * probes / max(1, len(loaded)))
    similarity = np.full((len(queries), k), -2, np.float32)
    places = np.full((len(queries), k), NOWHERE, np.int64)
    _, near = top_k(queries, loaded.centroids, probes)
    _visit(queries, near, loaded, seed, (similarity, places))
    short = np.flatnonzero((places == NOWHERE).any(axis=1))
    if len(short):
        everywhere = np.tile(np.arange(len(loaded)), (len(short), 1))
        found = (
            np.full((len(short), k), -2, np.float32),
            np.full((len(short), k), NOWHERE, np.int64),
        )
        _visit(queries[short], everywhere, loaded, seed, found)
        similarity[short], places[short] = found
    return similarity, seed.order[places]


def _visit(
    queries: Float[np.ndarray, "n d"],
    near: Int64[np.ndarray, "n p"],
    loaded: LoadedClusters,
    seed: Collection,
    best: tuple[Float32[np.ndarray, "n k"], Int64[np.ndarray, "n k"]],
) -> None:
    """Better, in place, the cosines and places of the nearest by those in each query's clusters."""
    similarity, places = best
    order = np.argsort(near, axis=None, kind="stable")
    visited = near.ravel()[order]
    for where in np.split(order, np.flatnonzero(np.diff(visited)) + 1):
        if not len(where):
            continue
        members = loaded.of(int(near.flat[where[0]]))
        rows, place = where // near.shape[1], seed.place[members.numbers]
        by_key = np.argsort(place)
        found, row = top_k(queries[rows], members.stored[by_key], places.shape[1])
        similarity[rows], places[rows] = first_k(
            np.hstack([similarity[rows], found]),
            np.hstack([places[rows], place[by_key][row]]),
            places.shape[1],
        )


def measure_recall(
    runner: Runner,
    stage: Stage,
    crawl: Collection,
    seed: Collection,
    index: SeedIndex,
    folders: Sequence[Path],
    sample: int,
    k: int,
    threads: int,
) -> dict[str, Any]:
    """Return of a sample of searched images what share of their `k` nearest was found.

    `folders` are what the searches of the blocks left. `recall` is None where nothing was searched.
    """
    home = runner.folder(stage)
    runner.run(stage, draw_sample, [Unit("sample", (crawl, list(folders), sample))])
    units = [
        Unit(
            f"exact-{first:08d}",
            (seed, index.clusters, home / "sample", first, last, k, threads),
        )
        for first, last in index.clusters.ranges
    ]
    runner.run(stage, search_all, units, note="measuring recall")
    exact = [home / unit.name for unit in units]
    [told] = runner.run(stage, compare, [Unit("recall", (seed, home / "sample", exact))])
    return told


def draw_sample(crawl: Collection, folders: list[Path], size: int, *, out: Path) -> dict[str, int]:
    """Write a seeded sample of the searched images: their vectors, and the seed images found."""
    counts = [len(np.load(folder / "numbers.npy", mmap_mode="r")) for folder in folders]
    total = sum(counts)
    drawn = np.sort(np.random.default_rng(0).choice(total, min(size, total), replace=False))
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    block = np.searchsorted(starts, drawn, side="right") - 1
    numbers, seeds = [], []
    for at in np.unique(block).tolist():
        rows = drawn[block == at] - starts[at]
        numbers.append(np.load(folders[at] / "numbers.npy", mmap_mode="r")[rows])
        seeds.append(np.load(folders[at] / "seeds.npy", mmap_mode="r")[rows])
    if numbers:
        np.save(out / VECTORS, crawl.vectors(np.concatenate(numbers)))
        np.save(out / FOUND, np.concatenate(seeds))
    return {"images": len(drawn)}


def search_all(
    seed: Collection,
    clusters: Clusters,
    sample: Path,
    first: int,
    last: int,
    k: int,
    threads: int,
    *,
    out: Path,
) -> dict[str, int]:
    """Write the nearest seed images of the sample in the clusters `first` to `last`: cosines, places."""
    use_threads(threads)
    queries, loaded = _load_sample(sample), clusters.load()
    best = np.full((len(queries), k), -2, np.float32), np.full((len(queries), k), NOWHERE, np.int64)
    if len(queries):
        _visit(queries, np.tile(np.arange(first, last), (len(queries), 1)), loaded, seed, best)
    np.savez(out / NEAREST, similarity=best[0], places=best[1])
    return {"clusters": last - first}


def _load_sample(sample: Path) -> Float16[np.ndarray, "s d"]:
    path = sample / VECTORS
    return np.load(path) if path.exists() else np.empty((0, 1), np.float16)


def compare(seed: Collection, sample: Path, exact: list[Path], *, out: Path) -> dict[str, Any]:
    """Count of the nearest seed images of the sample those that were found."""
    queries = len(_load_sample(sample))
    if not queries:
        return {"queries": 0, "pairs": 0, "found": 0, "recall": None}
    parts = []
    for folder in exact:
        with np.load(folder / NEAREST) as kept:
            parts.append((kept["similarity"], kept["places"]))
    similarity, places = (np.hstack(arrays) for arrays in zip(*parts, strict=True))
    found = seed.place[np.load(sample / FOUND)]
    places = first_k(similarity, places, found.shape[1])[1]
    pairs = found.size
    hits = int((places[:, :, None] == found[:, None, :]).any(axis=2).sum())
    return {"queries": queries, "pairs": pairs, "found": hits, "recall": hits / pairs}
