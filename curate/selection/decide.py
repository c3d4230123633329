"""Stage select: one decision for every image, and the order in which the kept ones are written.

A reduce over the searches: about 30 bytes an image and 2 for each seed, and the keys of the kept ones
one part at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int8, Int64

from curate.catalogue.collection import Catalogued, Collection
from curate.catalogue.keyed_order import hash_keys
from curate.dedup.holdout import Held, hits_of_groups
from curate.filters.decisions import CODE, DECISIONS, OPEN
from curate.retrieval.answers import Answers
from curate.retrieval.candidates import load_candidates, touched_by_holdouts
from curate.selection.include import Included
from curate.stage import Runner, Stage, Unit

Decisions = Int8[np.ndarray, " n"]
VERSION = 6
OVER_BUDGET = -1
"""The code of an image that a seed retrieves and has no budget for."""


@dataclass(frozen=True)
class Wish:
    """What a seed retrieves of its candidates, where the stages left it, and how many of it count."""

    candidates: Path
    chosen: Path
    max_images: int | None


@dataclass(frozen=True)
class Selected:
    """The decisions, as `select` leaves them in `folder`, and how many there are of each.

    `exported` counts the images of the shards, with those of included seeds.

    `wanted` and `barred` count for each seed what its strategy has `found`, what of that it has
    `retrieved` within its budget, and what no other of them did, `alone`.
    """

    folder: Path
    decisions: dict[str, int]
    exported: int
    wanted: list[dict[str, int]]
    barred: list[dict[str, int]]
    address: str


def decide(
    runner: Runner,
    crawl: Catalogued,
    groups: Path,
    held: Held,
    answers: Answers,
    included: Included,
    max_images: int | None,
    seed: int,
) -> Selected:
    """Decide about every image, and deal the kept ones to shards in an order by `seed`."""
    wanted, barred = (
        [Wish(each.candidates.folder, each.chosen.folder, each.settings.max_images) for each in of]
        for of in (answers.wanted, answers.barred)
    )
    addresses = [
        [[each.candidates.address, each.chosen.address, each.settings.max_images] for each in of]
        for of in (answers.wanted, answers.barred)
    ]
    own = [each.collection for each in included.seeds]
    stage = Stage(
        "select",
        VERSION,
        [crawl.address, *addresses, held.address, included.addresses],
        [max_images, seed],
    )
    args = (
        *(crawl.collection, groups, list(held.folders), wanted, barred),
        *(list(zip(own, included.folders, strict=True)), max_images, seed),
    )
    [result] = runner.run(stage, select, [Unit("all", args)])
    return Selected(runner.folder(stage) / "all", **result, address=stage.address)


def select(
    crawl: Collection,
    groups: Path,
    holdout: list[Path],
    wanted: list[Wish],
    barred: list[Wish],
    included: list[tuple[Collection, Path]],
    max_images: int | None,
    seed: int,
    *,
    out: Path,
) -> dict:
    """Write `decision.npy` int8 by image number, and how the kept images follow one another.

    `source.npy` int16 and `order.npy` int64 are the dataset and the number of each: 0 is the crawl,
    the `included` seeds follow, each a collection and what `include` left. The order is that of a
    hash of key and `seed`, so it depends on no other image; `position-0.npy` and so on are an
    image's place in it, or -1, by dataset. `missed.npy` int8 [seeds, n] says of each candidate whether a
    seed wants it, 0, else its strategy's code of why not, or `OVER_BUDGET`; 0 for all others.
    `barred.npy` int16 is the first negative seed that bars an image, or -1. `held.npy` and
    `held_similarity.npy` are what `hits_of_groups` says of the groups.

    What a negative seed bars is irrelevant and uses up no budget, but is not replaced: no strategy
    goes on for it.
    """
    representative = np.load(groups / "representative.npy", mmap_mode="r")[:]
    numbers, _ = load_candidates(wanted[0].candidates)
    bars = [np.load(wish.chosen / "missed.npy") == 0 for wish in barred]
    barred_by = np.full(len(numbers), -1, np.int16)
    for place, hit in reversed(list(enumerate(bars))):
        barred_by[hit] = place
    shape = (len(wanted), len(crawl))
    missed = np.lib.format.open_memmap(out / "missed.npy", mode="w+", dtype=np.int8, shape=shape)
    codes = [_codes(wish, barred_by < 0) for wish in wanted]
    for place, code in enumerate(codes):
        missed[place, numbers] = code
    missed.flush()
    wishes = [(code == 0) & (barred_by < 0) for code in codes]
    is_wanted = np.any(wishes, axis=0)
    is_found = np.any([(code == OVER_BUDGET) for code in codes], axis=0)

    decision = np.array(crawl.decision)
    decision[(decision == OPEN) & (representative >= 0)] = CODE["duplicate"]
    decision[touched_by_holdouts(representative, holdout)] = CODE["holdout"]
    held, closeness = hits_of_groups(representative, holdout)
    np.save(out / "held.npy", held)
    np.save(out / "held_similarity.npy", closeness)
    otherwise = np.where(is_found, CODE["over_budget"], CODE["irrelevant"])
    decision[numbers] = np.where(is_wanted, CODE["kept"], otherwise)
    similarity = reduce(np.maximum, (load_candidates(wish.candidates)[1] for wish in wanted))
    too_many = beyond(np.flatnonzero(is_wanted), similarity, max_images)
    decision[numbers[too_many]] = CODE["over_budget"]
    np.save(out / "decision.npy", decision)
    of_seeds = [(own, np.load(folder / "decision.npy")) for own, folder in included]
    exported = _deal([(crawl, decision), *of_seeds], seed, out)
    barred_of_all = np.full(len(crawl), -1, np.int16)
    barred_of_all[numbers] = barred_by
    np.save(out / "barred.npy", barred_of_all)
    counts = np.bincount(decision, minlength=len(DECISIONS))
    return {
        "decisions": dict(zip(DECISIONS, counts.tolist(), strict=True)),
        "exported": exported,
        "wanted": _count(wishes, [(code == 0) | (code == OVER_BUDGET) for code in codes]),
        "barred": _count(bars, bars),
    }


def _deal(datasets: list[tuple[Collection, Decisions]], seed: int, out: Path) -> int:
    """Write the order of the kept images of all datasets; return how many there are."""
    kept = [np.flatnonzero(decision == CODE["kept"]) for _, decision in datasets]
    hashes = [hash_keys(data, mine, seed) for (data, _), mine in zip(datasets, kept, strict=True)]
    source = np.repeat(np.arange(len(kept), dtype=np.int16), [len(mine) for mine in kept])
    numbers = np.concatenate(kept)
    order = np.lexsort((numbers, source, np.concatenate(hashes)))
    source, numbers = source[order], numbers[order]
    for place, (data, _) in enumerate(datasets):
        position = np.full(len(data), -1, np.int64)
        mine = np.flatnonzero(source == place)
        position[numbers[mine]] = mine
        np.save(out / f"position-{place}.npy", position)
    np.save(out / "source.npy", source)
    np.save(out / "order.npy", numbers)
    return len(order)


def _codes(wish: Wish, free: Bool[np.ndarray, " n"]) -> Int8[np.ndarray, " n"]:
    """Return the strategy's codes of all candidates, those over the seed's budget marked."""
    codes: np.ndarray = np.load(wish.chosen / "missed.npy")
    similarity = load_candidates(wish.candidates)[1]
    codes[beyond(np.flatnonzero((codes == 0) & free), similarity, wish.max_images)] = OVER_BUDGET
    return codes


def beyond(
    rows: Int64[np.ndarray, " r"], similarity: Float32[np.ndarray, " n"], most: int | None
) -> Int64[np.ndarray, " _"]:
    """Return those of `rows` that are not among the `most` most similar, ties by row."""
    if most is None:
        return rows[:0]
    return rows[np.argsort(-similarity[rows], kind="stable")][most:]


def _count(
    retrieved: list[Bool[np.ndarray, " n"]], found: list[Bool[np.ndarray, " n"]]
) -> list[dict[str, int]]:
    claims = np.sum(retrieved, axis=0, dtype=np.int32)
    return [
        {
            "found": int(all_of_it.sum()),
            "retrieved": int(mine.sum()),
            "alone": int((mine & (claims == 1)).sum()),
        }
        for mine, all_of_it in zip(retrieved, found, strict=True)
    ]
