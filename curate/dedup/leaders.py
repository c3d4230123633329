"""Covers what the best images cover, before clusters are searched: heaps of near-identical images.

One placeholder of the web may occur 300,000 times: compared with one another, these are 45 billion
pairs. The best image of a heap covers all of it, so the images of the best ranks, the *leaders*, are
decided first, among themselves; every other image is compared with those of them that stand for
themselves, and what one reaches is decided too: it joins the best. That is what greedy grouping does,
in another order, as a leader has no better neighbour but leaders. A heap of m among n images has a
leader where m is more than some n / `count_leaders`; smaller ones are searched as all else.

Units: `find_leaders` (reduce), `follow_leaders` (map over ranges of clusters), `cover` (reduce).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from curate.catalogue.collection import Collection
from curate.catalogue.part_files import VECTORS
from curate.dedup.bar import Bar, copies
from curate.dedup.groups import (
    COVERED,
    REPRESENTATIVE,
    UNDECIDED,
    decide,
    load_groups,
    sorted_edges,
    write_groups,
)
from curate.dedup.keep import NUMBER, RANK
from curate.dedup.near import expect_search
from curate.neighbours.clusters import AXES, Clusters
from curate.neighbours.heads import heads
from curate.neighbours.search import Searchable, unit, use_threads

VERSION = 3
FEWEST = 16_384
"""Contents of fewer than which the heaps are small."""
LEAST = 1_024
STANDS, LEADERS, EDGES = "stands.npy", "leaders.npz", "edges.npy"
_TOGETHER = 16_384


def count_leaders(contents: int) -> int:
    """Return how many of so many contents are leaders: the root of their number, or `LEAST`."""
    return 0 if contents < FEWEST else max(LEAST, round(contents**0.5))


def find_leaders(
    collection: Collection,
    ranks: Path,
    clusters: Clusters,
    bar: Bar,
    stays: int,
    before: Path | None,
    threads: int,
    *,
    out: Path,
) -> dict[str, int]:
    """Decide about the images of the best ranks, but those that `before` covers.

    Write `stands.npy` int64 [m, 2], ranks of images and of those that stand for them, and of those
    that stand for themselves what is compared with the others (`leaders.npz`).
    """
    use_threads(threads)
    number_of = np.load(ranks / NUMBER, mmap_mode="r")
    rank = np.arange(count_leaders(len(number_of)))
    numbers = number_of[rank]
    if before is not None:
        free = np.load(before / "status.npy", mmap_mode="r")[numbers] != COVERED
        rank, numbers = rank[free], numbers[free]
    stored = collection.vectors(numbers)
    head = heads(unit(stored), np.load(clusters.centers / AXES))
    everyone = Searchable(stored, numbers, head)
    edges = [np.empty((0, 2), np.int64)]
    for row, found in copies(everyone, np.arange(len(rank)), everyone, bar):
        worse = row > found
        edges.append(np.stack([row[worse], found[worse]], 1))
    status = np.full(len(rank), UNDECIDED, np.int8)
    stands = np.full(len(rank), -1, np.int64)
    first = int(np.searchsorted(rank, stays))
    none = np.empty(0, np.int64)
    decide(sorted_edges(edges), none, "greedy", len(rank), status, stands, first)
    leads = status == REPRESENTATIVE
    np.save(out / STANDS, np.stack([rank, rank[stands]], 1))
    np.save(out / VECTORS, stored[leads])
    np.savez(
        out / LEADERS,
        rank=rank[leads],
        numbers=numbers[leads],
        heads=head[leads],
    )
    return {"leaders": int(leads.sum())}


def follow_leaders(
    ranks: Path,
    clusters: Clusters,
    leaders: Path,
    first: int,
    last: int,
    bar: Bar,
    before: Path | None,
    threads: int,
    *,
    out: Path,
) -> dict[str, int]:
    """Write who of the clusters `first` to `last` joins which leader: int64 ranks [e, 2]."""
    use_threads(threads)
    rank = np.load(ranks / RANK, mmap_mode="r")
    decided = count_leaders(len(np.load(ranks / NUMBER, mmap_mode="r")))
    state = None if before is None else np.load(before / "status.npy", mmap_mode="r")
    with np.load(leaders / LEADERS) as found_leaders:
        leading = found_leaders["rank"]
        stored = np.load(leaders / VECTORS)
        base = Searchable(stored, found_leaders["numbers"], found_leaders["heads"])
    expect_search(clusters.images)
    loaded, edges, compared = clusters.load(), [np.empty((0, 2), np.int64)], 0
    members = loaded.side_by_side(first, last)
    for at in range(0, len(members), _TOGETHER):
        asked = members[at : at + _TOGETHER]
        own = rank[asked.numbers]
        asks = own >= decided
        if state is not None:
            asks &= state[asked.numbers] != COVERED
        compared += int(asks.sum()) * len(leading)
        best = np.full(len(asked), len(leading))
        for row, found in copies(asked, np.flatnonzero(asks), base, bar):
            np.minimum.at(best, row, found)
        joins = np.flatnonzero(best < len(leading))
        edges.append(np.stack([own[joins], leading[best[joins]]], 1))
    joined = np.concatenate(edges)
    np.save(out / EDGES, joined)
    return {"covered": len(joined), "compared": compared}


def cover(
    ranks: Path, leaders: Path, followed: list[Path], before: Path | None, *, out: Path
) -> dict[str, int]:
    """Write what is decided so far, on top of `before`, as `groups.write_groups` has it."""
    if before is None:
        count = len(np.load(ranks / NUMBER, mmap_mode="r"))
        status, chosen = np.full(count, UNDECIDED, np.int8), np.full(count, -1, np.int64)
    else:
        status, chosen = load_groups(ranks, before)
    for rank, stands in [
        np.load(leaders / STANDS).T,
        *(np.load(folder / EDGES, mmap_mode="r").T for folder in followed),
    ]:
        status[rank] = np.where(rank == stands, REPRESENTATIVE, COVERED)
        chosen[rank] = stands
    return write_groups(ranks, status, chosen, out)
