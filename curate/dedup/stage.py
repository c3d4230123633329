"""Stage dedup: groups of copies, found inside clusters, pass after pass until all is decided."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from curate.catalogue.collection import Catalogued, Collection
from curate.dedup import completeness, groups, hashes, keep, leaders, members, near, settle, shape
from curate.dedup.hashes import STANDS, Hashed
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
    shapes: tuple[Path, ...] = ()
    """What `shape.measure_groups` says of the groups, in the order of their keys."""
    hashed: Hashed | None = None
    """What a pass by hashes found."""
    looked: Looked | None = None
    """What looks below the threshold found."""


def dedup(
    runner: Runner,
    crawl: Catalogued,
    clustered: Clustered,
    threshold: float,
    settings: DedupSettings,
    max_pixels: int,
    threads: int,
) -> Deduplicated:
    """Group copies: every image gets the one that stands for it."""
    versions = [
        each.VERSION
        for each in (near, groups, hashes, keep, leaders, members, settle, shape, completeness)
    ]
    asked = settings.model_dump(exclude={"embedder", "looks", "look_floor"})
    asked |= {"threshold": threshold}
    stage = Stage("dedup", versions, clustered.address, asked)
    work = _Dedup(runner, stage, crawl.collection, clustered, threshold, settings, threads)
    with runner.at_work("dedup"):
        args: tuple[Any, ...] = (crawl.collection, threshold, settings)
        runner.run(stage, near.sanity, [Unit("sanity", args)], note="sanity check")
        hashed = work.cover_copies()
        found, counts = work.group(hashed)
        if keep.POLICIES[settings.keep].central or settings.chain_floor is not None:
            found, counts = work.settle(found, hashed)
        complete = work.measure_completeness()
        groups_so_far = found, stage.address
        how = work.ranks, threshold, settings, max_pixels, threads
        looked = look_below(runner, crawl, clustered, groups_so_far, *how)
        if looked is not None:
            found, counts, work = looked.groups, looked.counts, replace(work, stage=looked.stage)
        shapes, chains = work.measure(found)
    counts = {name: counts[name] for name in ("groups", "members")} | {"chains": chains}
    return Deduplicated(found, counts, complete, work.stage.address, shapes, hashed, looked)


@dataclass(frozen=True)
class _Dedup:
    """The units of one run of the stage."""

    runner: Runner
    stage: Stage
    collection: Collection
    clustered: Clustered
    threshold: float
    settings: DedupSettings
    threads: int

    @property
    def ranks(self) -> Path:
        """Where the images are ranked."""
        return self.runner.folder(self.stage) / "ranks"

    def cover_copies(self) -> Hashed | None:
        """Rank the images, and cover copies by their hashes, if asked to."""
        settings, home = self.settings, self.runner.folder(self.stage)
        args: tuple[Any, ...] = (self.collection, settings.keep, settings.seed)
        self.runner.run(self.stage, keep.rank_contents, [Unit("ranks", args)])
        if settings.hash == "none":
            return None
        args = (self.collection, settings.hash, settings.seed)
        self.runner.run(self.stage, hashes.fit, [Unit("fit", args)])
        units = [
            Unit(
                f"hash-{start:012d}",
                (self.collection, settings.hash, home / "fit", start, stop),
                stop - start,
            )
            for start, stop in self.collection.blocks()
        ]
        self.runner.run(self.stage, hashes.hash_pictures, units, note="hashing")
        args = (self.ranks, [home / unit.name for unit in units], len(self.collection.exported))
        [counts] = self.runner.run(self.stage, hashes.cover_copies, [Unit("hashed", args)])
        return Hashed(settings.hash, home / "hashed" / STANDS, counts)

    def group(self, hashed: Hashed | None) -> tuple[Path, dict[str, int]]:
        """Search and group what is not covered by hashes until all is decided."""
        settings, home = self.settings, self.runner.folder(self.stage)
        before = self._cover_heaps(hashed.stands.parent if hashed else None)
        for number in range(MOST_PASSES):
            units = self._searches(number, before)
            note = f"pass {number + 1}" if number else ""
            self.runner.run(self.stage, near.search, units, note=note, gpus=gpus_wanted())
            searched = [home / unit.name for unit in units]
            how = settings.groups, settings.edges_per_image
            args = (self.ranks, searched, *how, before, len(self.collection.exported))
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
        how = self.threshold, len(self.collection.exported), before, self.threads
        unit = Unit("leaders", (self.collection, self.ranks, clusters, *how))
        self.runner.run(self.stage, leaders.find_leaders, [unit])
        led = home / "leaders"
        units = [
            Unit(
                f"follow-{first:08d}",
                (self.ranks, clusters, led, first, last, self.threshold, before, self.threads),
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
        stays = len(self.collection.exported)
        how = (self.threshold, central, settings.chain_floor, self.threads, stays)
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
                (self.collection, found, listed, first, last, self.threshold),
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
        how = self.threshold, self.settings, self.threads
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

    def _searches(self, number: int, before: Path | None) -> list[Unit]:
        clusters = self.clustered.clusters
        return [
            Unit(
                f"search-{number}-{first:08d}",
                (
                    *(self.collection, self.ranks, clusters, first, last),
                    *(self.threshold, self.settings, before, self.threads),
                ),
                images,
            )
            for (first, last), images in zip(clusters.ranges, self.clustered.sizes, strict=True)
        ]
