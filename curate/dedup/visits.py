"""Which vectors are searched in which clusters, and the vectors of all ranges that one is searched for.

A map over ranges of clusters writes for each vector where it is searched (`write_visits`); a search, a
map over ranges too, then gathers those that ask for its own clusters (`questions`), so that each cluster
is read and indexed once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int8, Int64, Integer

from curate.dedup.groups import COVERED
from curate.dedup.probes import Probes
from curate.neighbours.clusters import Clusters, LoadedClusters
from curate.neighbours.search import Rows, Searchable, unit
from shared.storage.arrays import map_array

VERSION = 2
VISITED, STARTS, ROWS = "visited.npy", "starts.npy", "rows.npy"
TOGETHER = 131_072
"""Vectors whose heads are gathered before they are searched for, or those of one range more."""

Visits = list[tuple[int, Integer[np.ndarray, " _"]]]
"""Clusters, each with the rows of the vectors that are searched there."""


def write_visits(
    loaded: LoadedClusters,
    first: int,
    last: int,
    probes: Probes,
    state: Int8[np.ndarray, " n"] | None,
    out: Path,
) -> dict[str, int]:
    """Write where the vectors of the clusters `first` to `last` are searched, but those covered.

    By cluster: `visited.npy`, ascending, where the rows of each start (`starts.npy`), and the rows,
    int32, in the order of the range's vectors (`rows.npy`).
    """
    clusters, rows, start = [np.empty(0, np.int32)], [np.empty(0, np.int32)], 0
    for own in range(first, last):
        members = loaded.of(own)
        assert members.heads is not None
        open_ones = alive(members, state)
        for at in range(0, len(open_ones), probes.together):
            some = open_ones[at : at + probes.together]
            row, visited = probes.of(members.heads[some], own)
            clusters.append(visited.astype(np.int32))
            rows.append((start + some[row]).astype(np.int32))
        start += len(members)
    visited, row = np.concatenate(clusters), np.concatenate(rows)
    order = np.argsort(visited, kind="stable")
    there, starts = np.unique(visited[order], return_index=True)
    np.save(out / VISITED, there)
    np.save(out / STARTS, np.append(starts, len(row)))
    np.save(out / ROWS, row[order])
    return {"visits": len(row)}


def questions(
    clusters: Clusters,
    asked: list[Path],
    first: int,
    last: int,
    state: Int8[np.ndarray, " n"] | None,
) -> Iterator[tuple[Searchable, Visits]]:
    """Yield the vectors that ask for the clusters `first` to `last`, some `TOGETHER` at a time.

    Each time with the clusters that these visit. `asked` has what `write_visits` wrote for each range;
    those covered do not ask.
    """
    loaded, held, visits = clusters.load(), [], _Visits()
    for (start, stop), folder in zip(clusters.ranges, asked, strict=True):
        visited = map_array(folder / VISITED)
        here = slice(*np.searchsorted(visited, (first, last)))
        if here.start == here.stop:
            continue
        starts = map_array(folder / STARTS)[here.start : here.stop + 1]
        rows = map_array(folder / ROWS)[starts[0] : starts[-1]]
        members = loaded.side_by_side(start, stop)
        asks = np.zeros(len(members), bool)
        asks[rows] = True
        asking = np.flatnonzero(asks)
        if state is not None:
            asking = asking[state[members.numbers[asking]] != COVERED]
        place = np.full(len(members), -1, np.int32)
        place[asking] = np.arange(len(asking), dtype=np.int32)
        visits.add(visited[here], np.diff(starts), place[rows], len(asking))
        held.append((members, asking))
        if visits.asking >= TOGETHER:
            yield _Gathered.of(held), visits.by_cluster()
            held, visits = [], _Visits()
    if held:
        yield _Gathered.of(held), visits.by_cluster()


@dataclass(frozen=True)
class _Gathered(Searchable):
    """Vectors of several ranges, of which only numbers and heads are copied; `stored` has their shape alone."""

    ranges: tuple[Float[np.ndarray, "_ d"], ...] = ()
    """The stored vectors of each range, mapped."""
    rows: Int64[np.ndarray, " n"] = field(default_factory=lambda: np.empty(0, np.int64))
    """Where in its range each vector is."""
    starts: Int64[np.ndarray, " r"] = field(default_factory=lambda: np.empty(0, np.int64))
    """The first vector of each range."""

    @classmethod
    def of(cls, held: list[tuple[Searchable, Int64[np.ndarray, " _"]]]) -> _Gathered:
        """Return some rows of each range, one behind the other."""
        starts = np.cumsum([0, *(len(rows) for _, rows in held)])
        heads = [members.heads[rows] for members, rows in held if members.heads is not None]
        stored = held[0][0].stored
        return cls(
            np.broadcast_to(stored.dtype.type(0), (int(starts[-1]), stored.shape[1])),
            np.concatenate([members.numbers[rows] for members, rows in held]),
            np.concatenate(heads),
            tuple(members.stored for members, _ in held),
            np.concatenate([rows for _, rows in held]),
            starts[:-1],
        )

    def unit(self, rows: Rows | slice = slice(None)) -> Float32[np.ndarray, "m d"]:
        """Return the unit vectors of some rows."""
        asked = np.arange(len(self))[rows]
        part = np.searchsorted(self.starts, asked, side="right") - 1
        order = np.argsort(part, kind="stable")
        stored = np.empty((len(asked), self.stored.shape[1]), self.stored.dtype)
        for where in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
            if len(where):
                stored[where] = self.ranges[part[where[0]]][self.rows[asked[where]]]
        return unit(stored)


class _Visits:
    """Collects visits of vectors that stand behind one another."""

    def __init__(self) -> None:
        self._clusters: list[Int64[np.ndarray, " _"]] = []
        self._rows: list[Int64[np.ndarray, " _"]] = []
        self.asking = 0
        """How many vectors there are."""

    def add(
        self,
        visited: Integer[np.ndarray, " v"],
        sizes: Int64[np.ndarray, " v"],
        place: Integer[np.ndarray, " p"],
        asking: int,
    ) -> None:
        """Take visits, as many of each cluster as `sizes` says, by `asking` more vectors.

        `place` has who visits, among these; -1: nobody.
        """
        there = place >= 0
        self._clusters.append(np.repeat(visited, sizes)[there])
        self._rows.append(self.asking + place[there])
        self.asking += asking

    def by_cluster(self) -> Visits:
        """Return the visits of each cluster, ascending."""
        cluster, row = np.concatenate(self._clusters), np.concatenate(self._rows)
        order = np.argsort(cluster, kind="stable")
        there, starts = np.unique(cluster[order], return_index=True)
        return list(zip(there.tolist(), np.split(row[order], starts[1:]), strict=True))


def own_visits(
    queries: Searchable, own: Int64[np.ndarray, " n"], probes: Probes
) -> Iterator[tuple[int, Integer[np.ndarray, " _"]]]:
    """Yield each visited cluster with the rows of the queries, of clusters `own`, that visit it."""
    clusters, rows = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    assert queries.heads is not None
    for cluster in np.unique(own).tolist():
        home = np.flatnonzero(own == cluster)
        for at in range(0, len(home), probes.together):
            some = home[at : at + probes.together]
            row, visited = probes.of(queries.heads[some], cluster)
            clusters.append(visited.astype(np.int32))
            rows.append(some[row].astype(np.int32))
    visited, row = np.concatenate(clusters), np.concatenate(rows)
    order = np.argsort(visited, kind="stable")
    for where in np.split(order, np.flatnonzero(np.diff(visited[order])) + 1):
        if len(where):
            yield int(visited[where[0]]), row[where]


def alive(members: Searchable, state: Int8[np.ndarray, " n"] | None) -> Integer[np.ndarray, " _"]:
    """Return the rows of the members that are not covered."""
    if state is None:
        return np.arange(len(members))
    return np.flatnonzero(state[members.numbers] != COVERED)


def thinned(members: Searchable, state: Int8[np.ndarray, " n"] | None) -> Searchable:
    """Return members without those that are covered, or with them where these are few.

    To leave a few out costs a copy of the others.
    """
    rows = alive(members, state)
    return members if 2 * len(rows) > len(members) else members[rows]
