"""Stage select: one decision for every image, and the order in which the kept ones are written.

A reduce over the searches: about 30 bytes an image and 2 for each seed, and the keys of the kept ones
one part at a time; 8 more for weights, and as many with a balance.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int8, Int64, Integer

from curate.catalogue.collection import Catalogued, Collection, Numbers
from curate.catalogue.exported import ANEW
from curate.catalogue.keyed_order import hash_keys
from curate.dedup.chains import Dropped, load_chains
from curate.filters.decisions import CODE, DECISIONS, OPEN
from curate.retrieval.answers import Answers
from curate.selection.balance import Balanced
from curate.selection.include import Included
from curate.selection.top_up import TopUp
from curate.selection.wishes import Wish, addresses_of, gather_wishes, wishes_of
from curate.stage import Runner, Stage, Unit
from shared.errors import LvdError

OfDataset = tuple[Collection, Int8[np.ndarray, " _"]]
"""A dataset, and the decisions about its images."""
VERSION = 7


@dataclass(frozen=True)
class Selected:
    """The decisions, as `select` leaves them in `folder`, and how many there are of each.

    `exported` counts the images of the shards, with those of included seeds, and `stayed` those of them
    that the result held which the run goes on from.

    `wanted` and `barred` count for each seed what its strategy has `found`, what of that it has
    `retrieved` within its budget, and what no other of them did, `alone`.
    """

    folder: Path
    decisions: dict[str, int]
    exported: int
    stayed: int
    wanted: list[dict[str, int]]
    barred: list[dict[str, int]]
    address: str


def decide(
    runner: Runner,
    crawl: Catalogued,
    groups: Path,
    dropped: Dropped,
    answers: Answers,
    included: Included,
    max_images: int | None,
    balanced: Balanced,
    topped_up: TopUp | None,
    seed: int,
) -> Selected:
    """Decide about every image, and deal the kept ones to shards in an order by `seed`."""
    wanted, barred = answers.wanted, answers.barred
    own = [each.collection for each in included.seeds]
    stage = Stage(
        "select",
        VERSION,
        [
            *(crawl.address, addresses_of(wanted), addresses_of(barred)),
            *(dropped.address, included.addresses, balanced.address),
            topped_up and topped_up.address,
        ],
        [max_images, seed],
    )
    args = (
        *(crawl.collection, groups, dropped.folder, wishes_of(wanted), wishes_of(barred)),
        *(list(zip(own, included.folders, strict=True)), max_images, seed),
        *(balanced.folder, topped_up and topped_up.folder),
    )
    [result] = runner.run(stage, select, [Unit("all", args)])
    return Selected(runner.folder(stage) / "all", **result, address=stage.address)


def select(
    crawl: Collection,
    groups: Path,
    dropped: Path | None,
    wanted: list[Wish],
    barred: list[Wish],
    included: list[tuple[Collection, Path]],
    max_images: int | None,
    seed: int,
    balanced: Path | None = None,
    topped_up: Path | None = None,
    *,
    out: Path,
) -> dict[str, Any]:
    """Write `decision.npy` int8 by image number, and how the kept images follow one another.

    `source.npy` int16 and `order.npy` int64 are the dataset and the number of each: 0 is the crawl,
    the `included` seeds follow, each a collection and what `include` left. The order is that of a
    hash of key and `seed`, so it depends on no other image; `position-0.npy` and so on are an
    image's place in it, or -1, by dataset. `missed.npy` int8 [seeds, n] says of each candidate whether a
    seed wants it, 0, else its strategy's code of why not, or `OVER_BUDGET`; 0 for all others.
    `barred.npy` int16 is the first negative seed that bars an image, or -1. `weight.npy` int32 is how
    often a kept image is to be drawn, 0 for all others; of what is retrieved within all budgets it is
    what `balanced` says, where it is given, and `balance_cluster.npy` int32 is then the cluster, or -1;
    or what `topped_up` says: then `top_up_similarity.npy` float32 is its `similarity`, and
    `top_up_left.npy` bool what it has left.

    Where the run goes on from a result, what that holds is kept, and where it adds to its shards, comes
    first, in its order there.
    """
    representative = np.load(groups / "representative.npy", mmap_mode="r")[:]
    wishes = gather_wishes(wanted, barred, max_images)
    numbers, count = wishes.numbers, len(crawl)
    weight = np.zeros(count, np.int32)
    drawn = balanced or topped_up
    weight[numbers] = wishes.taken if drawn is None else np.load(drawn / "weight.npy")
    np.save(out / "weight.npy", weight)
    if balanced is not None:
        cluster = np.load(balanced / "cluster.npy")
        np.save(out / "balance_cluster.npy", _by_number(cluster, numbers, count))
    if topped_up is not None:
        similarity, left = np.full(count, np.nan, np.float32), np.zeros(count, bool)
        similarity[numbers] = np.load(topped_up / "similarity.npy")
        left[numbers] = np.load(topped_up / "left.npy")
        np.save(out / "top_up_similarity.npy", similarity)
        np.save(out / "top_up_left.npy", left)
    np.save(out / "barred.npy", _by_number(wishes.barred_by, numbers, count))
    missed = np.lib.format.open_memmap(
        out / "missed.npy", mode="w+", dtype=np.int8, shape=(len(wanted), count)
    )
    for place, code in enumerate(wishes.codes):
        missed[place, numbers] = code

    decision = np.array(crawl.decision)
    decision[(decision == OPEN) & (representative >= 0)] = CODE["duplicate"]
    decision[load_chains(dropped).number] = CODE["holdout"]
    decision[numbers] = np.where(wishes.sought, CODE["over_budget"], CODE["irrelevant"])
    decision[weight > 0] = CODE["kept"]
    np.save(out / "decision.npy", decision)
    of_seeds = [(own, np.load(folder / "decision.npy")) for own, folder in included]
    _require_kept([(crawl, decision), *of_seeds])
    exported = _deal([(crawl, decision), *of_seeds], seed, out)
    counts = np.bincount(decision, minlength=len(DECISIONS))
    return {
        "decisions": dict(zip(DECISIONS, counts.tolist(), strict=True)),
        "exported": exported,
        "stayed": sum(
            int((own[data.exported[:, 0]] == CODE["kept"]).sum())
            for data, own in [(crawl, decision), *of_seeds]
        ),
        "wanted": _count(wishes.retrieved, wishes.found),
        "barred": _count(wishes.bars, wishes.bars),
    }


def _require_kept(datasets: list[OfDataset]) -> None:
    """Raise LvdError where images that the result to add to holds would not be kept."""
    lost = 0
    for data, decision in datasets:
        numbers, places = data.exported.T
        lost += int((decision[numbers[places != ANEW]] != CODE["kept"]).sum())
    if lost:
        raise LvdError(
            f"{lost:,} images of the result to add to are copies of holdout images, or of images of "
            "an included seed, that were not there before: curate anew into another OUT"
        )


def _by_number(
    values: Integer[np.ndarray, " n"], numbers: Numbers, count: int
) -> Integer[np.ndarray, " images"]:
    """Return the candidates' values by image number, -1 for all others."""
    result = np.full(count, -1, values.dtype)
    result[numbers] = values
    return result


