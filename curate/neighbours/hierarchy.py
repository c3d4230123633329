"""Clusters of clusters: k-means over vectors, then over its centroids, level by level.

Hierarchical k-means with resampling, algorithm 1 of Vo et al. (arXiv 2405.15613): k-means puts most
of its centroids where most vectors are; on the vectors nearest to each centroid, as many of every
cluster, it spreads them over what there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int32, Int64

from curate.neighbours.cluster import ROWS
from curate.neighbours.search import cosine, nearest, spherical_kmeans, unit

POINTS_PER_CLUSTER = 256
"""Vectors for each cluster that k-means sees, at most: a seeded sample of more."""
LEVELS = 4
MEAN_SIZE, FAN_OUT = 50, 10
"""Vectors of a lowest cluster, and clusters of one above, where nobody says how many."""


@dataclass(frozen=True)
class Hierarchy:
    """The clusters of n vectors, at the lowest level first."""

    parents: tuple[Int32[np.ndarray, " _"], ...]
    """Of every vector its lowest cluster, of every lowest cluster the one above it, and so on."""
    similarity: Float32[np.ndarray, " n"]
    """The cosine of every vector with the centroid of its lowest cluster."""

    def counts(self) -> list[Int64[np.ndarray, " _"]]:
        """Return how many vectors each cluster of each level holds."""
        held = np.ones(len(self.similarity), np.int64)
        counts = []
        for level, parent in enumerate(self.parents):
            above = self.parents[level + 1 :]
            held = np.bincount(parent, held, len(above[0]) if above else 0).astype(np.int64)
            counts.append(held)
        return counts

    def paths(self) -> Int32[np.ndarray, "k levels"]:
        """Return the clusters that hold each lowest cluster, from the top down to itself."""
        path = [np.arange(len(self.counts()[0]), dtype=np.int32)]
        for parent in self.parents[1:]:
            path.append(parent[path[-1]])
        return np.stack(path[::-1], axis=1)


def choose_levels(count: int) -> list[int]:
    """Return how many clusters each level has for so many vectors, the lowest first.

    A cluster for every 50 vectors (of fewer than 2,500, as many as their square root), and a tenth as
    many on each level above, of two levels to four: about the published numbers for web images. One
    level alone balances little: what there is more of has more clusters.
    """
    lowest = max(1, round(count**0.5), count // MEAN_SIZE)
    levels = [lowest, max(1, lowest // FAN_OUT)]
    while len(levels) < LEVELS and levels[-1] >= FAN_OUT**2:
        levels.append(levels[-1] // FAN_OUT)
    return levels


def find_hierarchy(
    vectors: Float[np.ndarray, "n d"],
    levels: Sequence[int],
    *,
    resample: int,
    iterations: int,
    seed: int,
) -> Hierarchy:
    """Return the clusters of stored vectors, and as many clusters of these as `levels` says.

    There are no more clusters than what they hold. Takes 6 d bytes for each vector that k-means sees
    (measured with d = 384), beside the vectors themselves.
    """
    points: Float[np.ndarray, "m d"] = vectors
    parents, similarity = [], np.empty(0, np.float32)
    for level, clusters in enumerate(levels):
        centroids = _fit(points, np.arange(len(points)), clusters, iterations, seed)
        parent, cosines = _assign(points, centroids)
        for _ in range(resample):
            central = _most_central(parent, cosines, clusters)
            centroids = _fit(points, central, clusters, iterations, seed)
            parent, cosines = _assign(points, centroids)
        if level == 0:
            similarity = cosines
        parents.append(parent)
        points = centroids
    return Hierarchy(tuple(parents), similarity)


def _fit(
    points: Float[np.ndarray, "n d"],
    rows: Int64[np.ndarray, " m"],
    clusters: int,
    iterations: int,
    seed: int,
) -> Float32[np.ndarray, "k d"]:
    size = min(len(rows), clusters * POINTS_PER_CLUSTER)
    sample = np.sort(np.random.default_rng(seed).choice(rows, size, replace=False))
    return spherical_kmeans(unit(points[sample]), clusters, iterations, seed)


def _assign(
    points: Float[np.ndarray, "n d"], centroids: Float32[np.ndarray, "k d"]
) -> tuple[Int32[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
    parent = np.empty(len(points), np.int32)
    similarity = np.empty(len(points), np.float32)
    for at in range(0, len(points), ROWS):
        some = unit(points[at : at + ROWS])
        own = nearest(some, centroids)
        parent[at : at + ROWS], similarity[at : at + ROWS] = own, cosine(some, centroids[own])
    return parent, similarity


def _most_central(
    parent: Int32[np.ndarray, " n"], similarity: Float32[np.ndarray, " n"], clusters: int
) -> Int64[np.ndarray, " m"]:
    """Return the vectors nearest to the centroid of each cluster: half of the mean cluster's number."""
    most = max(2, -(-len(parent) // (2 * clusters)))
    order = np.lexsort((-similarity, parent))
    ordered = parent[order]
    place = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return order[place < most]
