"""What a connected component becomes: who stands for it, and who is too far from that to belong.

Units: `settle` (map over ranges of components), and `write_settled`, which makes groups of what
these say. Needed only where a policy is central, or chains have a floor. Copies by hash (`hashes.py`)
stay together: where the best of them goes, the others go.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from curate.catalogue.collection import Collection, Numbers
from curate.dedup.bar import Bar, copies
from curate.dedup.groups import COVERED, REPRESENTATIVE, load_groups, spanning_forest, write_groups
from curate.dedup.hashes import STANDS
from curate.dedup.keep import RANK
from curate.dedup.members import load_members
from curate.neighbours.search import Searchable, cosine, use_threads

VERSION = 4
SAME = 1e-6
"""More than the rounding of a mean cosine."""

Rows = Int64[np.ndarray, " _"]


def settle(
    collection: Collection,
    ranks: Path,
    listed: Path,
    hashed: Path | None,
    first: int,
    last: int,
    bar: Bar,
    central: bool,
    floor: float | None,
    threads: int,
    stays: int = 0,
    *,
    out: Path,
) -> dict[str, int]:
    """Write `settled.npy` of the components `first` to `last`: int64 ranks [m, 2].

    A row is a content and the one that stands for it. `hashed` is what `hashes.cover_copies` wrote.
    The `stays` best ranks stand for themselves.
    """
    use_threads(threads)
    members, group = load_members(listed, first, last)
    distinct = collection.canonical[members] == members
    members, group = members[distinct], group[distinct]
    rank = np.load(ranks / RANK, mmap_mode="r")[members]
    order = np.lexsort((rank, group))
    members, rank = members[order], rank[order]
    best = rank if hashed is None else _best_of_hash(ranks, hashed, members)
    stands = np.empty(len(members), np.int64)
    edges = np.flatnonzero(np.diff(group[order])) + 1
    for rows in np.split(np.arange(len(members)), edges):
        if len(rows):
            together = np.searchsorted(rank[rows], best[rows])
            fixed = int(np.searchsorted(rank[rows], stays))
            vectors = collection.vectors(members[rows])
            own = settle_component(
                Searchable(vectors, members[rows]), together, bar, central, floor, fixed
            )
            stands[rows] = rank[rows[own]]
    np.save(out / "settled.npy", np.stack([rank, stands], 1))
    return {"contents": len(members)}


def _best_of_hash(ranks: Path, hashed: Path, members: Numbers) -> Rows:
    """Return the rank of the best image of each member's hash, which may be the member itself."""
    rank = np.load(ranks / RANK, mmap_mode="r")
    stands = np.load(hashed / STANDS, mmap_mode="r")[members]
    return rank[np.where(stands >= 0, stands, members)]


def settle_component(
    members: Searchable,
    together: Rows,
    bar: Bar,
    central: bool,
    floor: float | None,
    fixed: int = 0,
) -> Int64[np.ndarray, " n"]:
    """Return which row stands for each member of a component; the rows are from best to worst.

    `together` is the row whose way each one goes: that of the best of its hash, or its own.

    The best stands for it, or with `central` the one with the highest mean cosine with the others,
    but for the `fixed` first rows, which all stand for themselves: of these the first that is
    there. Members whose cosine with that is below `floor` leave, unless it is of their hash, and so
    do other fixed ones; what is connected of them by `bar` is a component again, until all are near
    enough.
    """
    together = together.copy()
    together[:fixed] = np.arange(fixed)
    stands = np.empty(len(members), np.int64)
    waiting = [np.arange(len(members))]
    while waiting:
        rows = waiting.pop()
        units = members.unit(rows)
        best = most_central(units) if central and rows[0] >= fixed else 0
        stays = np.ones(len(rows), bool)
        if floor is not None:
            one = np.broadcast_to(units[best], units.shape)
            stays = cosine(units, one) >= np.float32(floor)
        stays[rows < fixed] = False
        leader = np.searchsorted(rows, together[rows])
        stays = stays[leader] | (leader == leader[best])
        stands[rows[stays]] = rows[best]
        left = rows[~stays]
        leaders = left[together[left] == left]
        if len(left):
            parts = components(members[leaders], bar)
            waiting += [left[np.isin(together[left], leaders[part])] for part in parts]
    return stands


def most_central(units: Float32[np.ndarray, "n d"]) -> int:
    """Return the row of the unit vector with the highest mean cosine with the others.

    What is within `SAME` of that is as central, and ties go to the first row: of two vectors either
    is as central.
    """
    wide = units.astype(np.float64)
    with_all = wide @ wide.sum(0) - np.einsum("nd,nd->n", wide, wide)
    mean = with_all / max(1, len(units) - 1)
    return int(np.argmax(mean >= mean.max() - SAME))


def components(searched: Searchable, bar: Bar) -> list[Rows]:
    """Return the rows of each connected component, rising, of what `bar` calls copies."""
    everyone = np.arange(len(searched))
    root = everyone.copy()
    for row, found in copies(searched, everyone, searched, bar):
        held = np.stack([everyone, root], 1)[root != everyone]
        forest = spanning_forest(np.concatenate([held, np.stack([row, found], 1)]))
        root[forest[:, 0]] = forest[:, 1]
    order = np.argsort(root, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(root[order])) + 1)


def write_settled(ranks: Path, groups: Path, settled: list[Path], *, out: Path) -> dict[str, int]:
    """Write groups as `groups.write_groups` does: those of `groups`, as `settle` changed them."""
    status, chosen = load_groups(ranks, groups)
    status = np.array(status)
    for folder in settled:
        rank, stands = np.load(folder / "settled.npy").T
        status[rank] = np.where(rank == stands, REPRESENTATIVE, COVERED)
        chosen[rank] = stands
    return write_groups(ranks, status, chosen, out)
