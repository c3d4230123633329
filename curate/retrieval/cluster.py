"""Strategy `cluster`, the paper's cluster-based retrieval: images of the clusters that hold seeds.

DINOv2 (arXiv 2304.07193, appendix A.4) takes, for seeds of fewer than a million images, 10,000
images of every one of 100,000 clusters that holds more than 3 seed images, a million at most.
Every image of the seed counts, copies of others too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int8, Int32, Int64
from pydantic import BaseModel, ConfigDict, Field

from curate.catalogue.collection import Collection, Numbers
from curate.catalogue.keyed_order import hash_keys
from curate.neighbours.cluster import ROWS, cluster_vectors, load_centroids
from curate.neighbours.levels import nearest_of
from curate.neighbours.search import unit, use_threads
from curate.retrieval.candidates import load_candidates
from curate.retrieval.question import Chosen, Question, below
from curate.retrieval.ranks import rank_within
from curate.stage import Stage, Unit

VERSION = 1
BELOW, POOR, FURTHER, OVER_CAP = 1, 2, 3, 4


class FromClustersSettings(BaseModel):
    """How many images a cluster brings, and which clusters do."""

    model_config = ConfigDict(extra="forbid")

    images: int = Field(10_000, ge=1)
    """Images of a cluster that are retrieved, at most."""
    more_than: int = Field(3, ge=0)
    """A cluster must hold more seed images than this."""
    cap: int | None = Field(1_000_000, ge=1)
    """Images that the seed retrieves in all, at most."""
    order: Literal["nearest", "random"] = "nearest"
    """Which ones: the most similar to a seed image, ties by key, or some drawn by `seed`."""
    seed: int = 0
    clusters: int | None = Field(None, ge=1)
    """Number of clusters of the crawl, by the embedder for meaning. Default: `cluster.clusters`."""

    def describe(self) -> str:
        """Return what is retrieved, for people."""
        which = {"nearest": "nearest", "random": "random"}[self.order]
        most = "" if self.cap is None else f", {self.cap:,} in all"
        return (
            f"{self.images:,} {which} images of each cluster of more than {self.more_than:,} seed "
            f"images{most}"
        )


def choose(question: Question, settings: FromClustersSettings) -> Chosen:
    """Return images of the clusters of the crawl that hold enough seed images."""
    runner, candidates = question.runner, question.candidates
    cut = question.clusters
    if settings.clusters is not None:
        cut = cut.model_copy(update={"clusters": settings.clusters})
    clustered = cluster_vectors(runner, question.crawl, cut, question.threads)
    stage = Stage(
        "choose",
        ["cluster", VERSION],
        [candidates.address, clustered.address, question.seed.address],
        [settings.model_dump(exclude={"clusters"}), question.threshold, question.threads],
    )
    args = (
        *(question.crawl.collection, candidates.folder, question.seed.collection),
        *(clustered.clusters.centers, list(clustered.assigned)),
        *(settings, question.threshold, question.threads),
    )
    runner.run(stage, pick, [Unit("all", args)])
    first = "nearest to the seed" if settings.order == "nearest" else "drawn"
    misses = (
        below(question.threshold),
        f"; its cluster holds no more than {settings.more_than:,} seed images",
        f"; not among the {settings.images:,} images of its cluster that are {first}",
        f"; not among the {settings.cap or 0:,} images that the seed retrieves in all",
    )
    return Chosen(runner.folder(stage) / "all", misses, stage.address)


def pick(
    crawl: Collection,
    candidates: Path,
    seed: Collection,
    centers: Path,
    assigned: list[Path],
    settings: FromClustersSettings,
    floor: float,
    threads: int,
    *,
    out: Path,
) -> dict[str, Any]:
    """Write `missed.npy`; a reduce of about 45 bytes a candidate."""
    use_threads(threads)
    numbers, similarity = (array[:] for array in load_candidates(candidates))
    centroids, near = load_centroids(centers)
    of_candidates = _clusters_of(numbers, crawl.block, assigned)
    images = seed.open_by_key
    seeds_in = np.zeros(len(centroids), np.int64)
    for at in range(0, len(images), ROWS):
        of_seeds = nearest_of(unit(seed.vectors(images[at : at + ROWS])), centroids, near)
        seeds_in += np.bincount(of_seeds, minlength=len(centroids))
    reach = np.flatnonzero(similarity >= np.float32(floor))
    if settings.order == "nearest":
        order = reach[np.argsort(-similarity[reach], kind="stable")]
    else:
        order = reach[np.lexsort((reach, hash_keys(crawl, numbers[reach], settings.seed)))]
    missed = take_from_clusters(
        of_candidates, seeds_in, order, settings.images, settings.more_than, settings.cap
    )
    np.save(out / "missed.npy", missed)
    return {"clusters": int((seeds_in > settings.more_than).sum())}


def take_from_clusters(
    cluster: Int32[np.ndarray, " n"],
    seeds_in: Int64[np.ndarray, " k"],
    order: Int64[np.ndarray, " m"],
    images: int,
    more_than: int,
    cap: int | None,
) -> Int8[np.ndarray, " n"]:
    """Return 0 for the images that are taken, else why not: `BELOW`, `POOR`, `FURTHER`, `OVER_CAP`.

    Of every cluster with more than `more_than` seed images (`seeds_in`, by cluster), the first
    `images` in `order` are taken; of all these, the first `cap`. What is not in `order` is `BELOW`.
    """
    missed = np.full(len(cluster), BELOW, np.int8)
    is_rich = seeds_in[cluster[order]] > more_than
    missed[order[~is_rich]] = POOR
    order = order[is_rich]
    missed[order] = FURTHER
    first = order[rank_within(cluster[order]) < images]
    missed[first] = OVER_CAP
    missed[first[:cap]] = 0
    return missed


def _clusters_of(
    numbers: Numbers, block_size: int, assigned: list[Path]
) -> Int32[np.ndarray, " n"]:
    """Return the clusters of images; `assigned` are the units of the blocks of numbers."""
    result = np.empty(len(numbers), np.int32)
    blocks = numbers // block_size
    for block in np.unique(blocks).tolist():
        here = blocks == block
        result[here] = np.load(assigned[block] / "cluster.npy")[numbers[here] - block * block_size]
    return result
