"""Stage dedup: groups of copies, found inside clusters, pass after pass until all is decided."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curate.catalogue.collection import Catalogued
from curate.dedup import groups, near
from curate.dedup.near import DedupSettings
from curate.neighbours.cluster import Clustered
from curate.stage import Runner, Stage, Unit
from shared.errors import LvdError

MOST_PASSES = 1_000


@dataclass(frozen=True)
class Deduplicated:
    """Who stands for whom: the folder of the last pass, as `groups.group` leaves it."""

    groups: Path
    counts: dict[str, int]
    """Groups of two or more, and their members."""
    completeness: dict[str, Any]
    """As `near.recall` measures it."""
    address: str


def dedup(
    runner: Runner,
    crawl: Catalogued,
    clustered: Clustered,
    threshold: float,
    settings: DedupSettings,
    threads: int,
) -> Deduplicated:
    """Group copies: every image gets the one that stands for it."""
    collection = crawl.collection
    asked = settings.model_dump(exclude={"embedder"}) | {"threshold": threshold}
    stage = Stage("dedup", [near.VERSION, groups.VERSION], clustered.address, asked)
    home = runner.folder(stage)
    with runner.at_work("dedup"):
        args: tuple[Any, ...] = (collection, threshold, settings)
        runner.run(stage, near.sanity, [Unit("sanity", args)], note="sanity check")
        before: Path | None = None
        for number in range(MOST_PASSES):
            units = [
                Unit(
                    f"search-{number}-{first:08d}",
                    (
                        collection,
                        clustered.clusters,
                        first,
                        last,
                        threshold,
                        settings,
                        before,
                        threads,
                    ),
                    images,
                )
                for (first, last), images in zip(
                    clustered.clusters.ranges, clustered.sizes, strict=True
                )
            ]
            runner.run(stage, near.search, units, note=f"pass {number + 1}" if number else "")
            searched = [home / unit.name for unit in units]
            args = (collection, searched, settings.groups, settings.edges_per_image, before)
            [result] = runner.run(stage, groups.group, [Unit(f"groups-{number}", args)])
            before = home / f"groups-{number}"
            if not result["undecided"]:
                break
        else:
            raise LvdError(
                f"dedup: {result['undecided']} images undecided: raise dedup.edges_per_image"
            )
        args = (collection, clustered.clusters, threshold, settings, threads)
        [completeness] = runner.run(
            stage, near.recall, [Unit("recall", args)], note="measuring completeness"
        )
    counts = {name: result[name] for name in ("groups", "members")}
    return Deduplicated(before, counts, completeness, stage.address)
