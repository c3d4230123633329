"""What share of the copies the probes find, measured on a sample against exact search.

Units: `draw_sample` (reduce) and `count_found` (map over ranges of clusters), so that the sample is as
large for any number of images. What a search of the pool loses by its bound on `neighbours` is not
counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer

from curate.catalogue.collection import Collection
from curate.catalogue.part_files import VECTORS
from curate.dedup.bar import Bar, copies
from curate.dedup.near import DedupSettings, probes_of
from curate.dedup.probes import Probes
from curate.neighbours.cluster import load_centroids
from curate.neighbours.clusters import Clusters
from curate.neighbours.heads import heads
from curate.neighbours.levels import nearest_of
from curate.neighbours.search import Searchable, unit, use_threads

VERSION = 4
SAMPLE = "sample.npz"


def draw_sample(
    collection: Collection,
    clusters: Clusters,
    heaps: Path | None,
    bar: Bar,
    settings: DedupSettings,
    threads: int,
    *,
    out: Path,
) -> dict[str, int]:
    """Write a seeded sample of the images, and in which clusters each is searched."""
    use_threads(threads)
    usable = collection.usable
    size = min(settings.recall_sample, len(usable))
    rng = np.random.default_rng(settings.seed)
    numbers = np.sort(rng.choice(usable, size, replace=False))
    stored = collection.vectors(numbers)
    loaded, vectors = clusters.load(), unit(stored)
    home, head = nearest_of(vectors, *load_centroids(clusters.centers)), heads(vectors, loaded.axes)
    asks = [np.empty((0, 2), np.int64)]
    probes = probes_of(loaded, heaps, bar.threshold, settings) if size else None
    for own in np.unique(home).tolist():
        assert probes is not None
        mine = np.flatnonzero(home == own)
        row, visited = probes.of(head[mine], own)
        asks.append(np.stack([mine[row], visited], 1))
    np.save(out / VECTORS, stored)
    np.savez(out / SAMPLE, home=home, asks=np.concatenate(asks), numbers=numbers, heads=head)
    return {"queries": size}


def count_found(
    clusters: Clusters,
    sample: Path,
    first: int,
    last: int,
    heaps: Path | None,
    bar: Bar,
    settings: DedupSettings,
    threads: int,
    *,
    out: Path,
) -> dict[str, int]:
    """Count the pairs of the sample with images of the clusters `first` to `last`, and those found."""
    use_threads(threads)
    loaded = clusters.load()
    with np.load(sample / SAMPLE) as drawn:
        stored = np.load(sample / VECTORS)
        asked = Searchable(stored, drawn["numbers"], drawn["heads"])
        home, asks = drawn["home"], drawn["asks"]
    probes = probes_of(loaded, heaps, bar.threshold, settings)
    base, offsets = loaded.side_by_side(first, last), loaded.offsets(first, last)
    pairs = found = 0
    for row, near in copies(asked, np.arange(len(asked)), base, bar):
        own = first + np.searchsorted(offsets, near, side="right") - 1
        asks_there = _among(np.stack([row, own], 1), asks, len(loaded))
        pairs, found = pairs + len(row), found + int(asks_there.sum())
        row, near, own = row[~asks_there], near[~asks_there], own[~asks_there]
        for cluster in np.unique(own).tolist():
            here = own == cluster
            found += _found_back(base, near[here], home[row[here]], cluster, probes, len(loaded))
    return {"pairs": pairs, "found": found}


def add_up(queries: int, counted: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return how many images asked, their pairs in all, and the number and share of those found."""
    pairs, found = (sum(each[name] for each in counted) for name in ("pairs", "found"))
    recall = found / pairs if pairs else None
    return {"queries": queries, "pairs": pairs, "found": found, "recall": recall}


def _found_back(
    members: Searchable,
    rows: Integer[np.ndarray, " n"],
    homes: Integer[np.ndarray, " n"],
    own: int,
    probes: Probes,
    count: int,
) -> int:
    """Return how many of the `rows`, of the cluster `own`, are searched in the clusters `homes`."""
    assert members.heads is not None
    ends, place = np.unique(rows, return_inverse=True)
    back = 0
    for at in range(0, len(ends), probes.together):
        row, visited = probes.of(members.heads[ends[at : at + probes.together]], own)
        here = (place >= at) & (place < at + probes.together)
        asked = np.stack([place[here] - at, homes[here]], 1)
        back += int(_among(asked, np.stack([row, visited], 1), count).sum())
    return back


def _among(
    pairs: Integer[np.ndarray, "n 2"], those: Integer[np.ndarray, "m 2"], clusters: int
) -> Bool[np.ndarray, " n"]:
    """Return which pairs of a row and a cluster are among those."""
    one, other = (each[:, 0].astype(np.int64) * clusters + each[:, 1] for each in (pairs, those))
    among: Bool[np.ndarray, " n"] = np.isin(one, other)
    return among
