"""Groups of copies from edges between images, in bounded memory.

Images are spoken of by rank: 0 is the best one by the policy of the run (`keep.py`).

*greedy* walks the images from best to worst: one that has a better neighbour which is a
representative joins the best of these; any other becomes a representative. So every member reaches
the threshold with its representative. An image needs only its edges to better images; of more than
`per_image` of them the best are held. Where these do not decide (all are covered by others, and
there are more), the image stays undecided and the next pass searches again, among what is left.

*components* joins whatever is connected, as the DINOv2 paper does; a spanning forest is enough.

What a pass by hashes (`hashes.py`) covers follows the image of its hash, wherever that goes.

`connect` says besides what pairs connect, across groups: greedy ones part chains of copies.

Where a run adds to a result, what that holds ranks first and always stands for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int8, Int64

from curate.dedup.keep import NUMBER, RANK

VERSION = 4
UNDECIDED, REPRESENTATIVE, COVERED = 0, 1, 2
COMPACT_AT = 4_000_000
EDGES, FORGOTTEN = "edges.npy", "forgotten.npy"
REPRESENTATIVES, CONNECTED = "representative.npy", "connected.npy"

Ranks = Int64[np.ndarray, " n"]
Edges = Int64[np.ndarray, "e 2"]
"""Worse and better rank of each edge."""


class EdgeBuffer:
    """Collects edges (worse rank, better rank) and forgets those that no group depends on.

    Of these it holds what they connect.
    """

    def __init__(self, mode: Literal["greedy", "components"], per_image: int) -> None:
        self._mode = mode
        self._per_image = per_image
        self._pending: list[Edges] = []
        self._held = np.empty((0, 2), np.int64)
        self._forgotten = np.empty((0, 2), np.int64)
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

    def forgotten(self) -> Edges:
        """Return a forest that connects what the edges connect that are not held."""
        self._compact()
        return self._forgotten

    def _compact(self) -> None:
        edges = sorted_edges([self._held, *self._pending])
        self._pending, self._count = [], 0
        if self._mode == "components":
            self._held = spanning_forest(edges)
            return
        self._held, others = best_edges(edges, self._per_image)
        del edges
        self._truncated = np.union1d(self._truncated, others[:, 0])
        step = max(1, COMPACT_AT // 8)  # a forest takes ten times the memory of its edges
        for at in range(0, len(others), step):
            some = np.concatenate([self._forgotten, others[at : at + step]])
            self._forgotten = spanning_forest(some)


def sorted_edges(parts: list[Int64[np.ndarray, "_ 2"]]) -> Edges:
    """Return the distinct edges of several arrays, by worse and then better rank."""
    edges = np.concatenate(parts)
    order = np.lexsort((edges[:, 1], edges[:, 0]))
    edges = edges[order]
    new = np.ones(len(edges), bool)
    new[1:] = (edges[1:] != edges[:-1]).any(1)
    return edges[new]


def best_edges(
    edges: Edges, per_image: int
) -> tuple[Int64[np.ndarray, "_ 2"], Int64[np.ndarray, "_ 2"]]:
    """Return of sorted edges the `per_image` best of each worse rank, and the others."""
    if not len(edges):
        return edges, edges
    starts = np.flatnonzero(np.r_[True, edges[1:, 0] != edges[:-1, 0]])
    place = np.arange(len(edges)) - np.repeat(starts, np.diff(np.r_[starts, len(edges)]))
    keep = place < per_image
    return edges[keep], edges[~keep]


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
    new = np.ones(len(edges), bool)
    new[1:] = edges[1:, 0] != edges[:-1, 0]
    starts = np.flatnonzero(new)
    stops = np.append(starts, len(edges))[1:]
    connected = edges[starts, 0]
    alone = status == UNDECIDED
    alone[connected] = False
    status[alone] = REPRESENTATIVE
    representative[alone] = np.flatnonzero(alone)
    more = set(truncated.tolist())
    better = edges[:, 1].tolist()
    state: dict[int, int] = {}
    for worse, start, stop in zip(connected.tolist(), starts.tolist(), stops.tolist(), strict=True):
        chosen = -1
        decided = True
        for other in better[start:stop]:
            known = state.get(other)
            if known is None:
                known = int(status[other])
            if known == REPRESENTATIVE:
                chosen = other
                break
            if known == UNDECIDED:
                decided = False
                break
        if chosen >= 0:
            state[worse] = COVERED
            representative[worse] = chosen
        elif decided and worse not in more:
            state[worse] = REPRESENTATIVE
            representative[worse] = worse
        else:
            state[worse] = UNDECIDED
    if state:
        status[np.fromiter(state, np.int64, len(state))] = np.fromiter(
            state.values(), np.int8, len(state)
        )
    return sum(value == UNDECIDED for value in state.values())


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
        held, others = best_edges(edges[edges[:, 0] >= stays], per_image)
        return greedy(held, np.union1d(others[:, 0], truncated), status, representative)
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
) -> dict:
    """Write what the edges of the `searched` units decide, on top of the pass `before`.

    The `stays` best contents stand for themselves. `ranks` is what `keep.rank_contents` left, and
    the result as `write_groups` has it. A reduce of about 60 bytes an image, 16 an edge.
    """
    number_of = np.load(ranks / NUMBER)
    none = np.empty((0, 2), np.int64)
    edges = sorted_edges([none, *(np.load(folder / EDGES) for folder in searched)])
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


def connect(ranks: Path, searched: Sequence[Path], groups: Path, *, out: Path) -> dict[str, int]:
    """Write `connected.npy` int64 by image number: the best image that one is connected with.

    By pairs that the `searched` units of the first pass found, and by groups: a copy of a copy is
    connected, however long the chain. -1 where an image takes no part. A reduce, as `group`.
    """
    number_of, rank = np.load(ranks / NUMBER), np.load(ranks / RANK)
    _, chosen = load_groups(ranks, groups)
    root = np.arange(len(number_of))
    covered = np.flatnonzero((chosen >= 0) & (chosen != root))
    pairs = [np.load(unit / name) for unit in searched for name in (EDGES, FORGOTTEN)]
    forest = spanning_forest(np.concatenate([np.stack([covered, chosen[covered]], 1), *pairs]))
    root[forest[:, 0]] = forest[:, 1]
    connected = np.full(len(rank), -1, np.int64)
    connected[rank >= 0] = number_of[root][rank[rank >= 0]]
    np.save(out / CONNECTED, connected)
    return {"components": len(np.unique(root))}


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
