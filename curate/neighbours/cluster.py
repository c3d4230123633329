"""Stage cluster: spherical k-means on a seeded sample, then every vector beside its neighbours.

Where a run goes on from a result, the centroids of that are kept until the images have drifted from
them.

Units: `centroids` (reduce), `assign` (map over blocks of numbers: every vector gets its cluster)
and `members` (regroup: the vectors of a range of clusters, one of each distinct content, side by
side in one file, so that a search inside clusters reads contiguous memory).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float32, Int64
from pydantic import BaseModel, ConfigDict, Field

from curate.catalogue.collection import Catalogued, Collection
from curate.neighbours.clusters import AXES, CENTROIDS, Clusters
from curate.neighbours.heads import count_axes, heads
from curate.neighbours.levels import SINGLE, Groups, find_groups, find_two_levels, nearest_of
from curate.neighbours.search import (
    cosine,
    gpus_wanted,
    principal_axes,
    spherical_kmeans,
    unit,
    use_threads,
)
from curate.stage import Runner, Stage, Unit
from shared.storage.arrays import read_array_rows

VERSION = 9
GROUPS = "groups.npz"
SAMPLED = 131_072
"""Vectors that k-means sees, at most, where these are `FEWEST` for each cluster."""
FEWEST = 12
ROWS = 2_048
"""Vectors looked at together: few enough for the allocator to give the same memory again."""
FINER = 62_500
"""Images from which clusters grow in number by the power 2/3. Of four million clumped vectors a copy is
found as surely among 16,000 others in 4,000 clusters as among 22,000 in 2,000."""
BLOCKS_TOGETHER = 3
"""Blocks' worth of vectors in a range of clusters: a search visits nearly all clusters for each range,
so that fewer ranges cost fewer visits, and more of them share the work out better."""


class ClusterSettings(BaseModel):
    """How the vectors are cut into cells that are searched one by one."""

    model_config = ConfigDict(extra="forbid")

    clusters: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Number of clusters. auto: the square root of the number of distinct images; of more than 62,500
    it grows by the power 2/3, so that copies are looked for in smaller clusters."""
    points_per_cluster: int = Field(32, ge=1)
    """Size of the k-means sample, in points for each cluster; past 131,072 in all, 12."""
    iterations: int = Field(10, ge=1)
    seed: int = 0
    drift: float = Field(0.1, ge=0)
    """How much farther from its centroid an image may be on average, as a share, than when the
    centroids were found, before `lvd-curate update` or `run --since` finds new ones. They do so, too,
    for more than `GROWN` times the images. It decides nothing in any other run."""


GROWN = 4
"""Clusters are then about twice as large as a run that finds them would make them."""


@dataclass(frozen=True)
class Centroids:
    """The centroids of a result, and how well they fitted the images that they were found for."""

    file: Path
    """Float32 [k, d]."""
    digest: str
    """Stands for them."""
    images: int
    distance: float
    """Mean of 1 - cosine of an image and its centroid."""


@dataclass(frozen=True)
class Clustered:
    """A crawl whose vectors have clusters: of each block of numbers, and side by side."""

    clusters: Clusters
    assigned: tuple[Path, ...]
    """The units `assign` of the collection's blocks."""
    sizes: tuple[int, ...]
    """Vectors in each range of clusters."""
    fitted: dict[str, Any]
    """Of the centroids, JSON-able: `images` and `distance`, as in `Centroids`, and whether they were
    `kept`."""
    address: str


def cluster(
    runner: Runner,
    crawl: Catalogued,
    settings: ClusterSettings,
    threads: int,
    before: Centroids | None,
) -> Clustered:
    """Do `cluster_vectors` as a stage of the run of its own."""
    with runner.at_work("cluster"):
        return cluster_vectors(runner, crawl, settings, threads, before)


def cluster_vectors(
    runner: Runner,
    crawl: Catalogued,
    settings: ClusterSettings,
    threads: int,
    before: Centroids | None = None,
) -> Clustered:
    """Find centroids, or keep those of `before`; give every vector its cluster; lay clusters side by side."""
    images = len(crawl.collection.usable)
    if before is not None and images <= GROWN * before.images:
        kept = _assign_all(runner, crawl, settings, threads, before)
        if kept.distance <= (1 + settings.drift) * before.distance:
            fitted = {"images": before.images, "distance": before.distance, "kept": True}
            return _lay_out(runner, crawl.collection.block, kept, fitted)
    found = _assign_all(runner, crawl, settings, threads, None)
    return _lay_out(
        runner,
        crawl.collection.block,
        found,
        {"images": images, "distance": found.distance, "kept": False},
    )