def _deal(datasets: list[OfDataset], seed: int, out: Path) -> int:
    """Write the order of the kept images of all datasets; return how many there are.

    What is exported already comes first, as it is there.
    """
    kept = [np.flatnonzero(decision == CODE["kept"]) for _, decision in datasets]
    hashes = [hash_keys(data, mine, seed) for (data, _), mine in zip(datasets, kept, strict=True)]
    source = np.repeat(np.arange(len(kept), dtype=np.int16), [len(mine) for mine in kept])
    numbers = np.concatenate(kept)
    there = [_places(data, mine) for (data, _), mine in zip(datasets, kept, strict=True)]
    keys = numbers, source, np.concatenate(hashes), np.concatenate(there)
    order = np.lexsort(keys)
    source, numbers = source[order], numbers[order]
    for place, (data, _) in enumerate(datasets):
        position = np.full(len(data), -1, np.int64)
        mine = np.flatnonzero(source == place)
        position[numbers[mine]] = mine
        np.save(out / f"position-{place}.npy", position)
    np.save(out / "source.npy", source)
    np.save(out / "order.npy", numbers)
    return len(order)


def _places(data: Collection, numbers: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Return where images stand in the shards of the result to add to; behind all of them if nowhere."""
    places = np.full(len(numbers), ANEW)
    known, there = data.exported.T
    found = np.isin(numbers, known)
    places[found] = there[np.searchsorted(known, numbers[found])]
    return places


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
