"""Where shards begin: they are filled in the order of the kept images, up to so many or so many bytes.

Known before a shard is written, so that nothing depends on which is written first, or by whom. Where
a run adds to a result, its images begin a shard behind those that are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from curate.catalogue.collection import Collection
from shared.shard_folder.shards import output_key, shard_name
from shared.storage.stores import publish

Edges = Int64[np.ndarray, " edges"]


@dataclass(frozen=True)
class Written:
    """What the shards of a result hold that a run adds to: the first of the kept images."""

    outputs: Path
    """Parquet: `output_shard` and `output_key` of each, in their order."""
    images: int
    shards: int
    """How many numbers of shards are taken."""


@dataclass(frozen=True)
class ShardBounds:
    """Which places of the order of the kept images each new shard holds. Travels to the workers."""

    path: Path
    """int64 [shards + 1]: the place of each shard's first image, and how many images there are."""
    written: Written | None = None
    """What stands before them."""

    @cached_property
    def edges(self) -> Edges:
        """What stands in the file, memory-mapped."""
        edges: Edges = np.load(self.path, mmap_mode="r")
        return edges

    def __len__(self) -> int:
        return len(self.edges) - 1

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "written": self.written}

    def all_edges(self) -> Edges:
        """Return where shards begin, those before these included, and how many images there are."""
        if self.written is None:
            return self.edges
        names = pq.read_table(self.written.outputs, columns=["output_shard"])["output_shard"]
        codes = names.combine_chunks().dictionary_encode().indices.to_numpy()
        return np.concatenate([np.flatnonzero(np.diff(codes, prepend=-1)), self.edges])

    @property
    def taken(self) -> int:
        """How many numbers of shards are taken, these included."""
        return len(self) + (self.written.shards if self.written else 0)

    def name(self, shard: int) -> str:
        """Return what the shard with these places is called."""
        return shard_name(shard + (self.written.shards if self.written else 0))

    def places(self, shard: int) -> slice:
        """Return the places of a shard's images."""
        return slice(*self.edges[shard : shard + 2].tolist())

    def outputs(self, places: Int64[np.ndarray, " n"]) -> tuple[pa.StringArray, pa.StringArray]:
        """Return shards and keys of the images at `places`; nulls where that is -1."""
        shard = np.searchsorted(self.edges, places, side="right") - 1
        outputs = np.full((2, len(places)), None, object)
        new = np.flatnonzero(shard >= 0)
        shards, of = np.unique(shard[new], return_inverse=True)
        names = np.array([self.name(each) for each in shards.tolist()], object)[of]
        index = (places[new] - self.edges[shards][of]).tolist()
        outputs[0, new] = names
        outputs[1, new] = [output_key(*each) for each in zip(names, index, strict=True)]
        there = np.flatnonzero((shard < 0) & (places >= 0))
        if self.written is not None and len(there):
            known = pq.read_table(self.written.outputs, memory_map=True).take(places[there])
            outputs[:, there] = [column.to_pylist() for column in known.columns]
        return pa.array(outputs[0], pa.string()), pa.array(outputs[1], pa.string())


def bound_shards(
    path: Path,
    datasets: Sequence[Collection],
    selected: Path,
    exported: int,
    most_images: int,
    most_bytes: int | None,
    written: Written | None = None,
) -> ShardBounds:
    """Write the bounds of the shards of `exported` images to `path`, from what `select` left.

    With `most_bytes` a reduce that reads one column of facts, part by part: 16 bytes an image.
    """
    first = written.images if written else 0
    sizes = None if most_bytes is None else _sizes(datasets, selected, exported)[first:]
    np.save(path, first + cut(exported - first, most_images, sizes, most_bytes))
    publish(path)
    return ShardBounds(path, written)


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
