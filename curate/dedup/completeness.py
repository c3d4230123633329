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
from jaxtyping import Integer

from curate.catalogue.collection import Collection
from curate.catalogue.part_files import VECTORS
from curate.dedup.bar import Bar, copies
from curate.dedup.near import DedupSettings, asked_together, probes_of
from curate.dedup.probes import Probes
from curate.neighbours.cluster import AXES, Clusters
from curate.neighbours.search import Searchable, heads, nearest, unit, use_threads

VERSION = 2
SAMPLE = "sample.npz"


def draw_sample(
    collection: Collection,
    clusters: Clusters,
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
    home = nearest(vectors, loaded.centroids)
    asks = np.zeros((size, len(loaded)), bool)
    probes = probes_of(loaded, bar.threshold, settings) if size else None
    for own in np.unique(home).tolist():
        assert probes is not None
        asks[home == own] = probes.of(vectors[home == own], own)
    head = heads(vectors, np.load(clusters.centers / AXES))
    np.save(out / VECTORS, stored)
    np.savez(out / SAMPLE, home=home, asks=asks, numbers=numbers, heads=head)
    return {"queries": size}


def count_found(
    clusters: Clusters,
    sample: Path,
    first: int,
    last: int,
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
        asked = Searchable(stored, drawn["numbers"], drawn["heads"].astype(np.float32))
        home, asks = drawn["home"], drawn["asks"][:, first:last]
    probes = probes_of(loaded, bar.threshold, settings) if len(asked) else None
    pairs = found = 0
    for cluster in range(first, last):
        base = loaded.of(cluster)
        for row, near in copies(asked, np.arange(len(asked)), base, bar):
            assert probes is not None
            pairs += len(row)
            unasked = ~asks[row, cluster - first]
            found += len(row) - int(unasked.sum())
            back = base, near[unasked], home[row[unasked]]
            found += _found_back(*back, cluster, probes)
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
) -> int:
    """Return how many of the `rows` of the cluster `own` are searched in the clusters `homes`."""
    ends, place = np.unique(rows, return_inverse=True)
    count, step = 0, asked_together(probes)
    for at in range(0, len(ends), step):
        asks = probes.of(members.unit(ends[at : at + step]), own)
        here = (place >= at) & (place < at + step)
        count += int(asks[place[here] - at, homes[here]].sum())
    return count
