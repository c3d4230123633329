"""Stage dedup: groups of copies, found inside clusters, pass after pass until all is decided."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from curate.catalogue.collection import Catalogued, Collection
from curate.dedup import bar as bars
from curate.dedup import (
    completeness,
    groups,
    hashes,
    keep,
    leaders,
    members,
    near,
    probes,
    settle,
    shape,
    visits,
)
from curate.dedup.bar import Bar, mark_drawn
from curate.dedup.hash_pass import RANKS, cover_by_hash, rank_images
from curate.dedup.hashes import Hashed
from curate.dedup.looks import Looked, look_below
from curate.dedup.near import DedupSettings
from curate.neighbours.cluster import Clustered
from curate.neighbours.search import gpus_wanted
from curate.stage import Runner, Stage, Unit
from shared.errors import LvdError

MOST_PASSES = 1_000


@dataclass(frozen=True)
class Deduplicated:
    """Who stands for whom: the folder of the last pass, as `groups.write_groups` leaves it."""

    groups: Path
    counts: dict[str, int]
    """Groups of two or more, their members, and how many groups are chains."""
    completeness: dict[str, Any]
    """As `completeness.add_up` returns it."""
    address: str
    bar: Bar
    """From which cosine images are copies."""
    shapes: tuple[Path, ...] = ()
    """What `shape.measure_groups` says of the groups, in the order of their keys."""
    hashed: Hashed | None = None
    """What a pass by hashes found."""
    looked: Looked | None = None
    """What looks below the threshold found."""
    ranks: Path = Path()
    """What `keep.rank_contents` left."""


def dedup(
    runner: Runner,
    crawl: Catalogued,
    clustered: Clustered,
    bar: Bar,
    settings: DedupSettings,
    max_pixels: int,
    threads: int,
    fitted: Path | None = None,
) -> Deduplicated:
    """Group copies: every image gets the one that stands for it. In `bar` nothing is marked yet.

    `fitted` is what a pass by hashes before embedding went by.
    """
    versions = [
        each.VERSION
        for each in (
            *(near, bars, probes, visits, groups, hashes, keep, leaders, members, settle, shape),
            completeness,
        )
    ]
    asked = settings.model_dump(exclude={"embedder", "looks", "look_floor"})
    asked |= {"threshold": bar.threshold, "drawn_threshold": bar.of_drawn}
    asked |= {"fitted": fitted.parent.name} if fitted is not None else {}
    stage = Stage("dedup", versions, clustered.address, asked)
    with runner.at_work("dedup"):
        if bar.of_drawn > bar.threshold:
            runner.run(stage, mark_drawn, [Unit("drawn", (crawl.collection,))])
            bar = replace(bar, marked=runner.folder(stage) / "drawn")
        work = _Dedup(runner, stage, crawl.collection, clustered, bar, settings, threads)
        args: tuple[Any, ...] = (crawl.collection, bar, settings)
        runner.run(stage, near.sanity, [Unit("sanity", args)], note="sanity check")
        ranks = rank_images(runner, stage, crawl.collection, settings)
        hashed = cover_by_hash(runner, stage, crawl.collection, settings, ranks, fitted)
        found, counts = work.group(hashed)
        if work.settles:
            found, counts = work.settle(found, hashed)
        complete = work.measure_completeness()
        groups_so_far = found, stage.address
        how = ranks, bar, settings, max_pixels, threads
        looked = look_below(runner, crawl, clustered, groups_so_far, *how)
        if looked is not None:
            found, counts, work = looked.groups, looked.counts, replace(work, stage=looked.stage)
        shapes, chains = work.measure(found)
    counts = {name: counts[name] for name in ("groups", "members")} | {"chains": chains}
    made = found, counts, complete, work.stage.address, bar
    return Deduplicated(*made, shapes, hashed, looked, ranks)


@dataclass(frozen=True)
class _Dedup:
    """The units of one run of the stage."""

    runner: Runner
    stage: Stage
    collection: Collection
    clustered: Clustered
    bar: Bar
    settings: DedupSettings
    threads: int

    @property
    def ranks(self) -> Path:
        """Where the images are ranked."""
        return self.runner.folder(self.stage) / RANKS

    @property
    def stays(self) -> int:
        """How many of the best ranks stand for themselves."""
        return len(self.collection.standing)

    @property
    def settles(self) -> bool:
        """Whether components are looked at as a whole, when all of them are known."""
        central = keep.POLICIES[self.settings.keep].central
        return central or self.settings.chain_floor is not None

    def group(self, hashed: Hashed | None) -> tuple[Path, dict[str, int]]:
        """Search and group what is not covered by hashes until all is decided."""
        settings, home = self.settings, self.runner.folder(self.stage)
        before = self._cover_heaps(hashed.stands.parent if hashed else None)
        asked = self._ask(before)
        for number in range(MOST_PASSES):
            units = self._searches(number, asked, before)
            note = f"pass {number + 1}" if number else ""
            function = near.search_pool if asked is None else near.search
            self.runner.run(self.stage, function, units, note=note, gpus=gpus_wanted())
            searched = [home / unit.name for unit in units]
            how = settings.groups, settings.edges_per_image
            stays = 0 if self.settles else self.stays
            args = (self.ranks, searched, *how, before, stays)
            [result] = self.runner.run(self.stage, groups.group, [Unit(f"groups-{number}", args)])
            before = home / f"groups-{number}"
            if not result["undecided"]:
                return before, result
        raise LvdError(
            f"dedup: {result['undecided']} images undecided: raise dedup.edges_per_image"
        )

    def _cover_heaps(self, before: Path | None) -> Path | None:
        """Cover what the best images cover, where there are many and groups are greedy."""
        contents = self.clustered.clusters.images
        if self.settings.groups != "greedy" or not leaders.count_leaders(contents):
            return before
        home, clusters = self.runner.folder(self.stage), self.clustered.clusters
        how = self.bar, self.stays, before, self.threads
        unit = Unit("leaders", (self.collection, self.ranks, clusters, *how))
        self.runner.run(self.stage, leaders.find_leaders, [unit])
        led = home / "leaders"
        units = [
            Unit(
                f"follow-{first:08d}",
                (self.ranks, clusters, led, first, last, self.bar, before, self.threads),
            )
            for first, last in clusters.ranges
        ]
        self.runner.run(self.stage, leaders.follow_leaders, units, note="covering heaps")
        followed = [home / unit.name for unit in units]
        covered = Unit("covered", (self.ranks, led, followed, before))
        self.runner.run(self.stage, leaders.cover, [covered])
        return home / "covered"

    def settle(self, found: Path, hashed: Hashed | None) -> tuple[Path, dict[str, int]]:
        """Choose the representatives of components, and part those that reach too far."""
        settings, home = self.settings, self.runner.folder(self.stage)
        listed, ranges = self._members("components", found)
        central = keep.POLICIES[settings.keep].central
        covered = hashed.stands.parent if hashed else None
        read = (self.collection, self.ranks, listed, covered)
        how = (self.bar, central, settings.chain_floor, self.threads, self.stays)
        units = [Unit(f"settle-{first:012d}", (*read, first, last, *how)) for first, last in ranges]
        self.runner.run(self.stage, settle.settle, units, note="looking at components")
        folders = [home / unit.name for unit in units]
        args = (self.ranks, found, folders)
        [counts] = self.runner.run(self.stage, settle.write_settled, [Unit("settled", args)])
        return home / "settled", counts

    def measure(self, found: Path) -> tuple[tuple[Path, ...], int]:
        """Measure how far each group reaches; return where, and how many are chains."""
        listed, ranges = self._members("members", found)
        units = [
            Unit(
                f"shape-{first:012d}",
                (self.collection, found, listed, first, last, self.bar.threshold),
            )
            for first, last in ranges
        ]
        told = self.runner.run(self.stage, shape.measure_groups, units, note="measuring groups")
        home = self.runner.folder(self.stage)
        folders = tuple(home / unit.name for unit in units)
        return folders, sum(each["chains"] for each in told)

    def measure_completeness(self) -> dict[str, Any]:
        """Measure on a sample what share of the copies the search finds."""
        clusters, note = self.clustered.clusters, "measuring completeness"
        how = self._heaps, self.bar, self.settings, self.threads
        units = [Unit("sample", (self.collection, clusters, *how))]
        [drawn] = self.runner.run(self.stage, completeness.draw_sample, units, note=note)
        sample = self.runner.folder(self.stage) / "sample"
        units = [
            Unit(f"found-{first:08d}", (clusters, sample, first, last, *how))
            for first, last in clusters.ranges
            if drawn["queries"]
        ]
        counted = self.runner.run(self.stage, completeness.count_found, units, note=note)
        return completeness.add_up(drawn["queries"], counted)

    def _members(self, name: str, found: Path) -> tuple[Path, list[tuple[int, int]]]:
        args = (self.collection, found)
        self.runner.run(self.stage, members.list_members, [Unit(name, args)])
        listed = self.runner.folder(self.stage) / name
        return listed, members.ranges_of(listed)

    @property
    def _heaps(self) -> Path | None:
        """Where the clusters' heaps are, for probes."""
        in_pool = self.settings.search == "pool"
        return None if in_pool else self.runner.folder(self.stage) / "heaps"

    def _ask(self, before: Path | None) -> list[Path] | None:
        """Find where each image is searched. None for a search of the pool, which asks by itself."""
        if self._heaps is None:
            return None
        clusters, how = self.clustered.clusters, (self.bar.threshold, self.settings)
        unit = Unit("heaps", (clusters, self.bar.threshold, self.threads))
        self.runner.run(self.stage, probes.find_heaps, [unit])
        units = [
            Unit(
                f"ask-{first:08d}",
                (clusters, self._heaps, first, last, *how, before, self.threads),
            )
            for first, last in clusters.ranges
        ]
        self.runner.run(self.stage, near.ask, units, note="choosing clusters")
        return [self.runner.folder(self.stage) / unit.name for unit in units]

    def _searches(self, number: int, asked: list[Path] | None, before: Path | None) -> list[Unit]:
        clusters = self.clustered.clusters
        read = (self.ranks, clusters, *([] if asked is None else [asked]))
        how = self.bar, self.settings, before, self.threads
        return [
            Unit(f"search-{number}-{first:08d}", (*read, first, last, *how), images)
            for (first, last), images in zip(clusters.ranges, self.clustered.sizes, strict=True)
        ]
