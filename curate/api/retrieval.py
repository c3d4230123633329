"""`retrieve`: which images are similar to a seed, by a strategy of the pipeline's."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Int8, Int64

from curate.api.arrays import checked
from curate.neighbours.cluster import (
    ClusterSettings,
    find_centroids,
    group_centroids,
    sample_rows,
)
from curate.neighbours.levels import nearest_of
from curate.neighbours.search import top_k, unit, use_threads
from curate.retrieval.cluster import FromClustersSettings, take_from_clusters
from curate.retrieval.knn import KnnSettings, deal, nearest_images
from curate.retrieval.threshold import below_threshold, beyond_target

NO_FLOOR = -1.0


@dataclass(frozen=True)
class Retrieved:
    """What a seed retrieves of n images."""

    kept: Bool[np.ndarray, " n"]
    nearest: Int64[np.ndarray, "n k"]
    """The rows of the k most similar seed images, the most similar first; -1 without a vector."""
    similarity: Float32[np.ndarray, "n k"]
    """Their cosines; nan without a vector."""


def retrieve(
    vectors: Float[np.ndarray, "n d"],
    seed_vectors: Float[np.ndarray, "s d"],
    *,
    strategy: Literal["threshold", "knn", "cluster"] = "threshold",
    threshold: float | None = None,
    target: int | float | None = None,
    max_images: int | None = None,
    top_k: int = 5,
    threads: int = 1,
    **options: Any,
) -> Retrieved:
    """Retrieve the images that are similar to a seed, by a strategy of the pipeline's.

    `threshold`: those whose cosine with a seed image reaches `threshold` (inclusive), or the
    `target` most similar ones (a number, or a share between 0 and 1). `knn`: the `neighbours` (4)
    nearest images of each seed image (`collisions`: `once` or `deeper`). `cluster`: `images` of each
    cluster with `more_than` seed images, at most `cap`, of `clusters` clusters. The options are those
    of `retrieve.knn` and `retrieve.cluster` of a pipeline; for both, `threshold` is a floor. Of what
    is retrieved, `max_images` limits all to the most similar. Ties go to the first row.

    Raises ValueError for other shapes, what is not finite, seeds without a vector, and options that
    the strategy does not have.
    """
    stored, seeds = checked("vectors", vectors), checked("seed_vectors", seed_vectors)
    if stored.shape[1] != seeds.shape[1]:
        raise ValueError(f"vectors have {stored.shape[1]} dimensions, seeds {seeds.shape[1]}")
    rows, seed_rows = (np.flatnonzero((array != 0).any(1)) for array in (stored, seeds))
    if not len(seed_rows):
        raise ValueError("seed_vectors holds no vector that is not zero")
    use_threads(threads)
    images, seeds = stored[rows], seeds[seed_rows]
    cosines, found = _top_k(images, seeds, top_k)
    first = cosines[:, 0]
    floor = NO_FLOOR if threshold is None else threshold
    if strategy == "threshold":
        taken = _take_similar(first, threshold, target, options)
    elif target is not None:
        raise ValueError(f"target is for the strategy threshold, not for {strategy}")
    elif strategy == "knn":
        taken = _take_neighbours(images, seeds, first, floor, KnnSettings(**options))
    elif strategy == "cluster":
        taken = _take_of_clusters(images, seeds, first, floor, FromClustersSettings(**options))
    else:
        raise ValueError(f"no strategy {strategy!r}: there are threshold, knn and cluster")
    if max_images is not None:
        ranked = taken[np.argsort(-first[taken], kind="stable")]
        taken = ranked[:max_images]
    kept = np.zeros(len(stored), bool)
    kept[rows[taken]] = True
    near = np.full((len(stored), cosines.shape[1]), -1, np.int64)
    similarity = np.full(near.shape, np.nan, np.float32)
    near[rows], similarity[rows] = seed_rows[found], cosines
    return Retrieved(kept, near, similarity)


def _top_k(
    images: Float[np.ndarray, "n d"], seeds: Float[np.ndarray, "s d"], k: int
) -> tuple[Float32[np.ndarray, "n k"], Int64[np.ndarray, "n k"]]:
    if k < 1:
        raise ValueError(f"top_k is {k}: ask for one seed image at least")
    return top_k(images, seeds, k)


def _take_similar(
    similarity: Float32[np.ndarray, " n"],
    threshold: float | None,
    target: int | float | None,
    options: dict[str, Any],
) -> Int64[np.ndarray, " t"]:
    if options:
        raise ValueError(f"the strategy threshold has no {', '.join(sorted(options))}")
    if (threshold is None) == (target is None):
        raise ValueError("the strategy threshold needs a threshold or a target, and not both")
    if target is None:
        assert threshold is not None
        return _taken(below_threshold(similarity, threshold))
    if isinstance(target, float):
        if not 0 < target < 1:
            raise ValueError(f"target is {target}: a share lies between 0 and 1")
        target = max(1, round(target * len(similarity)))
    none = np.zeros(len(similarity), bool)
    return _taken(beyond_target(similarity, none, target)[0])


def _take_neighbours(
    images: Float[np.ndarray, "n d"],
    seeds: Float[np.ndarray, "s d"],
    similarity: Float32[np.ndarray, " n"],
    floor: float,
    settings: KnnSettings,
) -> Int64[np.ndarray, " t"]:
    able = int((similarity >= np.float32(floor)).sum())
    for number in count():
        depth = max(1, min(settings.neighbours * 4**number, len(images)))
        cosines, found = nearest_images(seeds, [images], depth)
        reach = cosines >= np.float32(floor)
        seed = np.broadcast_to(np.arange(len(seeds))[:, None], found.shape)[reach]
        wanted = found[reach]
        if settings.collisions == "once":
            break
        holds = deal(seed, wanted, cosines[reach], settings.neighbours)
        wanted = wanted[holds]
        lacks = np.bincount(seed[holds], minlength=len(seeds)) < settings.neighbours
        may_ask = reach.all(1) & (depth < len(images))
        if len(wanted) == able or not (lacks & may_ask).any():
            break
    return np.unique(wanted)


def _take_of_clusters(
    images: Float[np.ndarray, "n d"],
    seeds: Float[np.ndarray, "s d"],
    similarity: Float32[np.ndarray, " n"],
    floor: float,
    settings: FromClustersSettings,
) -> Int64[np.ndarray, " t"]:
    if settings.order != "nearest":
        raise ValueError("order is by a hash of keys in a pipeline: only nearest is known here")
    cut = ClusterSettings(clusters=settings.clusters or "auto")
    sample = unit(images[sample_rows(len(images), cut)])
    centroids = find_centroids(sample, len(images), cut)
    cells = centroids, group_centroids(centroids, cut)
    seeds_in = np.bincount(nearest_of(unit(seeds), *cells), minlength=len(centroids))
    reach = np.flatnonzero(similarity >= np.float32(floor))
    order = reach[np.argsort(-similarity[reach], kind="stable")]
    limits = (settings.images, settings.more_than, settings.cap)
    return _taken(take_from_clusters(nearest_of(unit(images), *cells), seeds_in, order, *limits))


def _taken(missed: Int8[np.ndarray, " n"]) -> Int64[np.ndarray, " t"]:
    return np.flatnonzero(missed == 0)
