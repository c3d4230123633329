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

Clusters are ranked by products of 8-bit heads (`neighbours/heads.py`), a centroid's without what its axes
leave out. What that leaves out of cos(x, c1) - cos(x, cj), and what heads round off, is bounded (Cauchy
and Schwarz), so that the rule above excludes none too many. All clusters are ranked, or of many those
nearest to the vector's own (`count_ranked`): most lie too far from that, but what lies far from its
centroid is near to others than that is. Of 4,000 clusters a million images find 0.9882 of their planted
copies when all are ranked, 0.9872 of a quarter, for 0.4 of the time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int8, Int32, Int64

from curate.dedup.groups import UNDECIDED, EdgeBuffer, greedy
from curate.neighbours.clusters import CENTROIDS, Clusters
from curate.neighbours.heads import errors, heads_along, product_unit, products_with, rests
from curate.neighbours.search import Searchable, neighbours, use_threads

VERSION = 4
HEAPS = "heaps.npy"
ROUNDING = np.float32(1e-5)
LEAST_RANKED, MOST_RANKED = 1_024, 4_096
TOP = 2**23
"""More than any product of heads."""
_PAIRS = 2**19
"""Vectors times clusters that are ranked together."""
_LEADERS = 256
"""Earlier centroids that are held for one, to find its leader among them; else it is alone."""
_TOGETHER = 64
"""Clusters whose nearest ones are found together."""

Products = Int32[np.ndarray, "n l"] | Float32[np.ndarray, "n l"]


@dataclass(frozen=True)
class _Around:
    """The clusters that are ranked for the vectors of one."""

    clusters: Int64[np.ndarray, " l"]
    """In the order of their numbers."""
    multiply: Callable[[Int8[np.ndarray, "n w"]], Products]
    """Gives the products of vectors' heads with those of these clusters."""
    own: int
    """Where among these the vectors' own cluster is."""
    heaps: _Heaps | None
    """None where each is one by itself."""
    bounds: _Bounds | None
    """None: all may be searched."""


@dataclass(frozen=True)
class _Heaps:
    """The clusters, among some, that count as one with others."""

    places: Int64[np.ndarray, " p"]
    """Where they are, heap by heap."""
    starts: Int64[np.ndarray, " g"]
    """The first of each heap, in `places`."""
    sizes: Int64[np.ndarray, " g"]

    @classmethod
    def among(cls, heap: Int64[np.ndarray, " l"]) -> _Heaps | None:
        """Return those of clusters in these heaps; None where each is one by itself."""
        _, which, held = np.unique(heap, return_inverse=True, return_counts=True)
        places = np.flatnonzero(held[which] > 1)
        if not len(places):
            return None
        places = places[np.argsort(heap[places], kind="stable")]
        _, starts, sizes = np.unique(heap[places], return_index=True, return_counts=True)
        return cls(places, starts, sizes)


