"""Stage select: one decision for every image, and the order in which the kept ones are written.

A reduce over the searches: about 30 bytes an image, and the keys of the kept ones one part at a
time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curate.catalogue.collection import Catalogued, Collection
from curate.catalogue.keyed_order import hash_keys
from curate.dedup.holdout import Held
from curate.filters.decisions import CODE, DECISIONS, OPEN
from curate.retrieval.candidates import Candidates, load_candidates, touched_by_holdouts
from curate.retrieval.question import Chosen
from curate.stage import Runner, Stage, Unit

VERSION = 4


@dataclass(frozen=True)
class Selected:
    """The decisions, as `select` leaves them in `folder`, and how many there are of each."""

    folder: Path
    decisions: dict[str, int]
    address: str


def decide(
    runner: Runner,
    crawl: Catalogued,
    groups: Path,
    held: Held,
    candidates: Candidates,
    chosen: Chosen,
    max_images: int | None,
    seed: int,
) -> Selected:
    """Decide about every image, and deal the kept ones to shards in an order by `seed`."""
    stage = Stage(
        "select",
        VERSION,
        [crawl.address, candidates.address, chosen.address, held.address],
        [max_images, seed],
    )
    args = (
        *(crawl.collection, groups, list(held.folders), candidates.folder, chosen.folder),
        *(max_images, seed),
    )
    [result] = runner.run(stage, select, [Unit("all", args)])
    return Selected(runner.folder(stage) / "all", **result, address=stage.address)


def select(
    crawl: Collection,
    groups: Path,
    holdout: list[Path],
    candidates: Path,
    chosen: Path,
    max_images: int | None,
    seed: int,
    *,
    out: Path,
) -> dict:
    """Write `decision.npy` int8 by image number, and `order.npy`, the kept images' numbers.

    The order is that of a hash of key and `seed`, so it depends on no other image; `position.npy`
    is an image's place in it, or -1. `missed.npy` int8 is the strategy's code of why an image is
    irrelevant, 0 for all others.
    """
    representative = np.load(groups / "representative.npy", mmap_mode="r")[:]
    numbers, similarity = load_candidates(candidates)
    missed = np.load(chosen / "missed.npy")
    decision = np.array(crawl.decision)
    decision[(decision == OPEN) & (representative >= 0)] = CODE["duplicate"]
    decision[touched_by_holdouts(representative, holdout)] = CODE["holdout"]
    decision[numbers] = np.where(missed, CODE["irrelevant"], CODE["kept"])
    if max_images is not None:
        relevant = np.flatnonzero(missed == 0)
        ranked = relevant[np.argsort(-similarity[relevant], kind="stable")]
        decision[numbers[ranked[max_images:]]] = CODE["over_budget"]
    np.save(out / "decision.npy", decision)
    kept = np.flatnonzero(decision == CODE["kept"])
    order = kept[np.lexsort((kept, hash_keys(crawl, kept, seed)))]
    position = np.full(len(crawl), -1, np.int64)
    position[order] = np.arange(len(order))
    np.save(out / "order.npy", order)
    np.save(out / "position.npy", position)
    missed_of_all = np.zeros(len(crawl), np.int8)
    missed_of_all[numbers] = missed
    np.save(out / "missed.npy", missed_of_all)
    counts = np.bincount(decision, minlength=len(DECISIONS))
    return {"decisions": dict(zip(DECISIONS, counts.tolist(), strict=True))}
