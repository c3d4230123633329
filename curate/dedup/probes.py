"""In which clusters, besides its own, a vector's copies are looked for.

For unit centroids, two vectors of cosine >= t lie within delta = sqrt(2 - 2t). A vector x of the
cluster with centroid c1 is searched in cluster j too when

    cos(x, c1) - cos(x, cj) <= (delta / 2) * |c1 - cj|,

that is, when x is within delta / 2 of the bisector of c1 and cj, or beyond it. The distances of two
vectors of different clusters to the bisector, each counted from its own side, add up to no more than
theirs from one another. So of a pair one end is that near: when every vector queries, every pair is
found, however the vectors came into their clusters.

Only the nearest clusters are searched, as many as a cap says; so is an inverted file (IVF). Clusters
whose centroids lie within delta / 2 of one another count as one: k-means cuts a heap of near-identical
images into many, and a cap that stopped among them would leave one representative in each. A search of
the pool has no threshold for clusters: the nearest are searched, all of them.

So that a vector costs the same among any number of clusters, only the `LISTED` ones nearest to its own
are ranked, or `TIMES` the cap, and by their coordinates along principal axes. What these leave out of
cos(x, c1) - cos(x, cj) is bounded (Cauchy and Schwarz), so that the rule above excludes none too many.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int64

from curate.dedup.groups import UNDECIDED, EdgeBuffer, greedy
from curate.neighbours.clusters import CENTROIDS, Clusters
from curate.neighbours.search import Searchable, neighbours, use_threads

VERSION = 2
HEAPS = "heaps.npy"
ROUNDING = np.float32(1e-5)
LISTED, TIMES = 256, 16
_PAIRS = 1_000_000
_LEADERS = 256
"""Earlier centroids that are held for one, to find its leader among them; else it is alone."""
_TOGETHER = 64
"""Clusters whose nearest ones are found together."""


@dataclass(frozen=True)
class _Around:
    """The clusters that are ranked for the vectors of one."""

    clusters: Int64[np.ndarray, " l"]
    """In the order of their numbers."""
    centroids: Float32[np.ndarray, "l h"]
    """Along the axes."""
    own: int
    """Where among these the vectors' own cluster is."""
    margin: Float32[np.ndarray, " l"] | None
    """Half of delta times the distance of the centroids. None: all may be searched."""
    beside: Float32[np.ndarray, " l"] | None
    """The part of that distance that the axes leave out."""
    heap: Int64[np.ndarray, " l"] | None
    """The heap of each, from 0. None where each is one by itself."""


