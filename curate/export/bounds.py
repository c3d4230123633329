"""Where shards begin: they are filled in the order of the kept images, up to so many or so many bytes.

Known before a shard is written, so that nothing depends on which is written first, or by whom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from curate.catalogue.collection import Collection
from shared.shards import output_key, shard_name

Edges = Int64[np.ndarray, " edges"]


@dataclass(frozen=True)
class ShardBounds:
    """Which places of the order of the kept images each shard holds. Travels to the workers."""

    path: Path
    """int64 [shards + 1]: the place of each shard's first image, and how many images there are."""

    @cached_property
    def edges(self) -> Edges:
        """What stands in the file, memory-mapped."""
        edges: Edges = np.load(self.path, mmap_mode="r")
        return edges

    def __len__(self) -> int:
        return len(self.edges) - 1

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def places(self, shard: int) -> slice:
        """Return the places of a shard's images."""
        return slice(*self.edges[shard : shard + 2].tolist())

    def outputs(self, places: Int64[np.ndarray, " n"]) -> list[tuple[str, str] | tuple[None, None]]:
        """Return shard and key of the images at `places`; None twice where that is -1."""
        shards = np.searchsorted(self.edges, places, side="right") - 1
        named = zip(shards.tolist(), places.tolist(), strict=True)
        return [
            (shard_name(shard), output_key(shard_name(shard), place - int(self.edges[shard])))
            if place >= 0
            else (None, None)
            for shard, place in named
        ]


def bound_shards(
    path: Path,
    datasets: Sequence[Collection],
    selected: Path,
    exported: int,
    most_images: int,
    most_bytes: int | None,
) -> ShardBounds:
    """Write the bounds of the shards of `exported` images to `path`, from what `select` left.

    With `most_bytes` a reduce that reads one column of facts, part by part: 16 bytes an image.
    """
    sizes = None if most_bytes is None else _sizes(datasets, selected, exported)
    np.save(path, cut(exported, most_images, sizes, most_bytes))
    return ShardBounds(path)


def cut(
    count: int,
    most_images: int,
    sizes: Int64[np.ndarray, " n"] | None = None,
    most_bytes: int | None = None,
) -> Edges:
    """Return where shards of `count` images begin, and `count`.

    A shard ends before the image with which it would hold more than `most_images`, or `sizes` of
    more than `most_bytes` in all; one that is larger alone has a shard of its own.
    """
    if sizes is None or most_bytes is None:
        return np.append(np.arange(0, count, most_images), count).astype(np.int64)
    ends = np.concatenate([[0], np.cumsum(sizes)])
    edges = [0]
    while edges[-1] < count:
        first = edges[-1]
        full = int(np.searchsorted(ends, ends[first] + most_bytes, side="right")) - 1
        edges.append(min(max(full, first + 1), first + most_images, count))
    return np.array(edges, np.int64)


def _sizes(
    datasets: Sequence[Collection], selected: Path, exported: int
) -> Int64[np.ndarray, " n"]:
    """Return the bytes of the kept images' files, as they were crawled, in their order."""
    sizes = np.empty(exported, np.int64)
    for number, data in enumerate(datasets):
        positions = np.load(selected / f"position-{number}.npy", mmap_mode="r")
        for part, (first, last) in enumerate(pairwise(data.starts.tolist())):
            own = np.array(positions[first:last])
            if (own >= 0).any():
                found = data.facts_of_part(part, ["bytes"])["bytes"].to_numpy()
                sizes[own[own >= 0]] = found[own >= 0]
    return sizes