@dataclass(frozen=True)
class _Bounds:
    """By how much a vector may be nearer to its own centroid than to those of others that are searched."""

    margin: Float32[np.ndarray, " l"]
    """Half of delta times the distance of the centroids."""
    apart: Float32[np.ndarray, " l"]
    """That distance."""
    beside: Float32[np.ndarray, " l"]
    """The part of it that the axes leave out."""
    error: Float32[np.ndarray, " l"]
    """What the heads of both centroids round off, at most."""

    def allow(
        self,
        head: Int8[np.ndarray, "n h"],
        row: Int64[np.ndarray, " p"],
        place: Int64[np.ndarray, " p"],
        gap: Float32[np.ndarray, " p"],
    ) -> Bool[np.ndarray, " p"]:
        """Return which pairs of a vector and a cluster may reach the margin, by their product's gap."""
        error, rest = errors(head)[row], rests(head)[row]
        slack = rest * self.beside[place] + error * self.apart[place]
        slack += (1 + error) * self.error[place]
        allowed: Bool[np.ndarray, " p"] = gap <= self.margin[place] + slack + ROUNDING
        return allowed


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
        self._along = centroids @ axes
        self._squared = np.square(self._along).sum(1)
        self._heads = heads_along(centroids, axes)
        self._unit = product_unit(self._heads.shape[1] - 1)
        self._heap = heap
        self._delta = None if threshold is None else np.sqrt(max(0.0, 2 - 2 * threshold))
        self._cap = cap
        self._ranked = count_ranked(len(centroids), cap)
        everything = np.arange(len(centroids))
        self._everything = self._among(everything) if len(everything) == self._ranked else None
        self._block = -1, np.empty((2, 0, 0), np.float32)
        self._last: tuple[int, _Around] | None = None

    @property
    def together(self) -> int:
        """For how many vectors the probes are found together, in bounded memory."""
        return max(1, _PAIRS // max(1, self._ranked))

    def of(
        self, head: Int8[np.ndarray, "n h"], own: int
    ) -> tuple[Int64[np.ndarray, " p"], Int64[np.ndarray, " p"]]:
        """Return where vectors of the cluster `own`, by their heads, are searched: rows, and clusters."""
        around = self._around(own)
        products = around.multiply(head[:, :-1])
        at_home = products[:, around.own].copy()
        products[:, around.own] = TOP
        flat = np.flatnonzero(self._among_nearest(products, around.heaps))
        row, place = np.divmod(flat, len(around.clusters))
        if around.bounds is not None:
            gap = (at_home[row] - products.ravel()[flat]).astype(np.float32) * self._unit
            may = around.bounds.allow(head, row, place, gap)
            row, place = row[may], place[may]
        return row, around.clusters[place]

    def _among_nearest(self, products: Products, heaps: _Heaps | None) -> Bool[np.ndarray, "n l"]:
        """Return which clusters are, of each row, of the nearest heaps, as many as the cap says."""
        if heaps is not None:
            first = heaps.places[heaps.starts]
            best = np.maximum.reduceat(products[:, heaps.places], heaps.starts, axis=1)
            lifted = products.copy()
            lifted[:, heaps.places] = -TOP
            lifted[:, first] = best
            near = self._among_nearest(lifted, None)
            near[:, heaps.places] = np.repeat(near[:, first], heaps.sizes, axis=1)
            return near
        count = products.shape[1]
        if self._cap >= count:
            return np.ones(products.shape, bool)
        cut = np.partition(products, count - self._cap, axis=1)[:, count - self._cap]
        return products >= cut[:, None]

    def _around(self, own: int) -> _Around:
        if self._last is None or self._last[0] != own:
            self._last = own, self._find_around(own)
        return self._last[1]

    def _find_around(self, own: int) -> _Around:
        nearness, kept = self._nearness_of(own)
        clusters, chosen = np.arange(len(nearness)), self._everything
        if chosen is None:
            nearness[own] = 2
            clusters = np.sort(np.argpartition(-nearness, self._ranked - 1)[: self._ranked])
            chosen = self._among(clusters)
        place = int(np.searchsorted(clusters, own))
        multiply, heaps = chosen
        if self._delta is None:
            return _Around(clusters, multiply, place, heaps, None)
        squared = np.maximum(0, 2 - 2 * nearness[clusters])
        squared[place] = 0
        along = self._squared[clusters] + self._squared[own] - 2 * kept[clusters]
        apart, error = np.sqrt(squared), errors(self._heads[clusters])
        bounds = _Bounds(
            np.float32(self._delta / 2) * apart,
            apart,
            np.sqrt(np.maximum(0, squared - along) + ROUNDING),
            error + error[place],
        )
        return _Around(clusters, multiply, place, heaps, bounds)

    def _nearness_of(self, own: int) -> tuple[Float32[np.ndarray, " k"], Float32[np.ndarray, " k"]]:
        """Return the products of a centroid with all, whole and along the axes."""
        block, row = divmod(own, _TOGETHER)
        if self._block[0] != block:
            some = slice(block * _TOGETHER, (block + 1) * _TOGETHER)
            products = (each[some] @ each.T for each in (self._centroids, self._along))
            self._block = block, np.stack(list(products))
        nearness, kept = self._block[1][:, row]
        return nearness.copy(), kept

    def _among(
        self, clusters: Int64[np.ndarray, " l"]
    ) -> tuple[Callable[[Int8[np.ndarray, "n w"]], Products], _Heaps | None]:
        """Return what multiplies with the heads of some centroids, and their heaps."""
        return products_with(self._heads[clusters, :-1]), _Heaps.among(self._heap[clusters])


def count_ranked(clusters: int, cap: int = 0) -> int:
    """Return how many of so many clusters are ranked for a vector, of which `cap` are searched at most.

    A quarter, within bounds; not fewer than are searched, up to the bound.
    """
    return min(clusters, max(LEAST_RANKED, min(MOST_RANKED, max(clusters // 4, cap))))


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