@dataclass(frozen=True)
class _Assigned:
    """The clusters of all vectors, and the mean of 1 - cosine of an image and its centroid."""

    stage: Stage
    units: list[Path]
    distance: float


def _assign_all(
    runner: Runner,
    crawl: Catalogued,
    settings: ClusterSettings,
    threads: int,
    before: Centroids | None,
) -> _Assigned:
    collection = crawl.collection
    asked = [settings.model_dump(exclude={"drift"}), threads, *([before.digest] if before else [])]
    stage = Stage("cluster", VERSION, crawl.address, asked)
    home = runner.folder(stage)
    args = (collection, settings, threads, before.file if before else None)
    note = "" if before else "k-means"
    gpus = gpus_wanted()
    runner.run(stage, centroids, [Unit("centroids", args)], note=note, gpus=gpus)
    units = [
        Unit(
            f"assign-{start:012d}",
            (collection, home / "centroids", start, stop, threads),
            stop - start,
        )
        for start, stop in collection.blocks()
    ]
    results = runner.run(stage, assign, units, note="assigned", gpus=gpus)
    distance = sum(each["distance"] for each in results)
    vectors = sum(each["vectors"] for each in results)
    return _Assigned(stage, [home / unit.name for unit in units], distance / max(1, vectors))


def _lay_out(runner: Runner, together: int, done: _Assigned, fitted: dict[str, Any]) -> Clustered:
    stage, assigned = done.stage, done.units
    home = runner.folder(stage)
    ranges = buckets(assigned, BLOCKS_TOGETHER * together)
    units = [
        Unit(f"members-{first:08d}", (home / "centroids", assigned, first, last))
        for first, last in ranges
    ]
    held = runner.run(stage, members, units)
    folders = tuple(home / unit.name for unit in units)
    sizes = tuple(stats["images"] for stats in held)
    return Clustered(
        Clusters(home / "centroids", folders, tuple(ranges), sum(sizes)),
        tuple(assigned),
        sizes,
        fitted,
        stage.address,
    )


def centroids(
    collection: Collection,
    settings: ClusterSettings,
    threads: int,
    before: Path | None = None,
    *,
    out: Path,
) -> dict[str, Any]:
    """Write `centroids.npy`, float32 unit vectors [k, d], of a seeded sample of the collection.

    Near ones follow one another, so that the members of a range of clusters are searched in few others.
    `before` has those that are kept in place of new ones. Beside them `axes.npy` [d, h]: the sample's
    principal directions, for the members' heads.
    """
    use_threads(threads)
    usable = collection.usable
    vectors = unit(collection.vectors(usable[sample_rows(len(usable), settings)]))
    if before is None:
        centers = find_centroids(vectors, len(usable), settings)
        groups = group_centroids(centers, settings)
        order = groups.order()
        centers, groups = centers[order], Groups(groups.middles, groups.of[order])
    else:
        centers = np.load(before)
        groups = group_centroids(centers, settings)
    np.save(out / CENTROIDS, centers)
    np.savez(out / GROUPS, middles=groups.middles, of=groups.of)
    np.save(out / AXES, principal_axes(vectors, count_axes(collection.dim)))
    return {"clusters": len(centers), "sample": len(vectors)}


def sample_rows(images: int, settings: ClusterSettings) -> Int64[np.ndarray, " s"]:
    """Return the rows, of so many images, of the sample that k-means sees, in their order."""
    clusters = count_clusters(images, settings)
    most = max(SAMPLED, FEWEST * clusters)
    size = min(images, clusters * settings.points_per_cluster, most)
    return np.sort(np.random.default_rng(settings.seed).choice(images, size, replace=False))


def find_centroids(
    sample: Float32[np.ndarray, "s d"], images: int, settings: ClusterSettings
) -> Float32[np.ndarray, "k d"]:
    """Return the unit centroids of so many images, of whose unit vectors `sample` are some."""
    if not len(sample):
        return np.empty((0, sample.shape[1]), np.float32)
    k, how = count_clusters(images, settings), (settings.iterations, settings.seed)
    if k <= SINGLE or len(sample) <= k:
        return spherical_kmeans(sample, k, *how)
    return find_two_levels(sample, k, *how)


def group_centroids(centers: Float32[np.ndarray, "k d"], settings: ClusterSettings) -> Groups:
    """Return about sqrt(k) groups of unit centroids."""
    return find_groups(centers, settings.iterations, settings.seed)


