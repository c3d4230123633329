"""Stage report, the pairs: what was near enough to be a copy, and what other thresholds would find.

Units: `prepare` (reduce), `find_pairs` (map over ranges of clusters: the search of `dedup/near.py`
at the floor), `relevance.find_relevant` (map over blocks of images), `regroup` (reduce). Of each
distinct content the most similar better ones are listed, 20 bytes for each, and of a group only its
best `MEMBERS` take part: a heap of one picture is not compared with itself. What only the others of
it would join at a lower threshold is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int64

from curate.catalogue.collection import Collection
from curate.dedup.bar import Bar, copies
from curate.dedup.below import set_floor
from curate.dedup.groups import COVERED, UNDECIDED, load_groups
from curate.dedup.keep import NUMBER, RANK
from curate.dedup.most_similar import MostSimilar
from curate.dedup.near import DedupSettings, ask
from curate.dedup.probes import find_heaps
from curate.dedup.visits import alive, questions
from curate.neighbours.clusters import Clusters
from curate.neighbours.search import cosines, use_threads
from curate.report.relevance import RELEVANT, Relevance, find_relevant
from curate.report.tried import read_decided, try_threshold
from curate.stage import Runner, Unit

VERSION = 3
PAIRS, REGROUPED = "pairs", "regrouped"
STEPS, MOST_STEPS = (0.005, 0.01, 0.02, 0.05), 64
"""Between the thresholds that are tried: the first by which they are few enough."""
MEMBERS = 64
_NEAR, STATUS = "near.npz", "status.npy"
_TOGETHER = 65_536

LISTED = pa.schema(
    [("key", pa.string()), ("better", pa.string()), ("similarity", pa.float32())],
)
"""`better` ranks before `key`, and would stand for it."""
TRIED = pa.schema(
    [
        ("threshold", pa.float64()),
        ("copies", pa.int64()),
        ("groups", pa.int64()),
        ("members", pa.int64()),
        ("standing", pa.int64()),
        ("undecided", pa.int64()),
        ("kept", pa.int64()),
        ("released", pa.int64()),
        ("of_kept", pa.int64()),
        ("would_keep", pa.int64()),
    ]
)
"""Images but for `groups`. `standing` are the distinct contents that stand for themselves, `copies` all
other images; `undecided` contents of which the listed pairs do not tell. `kept` counts those
standing that the run kept, `released` those that it called duplicates, and `of_kept` those of these
that are copies of a kept image. `would_keep` counts those standing that are relevant: what a run
would keep that finds copies by these pairs alone; null where the pool has no `relevance`."""


@dataclass(frozen=True)
class Pool:
    """What pairs are looked for in, and what the run did there."""

    collection: Collection
    clusters: Clusters
    ranks: Path
    groups: Path
    """As `groups.write_groups` has it."""
    covered: Path | None
    """The same, of a pass by hashes."""
    selected: Path
    """Holds `decision.npy`."""
    bar: Bar
    settings: DedupSettings
    per_image: int
    threads: int
    relevance: Relevance | None = None

    @property
    def stays(self) -> int:
        """How many of the best ranks stand for themselves, whatever is near to them."""
        return len(self.collection.standing)

    @property
    def threshold(self) -> float:
        """The cosine from which two images are copies; two drawn ones from `bar.of_drawn`."""
        return self.bar.threshold


def pair_units(
    pool: Pool, runner: Runner, place: Path, scratch: Path
) -> tuple[Path, dict[str, Any]]:
    """Write `pairs.parquet` and `regrouped.parquet` into a unit of `place`.

    Returns its folder, and what the funnel says of it: the `floor` (a cosine, inclusive), how many
    `pairs` reach it, `per_image`, the most that are listed for one, and how many contents of large groups
    are `left_out`.
    """
    [told] = runner.run(place, prepare, [Unit("pairs-floor", (pool,))], scratch=scratch)
    floor, state = told["floor"], place / "pairs-floor"
    clusters, heaps = pool.clusters, None
    if pool.settings.search == "clusters":
        heaps = place / "pairs-heaps"
        unit = Unit("pairs-heaps", (clusters, floor, pool.threads))
        runner.run(place, find_heaps, [unit], scratch=scratch)
    how = floor, pool.settings, state, pool.threads
    asking = [
        Unit(f"pairs-ask-{first:08d}", (clusters, heaps, first, last, *how))
        for first, last in clusters.ranges
    ]
    runner.run(place, ask, asking, scratch=scratch)
    asked = [place / unit.name for unit in asking]
    units = [
        Unit(f"pairs-{first:08d}", (pool, state, asked, floor, first, last))
        for first, last in clusters.ranges
    ]
    runner.run(place, find_pairs, units, scratch=scratch, note="pairs below the threshold")
    found = tuple(place / unit.name for unit in units)
    relevant: list[Path] | None = None
    if pool.relevance is not None:
        told_of = pool.relevance, pool.selected, state / STATUS, pool.threads
        units = [
            Unit(f"pairs-relevant-{start:012d}", (*told_of, start, stop))
            for start, stop in pool.collection.blocks()
        ]
        runner.run(place, find_relevant, units, scratch=scratch)
        relevant = [place / unit.name / RELEVANT for unit in units]
    units = [Unit("pairs-all", (pool, state, floor, found, relevant))]
    [counted] = runner.run(place, regroup, units, scratch=scratch)
    return place / "pairs-all", {**told, "per_image": pool.per_image, **counted}


def prepare(pool: Pool, *, out: Path) -> dict[str, Any]:
    """Write `status.npy`, int8 by image: `COVERED` where one takes no part.

    Return the `floor` of pairs, that of looks below the threshold, but not above the threshold, and how many
    contents are `left_out` of their groups.
    """
    told = set_floor(
        pool.collection, pool.groups, pool.threshold, pool.settings, pool.threads, out=out
    )
    number_of = np.load(pool.ranks / NUMBER)
    status = np.full(len(number_of), UNDECIDED, np.int8)
    if pool.covered:
        status, _ = load_groups(pool.ranks, pool.covered)
    part = np.flatnonzero(status != COVERED)
    group = load_groups(pool.ranks, pool.groups)[1][part]
    order = np.lexsort((part, group))
    first = np.searchsorted(group[order], group[order])
    status = np.full(len(number_of), COVERED, np.int8)
    status[part[order[np.arange(len(order)) - first < MEMBERS]]] = UNDECIDED
    state = np.full(len(pool.collection), COVERED, np.int8)
    state[number_of] = status
    np.save(out / STATUS, state)
    left_out = len(part) - int((status != COVERED).sum())
    return {"floor": min(told["floor"], pool.threshold), "left_out": left_out}


def find_pairs(
    pool: Pool,
    prepared: Path,
    asked: list[Path],
    floor: float,
    first: int,
    last: int,
    *,
    out: Path,
) -> dict[str, int]:
    """Write the pairs of contents that reach the floor, of those that ask for clusters `first` to `last`.

    Two drawn pictures are none below the cosine from which they are copies, whatever is tried.

    `near.npz`: `pairs` int64 [p, 2], worse and better rank, and `similarity` float32 [p]. `asked` has what
    `near.ask` left of all ranges.
    """
    use_threads(pool.threads)
    loaded, rank = pool.clusters.load(), np.load(pool.ranks / RANK, mmap_mode="r")
    state = np.load(prepared / STATUS, mmap_mode="r")
    held, bar = MostSimilar(pool.per_image), replace(pool.bar, threshold=floor)
    compared = 0
    for queries, visits in questions(pool.clusters, asked, first, last, state):
        for visited, rows in visits:
            base = loaded.of(visited)
            base = base[alive(base, state)]
            compared += len(rows) * len(base)
            for row, near in copies(queries, rows, base, bar):
                a, b = rank[queries.numbers[row]], rank[base.numbers[near]]
                similarity = cosines(queries, row, base, near)
                held.add(np.maximum(a, b), np.minimum(a, b), similarity)
    worse, better, similarity = held.result()
    np.savez(out / _NEAR, pairs=np.stack([worse, better], 1), similarity=similarity)
    return {"pairs": len(worse), "compared": compared}


def regroup(
    pool: Pool,
    prepared: Path,
    floor: float,
    found: Sequence[Path],
    relevant: Sequence[Path] | None = None,
    *,
    out: Path,
) -> dict[str, int]:
    """Write the pairs found, and what thresholds from the floor to 1 make of them.

    `relevant` are the files that say, block by block, which images would be kept.
    """
    held = MostSimilar(pool.per_image)
    for folder in found:
        with np.load(folder / _NEAR) as near:
            worse, better = near["pairs"].T
            held.add(worse, better, near["similarity"])
    worse, better, similarity = held.result()
    order = np.lexsort((better, worse))
    edges, similarity = np.stack([worse, better], 1)[order], similarity[order]
    _write_pairs(pool, edges, similarity, out / f"{PAIRS}.parquet")
    wanted = None if relevant is None else np.concatenate([np.load(path) for path in relevant])
    taking_part = np.load(prepared / STATUS, mmap_mode="r")
    folders = pool.ranks, pool.groups, pool.covered, pool.selected
    decided = read_decided(*folders, taking_part, wanted)
    how = pool.settings.groups, pool.per_image, pool.stays
    tried = [
        try_threshold(decided, edges, similarity, value, pool.threshold, *how)
        for value in grid(floor, pool.threshold)
    ]
    table = pa.Table.from_pylist(tried, TRIED)
    pq.write_table(table, out / f"{REGROUPED}.parquet", compression="zstd")
    return {"pairs": len(edges)}


def grid(floor: float, threshold: float) -> list[float]:
    """Return thresholds from the floor to 1 in even steps, and with them that of the run."""
    step = next((step for step in STEPS if (1 - floor) / step <= MOST_STEPS), STEPS[-1])
    steps = np.arange(int(np.ceil(round(floor / step, 9))), round(1 / step) + 1)
    return sorted({*(round(float(n) * step, 3) for n in steps), threshold})


def _write_pairs(
    pool: Pool,
    edges: Int64[np.ndarray, "e 2"],
    similarity: Float32[np.ndarray, " e"],
    path: Path,
) -> None:
    collection, number_of = pool.collection, np.load(pool.ranks / NUMBER, mmap_mode="r")
    numbers = number_of[edges.reshape(-1)].reshape(edges.shape)
    place = collection.place[numbers.reshape(-1)].reshape(edges.shape)
    order = np.lexsort((place[:, 1], place[:, 0]))
    with pq.ParquetWriter(path, LISTED, compression="zstd") as written:
        for at in range(0, len(order), _TOGETHER):
            some = order[at : at + _TOGETHER]
            keys = [pa.array(collection.keys(side), pa.string()) for side in numbers[some].T]
            values = [*keys, pa.array(similarity[some])]
            written.write_table(pa.table(values, schema=LISTED), row_group_size=len(some))
