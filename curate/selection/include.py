"""Stage include: what becomes of the images of seeds that go into the shards themselves.

They are taken as they are: neither filtered nor searched for near copies. Only what cannot be read, is
a copy of a holdout image or of its copies, or has the same bytes as another of them is left out. Of images of the same
bytes the one stays that a result to add to holds. A reduce of about 50 bytes an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from curate.catalogue.collection import Catalogued, Collection
from curate.dedup.chains import Dropped, load_chains
from curate.dedup.holdout import Held, find_copies
from curate.filters.decisions import CODE, DECISIONS, OPEN
from curate.stage import Runner, Stage, Unit

VERSION = 3


@dataclass(frozen=True)
class Included:
    """The seeds whose images go into the shards; none, with the defaults."""

    seeds: tuple[Catalogued, ...] = ()
    """As the embedder for copies sees them, in the order of their names."""
    copies: Held = field(default_factory=Held)
    """Crawled images that are copies of theirs: these are duplicates."""
    folders: tuple[Path, ...] = ()
    """Of each seed, its decisions, as `judge_seed` leaves them."""
    decisions: tuple[dict[str, int], ...] = ()
    addresses: tuple[str, ...] = ()


def include(
    runner: Runner,
    crawl: Catalogued,
    seeds: Sequence[Catalogued],
    dropped: Dropped,
    threshold: float,
    threads: int,
) -> Included:
    """Decide about the images of seeds, and find the crawled images that are copies of theirs.

    `dropped` is what chains of copies connect with holdouts, of the crawl and of these seeds.
    """
    if not seeds:
        return Included()
    with runner.at_work("include"):
        copies = find_copies(runner, crawl, seeds, threshold, threads)
        folders: list[Path] = []
        addresses: list[str] = []
        decisions = []
        for place, seed in enumerate(seeds, 1):
            later = seeds[place:]
            inputs = [seed.address, dropped.address, addresses, [each.address for each in later]]
            stage = Stage("include", VERSION, inputs)
            behind = [each.collection for each in later]
            args = (seed.collection, dropped.folder, place, list(folders), behind)
            [counts] = runner.run(stage, judge_seed, [Unit("all", args)])
            decisions.append(counts)
            folders.append(runner.folder(stage) / "all")
            addresses = [*addresses, stage.address]
    return Included(tuple(seeds), copies, tuple(folders), tuple(decisions), tuple(addresses))


def judge_seed(
    seed: Collection,
    dropped: Path | None,
    place: int,
    before: list[Path],
    behind: list[Collection],
    *,
    out: Path,
) -> dict[str, int]:
    """Write `decision.npy` int8, and `kept.npy`, the sorted digests of the images that are kept.

    `dropped` is where the chains are, in which the seed has its `place`. `before` is what this wrote for the seeds before, and `behind` are those that follow: what has the
    same bytes as an image that is kept there, that a result to add to holds, or whose key comes first
    here, is a duplicate, unless that result holds it. Returns how many there are of each decision.
    """
    decision = np.array(seed.decision)
    stays = np.zeros(len(seed), bool)
    stays[seed.exported[:, 0]] = True
    own = seed.digests()
    taken = [own[stays], *(each.digests()[each.exported[:, 0]] for each in behind)]
    taken += [np.load(folder / "kept.npy", mmap_mode="r") for folder in before]
    is_first = seed.canonical[:] == np.arange(len(seed))
    for digests in taken:
        is_first &= ~np.isin(own, digests)
    decision[decision == OPEN] = CODE["duplicate"]
    decision[(decision == CODE["duplicate"]) & (is_first | stays)] = CODE["kept"]
    decision[load_chains(dropped, place).number] = CODE["holdout"]
    np.save(out / "decision.npy", decision)
    np.save(out / "kept.npy", np.sort(own[decision == CODE["kept"]]))
    counts = np.bincount(decision, minlength=len(DECISIONS)).tolist()
    return {name: count for name, count in zip(DECISIONS, counts, strict=True) if count}