def load_centroids(folder: Path) -> tuple[Float32[np.ndarray, "k d"], Groups]:
    """Return what `centroids` wrote: the unit centroids and their groups."""
    with np.load(folder / GROUPS) as groups:
        return np.load(folder / CENTROIDS), Groups(groups["middles"], groups["of"])


def count_clusters(images: int, settings: ClusterSettings) -> int:
    """Return the number of clusters of so many distinct images."""
    if settings.clusters == "auto":
        k = round(images**0.5 * max(1.0, images / FINER) ** (1 / 6))
    else:
        k = settings.clusters
    return max(1, min(k, images))


def assign(
    collection: Collection, centers: Path, start: int, stop: int, threads: int, *, out: Path
) -> dict[str, Any]:
    """Write the cluster of every image numbered from `start` to `stop` (int32, -1: no vector).

    Beside it, sorted by cluster and number: the vectors and numbers of the images that stand for
    their content (`vectors.npy`, `numbers.npy`), and where each cluster begins (`offsets.npy`).
    Returns how many these are, how many images have vectors, and the sum of 1 - cosine of each of
    those and its centroid.
    """
    use_threads(threads)
    centroid, groups = load_centroids(centers)
    clusters = np.full(stop - start, -1, np.int32)
    canonical = collection.canonical[start:stop]
    numbers = np.flatnonzero(canonical >= 0) + start
    vectors = collection.vectors(numbers)
    distance = 0.0
    for at in range(0, len(numbers), ROWS):
        some = slice(at, at + ROWS)
        units = unit(vectors[some])
        own = nearest_of(units, centroid, groups)
        clusters[numbers[some] - start] = own
        distance += float((1 - cosine(units, centroid[own])).sum(dtype=np.float64))
    stands = canonical[numbers - start] == numbers
    order = np.argsort(clusters[numbers[stands] - start], kind="stable")
    stored = np.flatnonzero(stands)[order]
    counts = np.bincount(clusters[numbers[stored] - start], minlength=len(centroid))
    np.save(out / "cluster.npy", clusters)
    np.save(out / "vectors.npy", vectors[stored])
    np.save(out / "numbers.npy", numbers[stored])
    np.save(out / "offsets.npy", np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
    return {"images": len(stored), "vectors": len(numbers), "distance": distance}


def buckets(assigned: list[Path], together: int) -> list[tuple[int, int]]:
    """Return the ranges of clusters that are kept side by side.

    A range is closed when it holds `together` vectors.
    """
    counts = sum(np.diff(np.load(folder / "offsets.npy")) for folder in assigned)
    ranges, first, held = [], 0, 0
    for cluster, count in enumerate(counts):
        held += int(count)
        if held >= together or cluster == len(counts) - 1:
            ranges.append((first, cluster + 1))
            first, held = cluster + 1, 0
    return ranges


def members(
    centers: Path, assigned: list[Path], first: int, last: int, *, out: Path
) -> dict[str, Any]:
    """Write vectors, heads and numbers of the clusters `first` to `last`, by cluster and number."""
    offsets = np.stack(
        [read_array_rows(each / "offsets.npy", first, last + 1) for each in assigned]
    )
    sizes = np.diff(offsets)
    starts = np.concatenate([[0], np.cumsum(sizes.sum(0))]).astype(np.int64)
    dim = np.load(assigned[0] / "vectors.npy", mmap_mode="r").shape[1]
    vectors = np.lib.format.open_memmap(
        out / "vectors.npy", "w+", np.float16, (int(starts[-1]), dim)
    )
    numbers = np.empty(int(starts[-1]), np.int64)
    free = starts[:-1].copy()
    for folder, offset, size in zip(assigned, offsets, sizes, strict=True):
        rows = int(offset[0]), int(offset[-1])
        where = np.repeat(free - (offset[:-1] - offset[0]), size) + np.arange(rows[1] - rows[0])
        vectors[where] = read_array_rows(folder / "vectors.npy", *rows)
        numbers[where] = read_array_rows(folder / "numbers.npy", *rows)
        free += size
    axes = np.load(centers / AXES)
    head = np.lib.format.open_memmap(
        out / "heads.npy", "w+", np.int8, (len(vectors), axes.shape[1] + 2)
    )
    for at in range(0, len(vectors), ROWS):
        head[at : at + ROWS] = heads(unit(vectors[at : at + ROWS]), axes)
    np.save(out / "numbers.npy", numbers)
    np.save(out / "offsets.npy", starts)
    return {"images": len(numbers), "first": first, "last": last}
