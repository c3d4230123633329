"""What a run decided, and what it would have decided at another threshold by the pairs that are listed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float32, Int8, Int64

from curate.dedup.groups import (
    COVERED,
    REPRESENTATIVE,
    REPRESENTATIVES,
    UNDECIDED,
    decide,
    follow,
    load_groups,
    sorted_edges,
)
from curate.dedup.keep import NUMBER, RANK
from curate.filters.decisions import CODE


@dataclass(frozen=True)
class Decided:
    """By rank what the run decided; what no threshold changes is `status`, `chosen` and `left`."""

    images: Int64[np.ndarray, " n"]
    """How many images each rank stands for: those of the same bytes."""
    status: Int8[np.ndarray, " n"]
    chosen: Int64[np.ndarray, " n"]
    left: Bool[np.ndarray, " n"]
    """Members of large groups that were left out of the search."""
    own: Int64[np.ndarray, " n"]
    """What stood for each in the run."""
    of_heap: Int64[np.ndarray, " h"]
    """Ranks whose group has members that were left out, but for those that stand for these."""
    kept: Bool[np.ndarray, " n"]
    duplicate: Bool[np.ndarray, " n"]
    of_kept: Bool[np.ndarray, " n"]
    """Whether what stood for each was kept."""
    relevant: Bool[np.ndarray, " n"] | None


def read_decided(
    ranks: Path,
    groups: Path,
    covered: Path | None,
    selected: Path,
    taking_part: Int8[np.ndarray, " images"],
    relevant: Bool[np.ndarray, " images"] | None,
) -> Decided:
    """Return what the run decided; `taking_part` is by image `COVERED` where it was left out."""
    number_of, rank = np.load(ranks / NUMBER), np.load(ranks / RANK, mmap_mode="r")
    status = np.full(len(number_of), UNDECIDED, np.int8)
    chosen = np.full(len(number_of), -1, np.int64)
    if covered:
        status, chosen = load_groups(ranks, covered)
    left = taking_part[number_of] == COVERED
    left &= status != COVERED
    own = load_groups(ranks, groups)[1]
    status[left], chosen[left] = COVERED, own[left]
    in_heap = (status == UNDECIDED) & np.isin(own, own[left]) & (own < np.arange(len(own)))
    decision = np.load(selected / "decision.npy")
    stands_for = np.load(groups / REPRESENTATIVES, mmap_mode="r")[number_of]
    return Decided(
        images=np.bincount(rank[rank >= 0], minlength=len(number_of)),
        status=status,
        chosen=chosen,
        left=left,
        own=own,
        of_heap=np.flatnonzero(in_heap),
        kept=decision[number_of] == CODE["kept"],
        duplicate=decision[number_of] == CODE["duplicate"],
        of_kept=(stands_for >= 0) & (decision[stands_for] == CODE["kept"]),
        relevant=None if relevant is None else relevant[number_of],
    )


def try_threshold(
    decided: Decided,
    edges: Int64[np.ndarray, "e 2"],
    similarity: Float32[np.ndarray, " e"],
    threshold: float,
    of_run: float,
    groups: Literal["greedy", "components"],
    per_image: int,
    stays: int,
) -> dict[str, Any]:
    """Return the counts by one threshold, a row of `pairs.TRIED`; `of_run` is the run's own."""
    left, own, of_heap = decided.left, decided.own, decided.of_heap
    status, chosen = decided.status.copy(), decided.chosen.copy()
    near = edges[similarity >= np.float32(threshold)]
    asked, listed = np.unique(near[:, 0], return_counts=True)
    cut = asked[listed == per_image]
    greedy, raised = groups == "greedy", threshold > of_run
    if not greedy and not raised:  # what was connected through those left out
        near = sorted_edges([near, np.stack([of_heap, own[of_heap]], 1)])
    decide(near, cut, groups, per_image, status, chosen, stays)
    status[:stays], chosen[:stays] = REPRESENTATIVE, np.arange(stays)
    # One left out stays a copy where what stands for it stays what it was, and no threshold is raised.
    lost = left & (status == COVERED)
    if not raised:
        lost &= greedy & (status[chosen] != REPRESENTATIVE)
    status[lost] = UNDECIDED
    if not greedy and raised:
        status[of_heap] = np.where(status[of_heap] == COVERED, COVERED, UNDECIDED)
    alone = status == UNDECIDED
    chosen = np.where(alone, np.arange(len(status)), follow(chosen))
    sizes = np.bincount(chosen, weights=decided.images, minlength=len(chosen)).astype(np.int64)
    standing = status == REPRESENTATIVE
    released = standing & decided.duplicate
    relevant = decided.relevant
    return {
        "threshold": threshold,
        "copies": int(decided.images.sum() - standing.sum() - alone.sum()),
        "groups": int((sizes > 1).sum()),
        "members": int(sizes[sizes > 1].sum()),
        "standing": int(standing.sum()),
        "undecided": int(alone.sum()) + (0 if greedy else len(cut)),
        "kept": int((standing & decided.kept).sum()),
        "released": int(released.sum()),
        "of_kept": int((released & decided.of_kept).sum()),
        "would_keep": None if relevant is None else int((standing & relevant).sum()),
    }
