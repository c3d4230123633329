"""Groups of copies from edges between images, in bounded memory.

Images are spoken of by rank: 0 is the best one by the policy of the run (`keep.py`).

*greedy* walks the images from best to worst: one that has a better neighbour which is a
representative joins the best of these; any other becomes a representative. So every member reaches
the threshold with its representative. An image needs only its edges to better images; of more than
`per_image` of them the best are held. Where these do not decide (all are covered by others, and
there are more), the image stays undecided and the next pass searches again, among what is left.

*components* joins whatever is connected, as the DINOv2 paper does; a spanning forest is enough.

What a pass by hashes (`hashes.py`) covers follows the image of its hash, wherever that goes. At last
a look at pixels (`looks.py`) joins groups, whose members follow their representative.

Where a run adds to a result, what that holds ranks first and always stands for itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int8, Int64

from curate.dedup.keep import NUMBER, RANK

VERSION = 4
UNDECIDED, REPRESENTATIVE, COVERED = 0, 1, 2
COMPACT_AT = 4_000_000
REPRESENTATIVES = "representative.npy"
ROUNDS = 64
"""Rounds of whole arrays in which `greedy` decides, before it walks what is left: long chains."""

Ranks = Int64[np.ndarray, " n"]
Edges = Int64[np.ndarray, "e 2"]
"""Worse and better rank of each edge."""


class EdgeBuffer:
    """Collects edges (worse rank, better rank) and forgets those that cannot matter."""

    def __init__(self, mode: Literal["greedy", "components"], per_image: int) -> None:
        self._mode = mode
        self._per_image = per_image
        self._pending: list[Edges] = []
        self._held = np.empty((0, 2), np.int64)
        self._count = 0
        self._truncated = np.empty(0, np.int64)

    def add(self, worse: Int64[np.ndarray, " e"], better: Int64[np.ndarray, " e"]) -> None:
        """Take edges between ranks, `worse > better`."""
        if len(worse):
            self._pending.append(np.stack([worse, better], 1))
            self._count += len(worse)
        if self._count > COMPACT_AT:
            self._compact()

    def result(self) -> tuple[Edges, Ranks]:
        """Return the edges held, sorted, and the ranks that have more of them."""
        self._compact()
        return self._held, self._truncated

    def _compact(self) -> None:
        edges = sorted_edges([self._held, *self._pending])
        self._pending, self._count = [], 0
        if self._mode == "components":
            self._held = spanning_forest(edges)
            return
        self._held, more = best_edges(edges, self._per_image)
        self._truncated = np.union1d(self._truncated, more)


def sorted_edges(parts: list[Int64[np.ndarray, "_ 2"]]) -> Edges:
    """Return the distinct edges of several arrays, by worse and then better rank."""
    edges = np.concatenate(parts)
    order = np.lexsort((edges[:, 1], edges[:, 0]))
    edges = edges[order]
    new = np.ones(len(edges), bool)
    new[1:] = (edges[1:] != edges[:-1]).any(1)
    return edges[new]


def best_edges(edges: Edges, per_image: int) -> tuple[Int64[np.ndarray, "_ 2"], Ranks]:
    """Return of sorted edges the `per_image` best of each worse rank, and the ranks with more."""
    if not len(edges):
        return edges, np.empty(0, np.int64)
    starts = np.flatnonzero(np.r_[True, edges[1:, 0] != edges[:-1, 0]])
    place = np.arange(len(edges)) - np.repeat(starts, np.diff(np.r_[starts, len(edges)]))
    keep = place < per_image
    return edges[keep], np.unique(edges[~keep, 0])


def spanning_forest(edges: Edges) -> Int64[np.ndarray, "_ 2"]:
    """Return edges that connect what `edges` connect: every rank to the best of its component."""
    if not len(edges):
        return edges
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes, places = np.unique(edges, return_inverse=True)
    places = places.reshape(edges.shape)
    graph = coo_array(
        (np.ones(len(edges), np.int8), (places[:, 0], places[:, 1])), (len(nodes), len(nodes))
    )
    _, label = connected_components(graph, directed=False)
    best = np.full(label.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(best, label, nodes)
    root = best[label]
    return np.stack([nodes, root], 1)[nodes != root]


def greedy(
    edges: Edges,
    truncated: Int64[np.ndarray, " t"],
    status: Int8[np.ndarray, " n"],
    representative: Int64[np.ndarray, " n"],
) -> int:
    """Decide undecided ranks in place, best first; return how many remain undecided.

    `edges` are sorted and distinct, `truncated` sorted. `status` and `representative`
    are indexed by rank. An image whose held edges are fewer than it has, and which none
    of them decides, stays undecided, and so does one that depends on it.
    """
    alone = status == UNDECIDED
    alone[edges[:, 0]] = False
    status[alone] = REPRESENTATIVE
    representative[alone] = np.flatnonzero(alone)
    left = edges[status[edges[:, 0]] == UNDECIDED]
    more = np.zeros(len(status), bool)
    more[truncated] = True
    for _ in range(ROUNDS):
        before = len(left)
        left = _decide_round(left, more, status, representative)
        if len(left) in (before, 0):
            break
    else:
        _walk(left, more, status, representative)
    return int(np.count_nonzero(status == UNDECIDED))


def _decide_round(
    edges: Edges,
    more: Bool[np.ndarray, " n"],
    status: Int8[np.ndarray, " n"],
    representative: Int64[np.ndarray, " n"],
) -> Int64[np.ndarray, "_ 2"]:
    """Decide what the first better neighbour that is not covered decides; return the edges that matter.

    All edges of ranks that are undecided are given, and of ranks all of whose better neighbours are
    covered, one.
    """
    first = np.ones(len(edges), bool)
    first[1:] = edges[1:, 0] != edges[:-1, 0]
    covered = status[edges[:, 1]] == COVERED
    matters = ~covered
    starts = np.flatnonzero(first)
    count = np.add.reduceat(matters, starts, dtype=np.int64) if len(starts) else starts
    free = edges[starts[count == 0], 0]
    free = free[~more[free]]
    status[free], representative[free] = REPRESENTATIVE, free
    held = edges[matters]
    first = np.ones(len(held), bool)
    first[1:] = held[1:, 0] != held[:-1, 0]
    joins = held[first & (status[held[:, 1]] == REPRESENTATIVE)]
    status[joins[:, 0]], representative[joins[:, 0]] = COVERED, joins[:, 1]
    return held[status[held[:, 0]] == UNDECIDED]


def _walk(
    edges: Edges,
    more: Bool[np.ndarray, " n"],
    status: Int8[np.ndarray, " n"],
    representative: Int64[np.ndarray, " n"],
) -> None:
    """Decide the undecided ranks of `edges` one by one, best first."""
    starts = np.flatnonzero(np.r_[True, edges[1:, 0] != edges[:-1, 0]])
    better = np.split(edges[:, 1], starts[1:])
    for worse, others in zip(edges[starts, 0].tolist(), better, strict=True):
        known = status[others]
        open_ones = np.flatnonzero(known != COVERED)
        if not len(open_ones):
            if not more[worse]:
                status[worse], representative[worse] = REPRESENTATIVE, worse
        elif known[open_ones[0]] == REPRESENTATIVE:
            status[worse], representative[worse] = COVERED, others[open_ones[0]]


def decide(
    edges: Edges,
    truncated: Int64[np.ndarray, " t"],
    mode: Literal["greedy", "components"],
    per_image: int,
    status: Int8[np.ndarray, " n"],
    representative: Int64[np.ndarray, " n"],
    stays: int = 0,
) -> int:
    """Decide undecided ranks in place, by either way; return how many remain undecided.

    `edges` are sorted and distinct; `truncated` are the ranks that have more. The `stays` best ranks
    stand for themselves, whatever connects them.
    """
    if mode == "greedy":
        held, more = best_edges(edges[edges[:, 0] >= stays], per_image)
        return greedy(held, np.union1d(more, truncated), status, representative)
    forest, undecided = spanning_forest(edges), np.flatnonzero(status == UNDECIDED)
    forest = forest[forest[:, 0] >= stays]
    status[undecided], representative[undecided] = REPRESENTATIVE, undecided
    status[forest[:, 0]], representative[forest[:, 0]] = COVERED, forest[:, 1]
    return 0


def group(
    ranks: Path,
    searched: list[Path],
    mode: Literal["greedy", "components"],
    per_image: int,
    before: Path | None,
    stays: int = 0,
    *,
    out: Path,
) -> dict[str, Any]:
    """Write what the edges of the `searched` units decide, on top of the pass `before`.

    The `stays` best contents stand for themselves. `ranks` is what `keep.rank_contents` left, and
    the result as `write_groups` has it. A reduce of about 60 bytes an image, 16 an edge.
    """
    number_of = np.load(ranks / NUMBER)
    none = np.empty((0, 2), np.int64)
    edges = sorted_edges([none, *(np.load(folder / "edges.npy") for folder in searched)])
    if before is None:
        status = np.full(len(number_of), UNDECIDED, np.int8)
        chosen = np.full(len(number_of), -1, np.int64)
    else:
        status, chosen = load_groups(ranks, before)
    cut = [np.load(folder / "truncated.npy") for folder in searched]
    truncated = np.unique(np.concatenate([np.empty(0, np.int64), *cut]))
    left = decide(edges, truncated, mode, per_image, status, chosen, stays)
    status[:stays], chosen[:stays] = REPRESENTATIVE, np.arange(stays)
    chosen = follow(chosen)
    counts = write_groups(ranks, status, chosen, out)
    return {"undecided": int(left), "edges": len(edges), **counts}


def follow(chosen: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Return for each rank what stands for the one that stands for it, where that is decided."""
    beyond = np.where(chosen >= 0, chosen[chosen], -1)
    return np.where(beyond >= 0, beyond, chosen)


