"""Joins copies that the threshold leaves apart, by a look at the pixels of the most similar pairs.

A pair that the look calls one picture for certain is an edge between two images that stood for themselves.
The worse one joins the better one, greedily or as a component, as the run groups all else; whoever it
stood for follows it, whatever the cosine, as copies by hash do.

Units, behind all others of the stage dedup: those of `below.py`, then `look` (map over blocks of pairs,
round by round while these pay) and `join` (reduce, of about 60 bytes an image).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int8

from curate.catalogue.collection import Catalogued, Collection
from curate.catalogue.originals import Originals, load_parts, save_parts
from curate.dedup import below, near, probes, visits
from curate.dedup.bar import Bar
from curate.dedup.below import (
    PAIRS,
    budget,
    choose_pairs,
    find_pairs,
    look_while_it_pays,
    set_floor,
)
from curate.dedup.groups import (
    UNDECIDED,
    Edges,
    Ranks,
    decide,
    follow,
    load_groups,
    sorted_edges,
    write_groups,
)
from curate.dedup.keep import RANK
from curate.dedup.near import DedupSettings
from curate.dedup.pictures import decode_pair
from curate.dedup.probes import find_heaps
from curate.neighbours.cluster import Clustered
from curate.pixels import align, same
from curate.pixels.same import is_clear_copy
from curate.stage import Runner, Stage, Unit

VERSION = 3
LOOKED, CONFIRMED, SAME = "looked.npy", "confirmed.npy", "same.npy"
NOT, DIRECTLY, THROUGH = 0, 1, 2
"""What `looked.npy` says: how an image came to the one that stands for it, as to looks."""
LOOK_COUNTS = ("floor", "looked", "confirmed", "unreadable", "joined")
"""Of `Looked.counts`, what is told."""
STEP = "a look below the threshold"
_TOGETHER = 50


@dataclass(frozen=True)
class Looked:
    """What looks below the threshold found."""

    groups: Path
    """As `join` leaves it."""
    stage: Stage
    counts: dict[str, Any]
    """The `floor`; how many pairs were `looked` at, `confirmed`, and `unreadable`; how many images
    `joined` others so, and the `groups` and `members` that there are now."""

    @property
    def of_images(self) -> Path:
        """Where int8 by image number says `NOT`, `DIRECTLY` or `THROUGH` another."""
        return self.groups / LOOKED

    @property
    def confirmed(self) -> Path:
        """Where the pairs are that are one picture: int64 numbers [c, 2]."""
        return self.groups / CONFIRMED


def look_below(
    runner: Runner,
    crawl: Catalogued,
    clustered: Clustered,
    groups: tuple[Path, str],
    ranks: Path,
    bar: Bar,
    settings: DedupSettings,
    max_pixels: int,
    threads: int,
) -> Looked | None:
    """Look at the most similar pairs of different groups, and join what is one picture.

    `groups` is where they lie, and the address of what made them. None where nothing is to be looked
    at: none is asked for, or the threshold is not above the floor.
    """
    collection, [found, address] = crawl.collection, groups
    most, in_round = budget(settings.looks, len(collection.usable))
    if not in_round:
        return None
    asked = [settings.looks, settings.look_floor]
    made_by = [each.VERSION for each in (below, near, probes, visits, align, same)]
    stage = Stage("dedup", ["looks", VERSION, *made_by], address, asked)
    home, stays, note = runner.folder(stage), len(collection.standing), STEP
    args: tuple[Any, ...] = (collection, found, bar.threshold, settings, threads)
    [told] = runner.run(stage, set_floor, [Unit("floor", args)], note=note)
    if told["floor"] >= bar.threshold:
        return None
    clusters, floor = clustered.clusters, told["floor"]
    heaps = None if settings.search == "pool" else home / "heaps"
    if heaps is not None:
        runner.run(stage, find_heaps, [Unit("heaps", (clusters, floor, threads))], note=note)
    asking = [
        Unit(
            f"ask-{first:08d}",
            (clusters, heaps, first, last, floor, settings, found, threads),
        )
        for first, last in clusters.ranges
    ]
    runner.run(stage, near.ask, asking, note=note)
    read, how = (ranks, clusters, [home / unit.name for unit in asking]), (floor, bar, found, stays)
    units = [
        Unit(f"below-{first:08d}", (*read, first, last, *how, threads))
        for first, last in clusters.ranges
    ]
    runner.run(stage, find_pairs, units, note=note)
    args = (ranks, [home / unit.name for unit in units], most, in_round)
    [chosen] = runner.run(stage, choose_pairs, [Unit("chosen", args)])
    parts = save_parts(crawl.parts, runner.scratch / f"parts-{crawl.address}.json")
    looks: list[Unit] = []
    seen: list[dict[str, Any]] = []

    def look_at(first: int, last: int) -> int:
        units = []
        for start in range(first, last, _TOGETHER):
            stop = min(start + _TOGETHER, last)
            args = (collection, parts, max_pixels, home / "chosen", start, stop)
            units.append(Unit(f"look-{start:09d}", args))
        judged = runner.run(stage, look, units, note=note)
        looks.extend(units)
        seen.extend(judged)
        return sum(each["confirmed"] for each in judged)

    look_while_it_pays(chosen["pairs"], in_round, look_at)
    args = (ranks, found, home / "chosen", [home / unit.name for unit in looks], settings.groups)
    [counts] = runner.run(stage, join, [Unit("joined", (*args, stays))])
    unreadable = sum(each["unreadable"] for each in seen)
    counts = {"floor": floor, "unreadable": unreadable, **counts}
    return Looked(home / "joined", stage, counts)


def look(
    collection: Collection,
    parts: Path,
    max_pixels: int,
    chosen: Path,
    start: int,
    stop: int,
    *,
    out: Path,
) -> dict[str, int]:
    """Write bool `same.npy`: which of the pairs `start` to `stop` are one picture for certain.

    A pair that cannot be decoded any more is none.
    """
    pairs = np.load(chosen / PAIRS, mmap_mode="r")[start:stop].tolist()
    verdicts, unreadable = np.zeros(len(pairs), bool), 0
    with Originals(collection, load_parts(parts), out.parent) as originals:
        for place, pair in enumerate(pairs):
            pictures = decode_pair(originals, pair, max_pixels)
            if pictures is None:
                unreadable += 1
            else:
                verdicts[place] = is_clear_copy(*pictures)
    np.save(out / SAME, verdicts)
    return {"unreadable": unreadable, "confirmed": int(verdicts.sum())}


def join(
    ranks: Path,
    groups: Path,
    chosen: Path,
    seen: Sequence[Path],
    mode: Literal["greedy", "components"],
    stays: int,
    *,
    out: Path,
) -> dict[str, int]:
    """Write groups as `groups.write_groups` does: those of `groups`, joined by what was looked at.

    Beside them `looked.npy` and `confirmed.npy`, as `Looked` has them. The `stays` best contents stand
    for themselves.
    """
    verdicts = np.concatenate([np.empty(0, bool), *(np.load(folder / SAME) for folder in seen)])
    pairs = np.load(chosen / PAIRS)[: len(verdicts)]
    confirmed, rank = pairs[verdicts], np.load(ranks / RANK)
    edges = sorted_edges([rank[confirmed]])
    status, before = load_groups(ranks, groups)
    status = np.array(status)
    stands = join_pairs(edges, mode, status, before, stays)
    moved = np.flatnonzero(stands != before)
    direct = edges[edges[:, 1] == stands[edges[:, 0]], 0]
    looked = np.full(len(stands), NOT, np.int8)
    looked[moved] = THROUGH
    looked[direct] = DIRECTLY
    by_number = np.full(len(rank), NOT, np.int8)
    by_number[rank >= 0] = looked[rank[rank >= 0]]
    np.save(out / LOOKED, by_number)
    np.save(out / CONFIRMED, confirmed)
    counts = write_groups(ranks, status, stands, out)
    told = {"looked": len(pairs), "confirmed": len(confirmed)}
    return {**told, "joined": int(np.count_nonzero(by_number)), **counts}


def join_pairs(
    edges: Edges,
    mode: Literal["greedy", "components"],
    status: Int8[np.ndarray, " n"],
    before: Ranks,
    stays: int = 0,
) -> Ranks:
    """Return who stands for each rank where `edges`, pairs of representatives, are joined.

    `before` says who stood for it. `edges` are sorted and distinct; `status` is changed in place.
    """
    stands, touched = before.copy(), np.unique(edges)
    status[touched], stands[touched] = UNDECIDED, -1
    decide(edges, np.empty(0, np.int64), mode, max(1, len(edges)), status, stands, stays)
    return follow(stands)
