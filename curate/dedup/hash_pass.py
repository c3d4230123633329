"""A pass by hashes over a crawl: its images are ranked, and copies are covered by the best of their hash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from curate.catalogue.collection import Collection
from curate.dedup import hashes, keep
from curate.dedup.hashes import STANDS, Hashed
from curate.dedup.near import DedupSettings
from curate.stage import Runner, Stage, Unit

RANKS, FIT, HASHED = "ranks", "fit", "hashed"


def rank_images(
    runner: Runner, stage: Stage, collection: Collection, settings: DedupSettings
) -> Path:
    """Rank the images as a unit of a stage; return where."""
    args: tuple[Any, ...] = (collection, settings.keep, settings.seed)
    runner.run(stage, keep.rank_contents, [Unit(RANKS, args)])
    return runner.folder(stage) / RANKS


def cover_by_hash(
    runner: Runner,
    stage: Stage,
    collection: Collection,
    settings: DedupSettings,
    ranks: Path,
    fitted: Path | None = None,
) -> Hashed | None:
    """Cover copies by their hashes as units of a stage, if asked to.

    By the hash that `fitted` holds, or else one that is fitted on these images.
    """
    if settings.hash == "none":
        return None
    home = runner.folder(stage)
    if fitted is None:
        args: tuple[Any, ...] = (collection, settings.hash, settings.seed)
        runner.run(stage, hashes.fit, [Unit(FIT, args)])
        fitted = home / FIT
    units = [
        Unit(f"hash-{start:012d}", (collection, settings.hash, fitted, start, stop))
        for start, stop in collection.blocks()
    ]
    runner.run(stage, hashes.hash_pictures, units, note="hashing")
    args = (ranks, [home / unit.name for unit in units], len(collection.standing))
    [counts] = runner.run(stage, hashes.cover_copies, [Unit(HASHED, args)])
    return Hashed(settings.hash, home / HASHED / STANDS, counts)