def load_groups(
    ranks: Path, groups: Path
) -> tuple[Int8[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Return by rank what `write_groups` wrote: the status, and the rank that stands for each."""
    number_of, rank = np.load(ranks / NUMBER), np.load(ranks / RANK, mmap_mode="r")
    held = np.load(groups / REPRESENTATIVES, mmap_mode="r")[number_of]
    chosen = np.where(held >= 0, rank[held], -1)
    return np.load(groups / "status.npy", mmap_mode="r")[number_of], chosen


def write_groups(
    ranks: Path, status: Int8[np.ndarray, " n"], chosen: Int64[np.ndarray, " n"], out: Path
) -> dict[str, int]:
    """Write by image number what is decided by rank; return how many groups and members there are.

    `status.npy` int8 and `representative.npy` int64: -1 where an image takes no part, else the
    number of the image that stands for it (itself where it is one). `grouped.npy` says who is in a
    group of two or more.
    """
    number_of, rank = np.load(ranks / NUMBER), np.load(ranks / RANK)
    takes_part = rank >= 0
    by_number = np.full(len(rank), -1, np.int64)
    by_number[takes_part] = np.where(chosen >= 0, number_of[chosen], -1)[rank[takes_part]]
    by_image = np.full(len(rank), COVERED, np.int8)
    by_image[takes_part] = status[rank[takes_part]]
    sizes = np.bincount(by_number[by_number >= 0], minlength=len(rank))
    grouped = (by_number >= 0) & (sizes[by_number] > 1)
    np.save(out / "status.npy", by_image)
    np.save(out / REPRESENTATIVES, by_number)
    np.save(out / "grouped.npy", grouped)
    return {"groups": int((sizes > 1).sum()), "members": int(grouped.sum())}
