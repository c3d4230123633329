"""In which clusters, besides its own, a vector's copies are looked for: two rules.

`NearestCells` are those of the nearest centroids, as an inverted file (IVF) is searched.

`MarginProbes` look where a copy may be. For unit centroids, two vectors of cosine >= t lie within delta = sqrt(2 - 2t). A vector x of the
cluster with centroid c1 is searched in cluster j too when

    cos(x, c1) - cos(x, cj) <= (delta / 2) * |c1 - cj|,

that is, when x is within delta / 2 of the bisector of c1 and cj. Of a pair that a bisector splits,
one end is: when every vector queries, every pair is found.

The clusters are ranked by the left side minus the right, and capped. Clusters whose centroids lie
within delta / 2 of one another count as one: k-means cuts a heap of near-identical images into
many, and a cap that stopped among them would leave one representative in each.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int64

from curate.dedup.groups import UNDECIDED, greedy, sorted_edges
from curate.neighbours.search import Searchable, neighbours

ROUNDING = np.float32(1e-5)


@runtime_checkable
class Probes(Protocol):
    """A rule for given centroids."""

    def __len__(self) -> int:
        """Return how many centroids there are."""
        ...

    def of(self, vectors: Float32[np.ndarray, "n d"], own: int) -> Bool[np.ndarray, "n k"]:
        """Return in which clusters unit vectors of the cluster `own` are searched."""
        ...


class NearestCells:
    """As many clusters as `cap`: those whose centroids (unit vectors) are nearest."""

    def __init__(self, centroids: Float32[np.ndarray, "k d"], cap: int) -> None:
        self._centroids = centroids
        self._cap = cap

    def __len__(self) -> int:
        return len(self._centroids)

    def of(self, vectors: Float32[np.ndarray, "n d"], own: int) -> Bool[np.ndarray, "n k"]:
        """Return in which clusters unit vectors of the cluster `own` are searched: there too."""
        count = len(self._centroids)
        if self._cap >= count:
            return np.ones((len(vectors), count), bool)
        nearness = vectors @ self._centroids.T
        nearness[:, own] = np.inf
        nearest = np.argpartition(-nearness, self._cap - 1, axis=1)[:, : self._cap]
        chosen = np.zeros(nearness.shape, bool)
        np.put_along_axis(chosen, nearest, True, 1)
        return chosen


class MarginProbes:
    """The margin rule for given centroids (unit vectors), threshold and cap."""

    def __init__(self, centroids: Float32[np.ndarray, "k d"], threshold: float, cap: int) -> None:
        self._centroids = centroids
        self._delta = np.float32(np.sqrt(max(0.0, 2 - 2 * threshold)))
        self._cap = cap
        self._heap = heaps(centroids, 1 - (1 - threshold) / 4)
        self._order = np.argsort(self._heap, kind="stable")
        self._starts = np.searchsorted(self._heap[self._order], np.arange(self._heap.max() + 1))

    def __len__(self) -> int:
        return len(self._centroids)

    def of(self, vectors: Float32[np.ndarray, "n d"], own: int) -> Bool[np.ndarray, "n k"]:
        """Return in which clusters unit vectors of the cluster `own` are searched."""
        apart = np.sqrt(np.maximum(0, 2 - 2 * (self._centroids @ self._centroids[own])))
        nearness = vectors @ self._centroids.T
        least = nearness[:, own] - ROUNDING
        nearness += self._delta / 2 * apart
        nearness[:, own] = np.inf
        chosen = nearness >= least[:, None]
        count = len(self._starts)
        if self._cap < count:
            one_each = count == len(self._centroids)
            by_heap = nearness if one_each else self._best_of_heaps(nearness)
            cut = np.partition(by_heap, count - self._cap, axis=1)[:, count - self._cap]
            near = by_heap >= cut[:, None]
            chosen &= near if one_each else near[:, self._heap]
        return chosen

    def _best_of_heaps(
        self, nearness: Float32[np.ndarray, "n k"]
    ) -> Float32[np.ndarray, "n heaps"]:
        return np.maximum.reduceat(nearness[:, self._order], self._starts, axis=1)


def heaps(centroids: Float32[np.ndarray, "k d"], cosine: float) -> Int64[np.ndarray, " k"]:
    """Return for each centroid the number of its heap: the first within `cosine` leads it."""
    searchable = Searchable(centroids, np.arange(len(centroids)))
    edges = [np.empty((0, 2), np.int64)]
    for rows, others in neighbours(searchable, searchable.numbers, searchable, cosine):
        worse = rows > others
        edges.append(np.stack([rows[worse], others[worse]], 1))
    status = np.full(len(centroids), UNDECIDED, np.int8)
    leader = np.full(len(centroids), -1, np.int64)
    greedy(sorted_edges(edges), np.empty(0, np.int64), status, leader)
    return np.unique(leader, return_inverse=True)[1]