class Probes:
    """The rule for given centroids (unit vectors) of clusters, axes, heaps, threshold and cap.

    Without a threshold, that of a search of the pool.
    """

    def __init__(
        self,
        centroids: Float32[np.ndarray, "k d"],
        axes: Float32[np.ndarray, "d h"],
        heap: Int64[np.ndarray, " k"],
        threshold: float | None,
        cap: int,
    ) -> None:
        self._centroids = centroids
        self._axes = axes
        self._along = centroids @ axes
        self._heap = heap
        self._delta = None if threshold is None else np.sqrt(max(0.0, 2 - 2 * threshold))
        self._cap = cap
        self._listed = min(len(centroids), max(LISTED, TIMES * cap))
        self._block = -1, np.empty((0, 0), np.float32)
        self._last: tuple[int, _Around] | None = None

    @property
    def together(self) -> int:
        """For how many vectors the probes are found together, in bounded memory."""
        return max(1, _PAIRS // max(1, self._listed))

    def of(
        self, vectors: Float32[np.ndarray, "n d"], own: int
    ) -> tuple[Int64[np.ndarray, " p"], Int64[np.ndarray, " p"]]:
        """Return where unit vectors of the cluster `own` are searched: rows, and their clusters."""
        around = self._around(own)
        along = vectors @ self._axes
        nearness = along @ around.centroids.T
        least = nearness[:, around.own] - ROUNDING
        nearest = nearness.copy()
        nearest[:, around.own] = 2
        flat = np.flatnonzero(self._among_nearest(nearest, around.heap))
        row, place = np.divmod(flat, len(around.clusters))
        if around.margin is not None and around.beside is not None:
            beside = np.sqrt(np.maximum(0, 1 - np.einsum("nh,nh->n", along, along)) + ROUNDING)
            most = nearness.ravel()[flat] + beside[row] * around.beside[place]
            may = most + around.margin[place] >= least[row]
            may |= place == around.own
            row, place = row[may], place[may]
        return row, around.clusters[place]

    def _among_nearest(
        self, nearness: Float32[np.ndarray, "n l"], heap: Int64[np.ndarray, " l"] | None
    ) -> Bool[np.ndarray, "n l"]:
        """Return which clusters are, of each row, of the nearest heaps, as many as the cap says."""
        if heap is not None:
            order = np.argsort(heap, kind="stable")
            starts = np.searchsorted(heap[order], np.arange(heap.max() + 1))
            best = np.maximum.reduceat(nearness[:, order], starts, axis=1)
            near: Bool[np.ndarray, "n l"] = self._among_nearest(best, None)[:, heap]
            return near
        count = nearness.shape[1]
        if self._cap >= count:
            return np.ones(nearness.shape, bool)
        cut = np.partition(nearness, count - self._cap, axis=1)[:, count - self._cap]
        near = nearness >= cut[:, None]
        return near

    def _around(self, own: int) -> _Around:
        if self._last is None or self._last[0] != own:
            self._last = own, self._find_around(own)
        return self._last[1]

    def _find_around(self, own: int) -> _Around:
        block, row = divmod(own, _TOGETHER)
        if self._block[0] != block:
            some = self._centroids[block * _TOGETHER : (block + 1) * _TOGETHER]
            self._block = block, some @ self._centroids.T
        nearness = self._block[1][row].copy()
        nearness[own] = 2
        clusters = np.arange(len(nearness))
        if self._listed < len(clusters):
            clusters = np.sort(np.argpartition(-nearness, self._listed - 1)[: self._listed])
        place, along = int(np.searchsorted(clusters, own)), self._along[clusters]
        if self._delta is None:
            return _Around(clusters, along, place, None, None, None)
        squared = np.maximum(0, 2 - 2 * nearness[clusters])
        squared[place] = 0
        kept = np.square(along - along[place]).sum(1)
        beside = np.sqrt(np.maximum(0, squared - kept) + ROUNDING)
        numbers, heap = np.unique(self._heap[clusters], return_inverse=True)
        alone = len(numbers) == len(heap)
        margin = np.float32(self._delta / 2) * np.sqrt(squared)
        return _Around(clusters, along, place, margin, beside, None if alone else heap)


def find_heaps(clusters: Clusters, threshold: float, threads: int, *, out: Path) -> dict[str, int]:
    """Write the heap of each cluster, for a threshold: `heaps.npy` int64 [k]."""
    use_threads(threads)
    heap = heaps(np.load(clusters.centers / CENTROIDS), 1 - (1 - threshold) / 4)
    np.save(out / HEAPS, heap)
    return {"heaps": len(np.unique(heap))}


def heaps(centroids: Float32[np.ndarray, "k d"], cosine: float) -> Int64[np.ndarray, " k"]:
    """Return for each centroid the number of its heap: the first within `cosine` leads it."""
    searchable = Searchable(centroids, np.arange(len(centroids)))
    edges = EdgeBuffer("greedy", _LEADERS)
    for rows, others in neighbours(searchable, searchable.numbers, searchable, cosine):
        edges.add(rows[rows > others], others[rows > others])
    status = np.full(len(centroids), UNDECIDED, np.int8)
    leader = np.full(len(centroids), -1, np.int64)
    greedy(*edges.result(), status, leader)
    return np.unique(np.where(leader < 0, searchable.numbers, leader), return_inverse=True)[1]
