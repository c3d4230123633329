"""The members of all clusters, side by side in files, of which a few are mapped at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from curate.neighbours.search import Searchable
from shared.storage.arrays import map_array

CENTROIDS, AXES = "centroids.npy", "axes.npy"
MAPPED = 4
"""Ranges of clusters whose files are mapped at a time."""


@dataclass(frozen=True)
class Clusters:
    """The members of all clusters, as left by the `members` units."""

    centers: Path
    folders: tuple[Path, ...]
    ranges: tuple[tuple[int, int], ...]
    images: int
    """Vectors of all of them."""

    def load(self) -> LoadedClusters:
        """Return the memory-mapped arrays."""
        return LoadedClusters(self)


class LoadedClusters:
    """Vectors and numbers of every cluster, mapped when asked for.

    `centroids` float32 [k, d], and `axes` float32 [d, h], along which their vectors differ most.

    The files of `MAPPED` ranges of clusters are open at a time, four each.
    """

    def __init__(self, clusters: Clusters) -> None:
        self.centroids = np.load(clusters.centers / CENTROIDS, mmap_mode="r")
        self.axes = np.load(clusters.centers / AXES)
        self.images = clusters.images
        self._firsts = np.array([first for first, _ in clusters.ranges])
        self._folders = clusters.folders
        self.mapped: dict[int, tuple[np.ndarray, ...]] = {}
        """By range, the one used last at the end."""

    def __len__(self) -> int:
        return len(self.centroids)

    def of(self, cluster: int) -> Searchable:
        """Return the images of a cluster, by number."""
        return self.side_by_side(cluster, cluster + 1)

    def side_by_side(self, first: int, last: int) -> Searchable:
        """Return the images of the clusters `first` to `last` of one range, by cluster and number."""
        part = self._range_of(first)
        vectors, head, numbers, offsets = self._map(part)
        start = self._firsts[part]
        rows = slice(offsets[first - start], offsets[last - start])
        return Searchable(vectors[rows], numbers[rows], head[rows])

    def offsets(self, first: int, last: int) -> Int64[np.ndarray, " offsets"]:
        """Return where each of the clusters `first` to `last` begins in `side_by_side`, and the end."""
        part = self._range_of(first)
        start = self._firsts[part]
        offsets = self._map(part)[-1][first - start : last - start + 1]
        return offsets - offsets[0]

    def _range_of(self, cluster: int) -> int:
        return int(np.searchsorted(self._firsts, cluster, side="right")) - 1

    def _map(self, part: int) -> tuple[np.ndarray, ...]:
        arrays = self.mapped.pop(part, None)
        if arrays is None:
            arrays = tuple(map_array(self._folders[part] / f"{name}.npy") for name in _ARRAYS)
        self.mapped[part] = arrays
        if len(self.mapped) > MAPPED:
            del self.mapped[next(iter(self.mapped))]
        return arrays


_ARRAYS = ("vectors", "heads", "numbers", "offsets")
