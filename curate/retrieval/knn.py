"""Strategy `knn`, the paper's sample-based retrieval: the nearest images of every seed image.

DINOv2 (arXiv 2304.07193, appendix A.4) takes N = 4 or 32 of each image of a seed of over a million.
Every image of the seed counts, copies of others too.

Units: `search` (map over ranges of seed images, each against the whole crawl in blocks) and `match`
(reduce of about 60 bytes, or 130 where collisions go deeper, for each pair of a seed image and one
of its nearest). With `collisions: deeper` both are repeated, four times as deep each time, for the
seed images that lack images.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64
from pydantic import BaseModel, ConfigDict, Field

from curate.catalogue.collection import Collection
from curate.neighbours.search import BASE_ROWS, first_k, gpus_wanted, top_k, use_threads
from curate.retrieval.candidates import load_candidates
from curate.retrieval.question import Chosen, Question, below
from curate.retrieval.ranks import rank_within
from curate.stage import Stage, Unit

VERSION = 1
SEEDS = 16_384
"""Seed images of one unit of `search`, at most."""
PAIRS = 4_000_000
"""Pairs of a seed image and a neighbour in one unit of `search`, at most."""
BELOW, FURTHER = 1, 2


class KnnSettings(BaseModel):
    """How many images a seed image brings."""

    model_config = ConfigDict(extra="forbid")

    neighbours: int = Field(4, ge=1)
    """Nearest images that every seed image asks for."""
    collisions: Literal["once", "deeper"] = "once"
    """An image that several seed images ask for counts once, as published, or goes to the nearest of
    them, and the others go deeper until they have as many images of their own."""

    def describe(self) -> str:
        """Return what is retrieved, for people."""
        own = " of its own" if self.collisions == "deeper" else ""
        return f"the {self.neighbours:,} nearest images{own} of each seed image"


def choose(question: Question, settings: KnnSettings) -> Chosen:
    """Return the nearest images of every seed image."""
    runner, candidates, threads = question.runner, question.candidates, question.threads
    stage = Stage(
        "choose",
        ["knn", VERSION],
        [candidates.address, question.seed.address],
        [settings.model_dump(), question.threshold, threads],
    )
    home, asking = runner.folder(stage), len(question.seed.collection.open_by_key)
    searched: list[Path] = []
    before: Path | None = None
    for number in count():
        depth = max(1, min(settings.neighbours * 4**number, candidates.count))
        step = max(1, min(SEEDS, PAIRS // depth))
        where = (question.crawl.collection, candidates.folder, question.seed.collection, before)
        units = [
            Unit(
                f"search-{number}-{first:09d}",
                (*where, first, min(first + step, asking), depth, threads),
            )
            for first in range(0, asking, step)
        ]
        note = f"pass {number + 1}" if number else ""
        runner.run(stage, search, units, gpus=gpus_wanted(), note=note)
        searched += [home / unit.name for unit in units]
        args = (candidates.folder, searched, settings, question.threshold)
        [result] = runner.run(stage, match, [Unit(f"match-{number}", args)])
        before = home / f"match-{number}"
        asking = result["pending"]
        if not asking:
            break
    misses = (below(question.threshold), f"; not among {settings.describe()}")
    return Chosen(home / f"match-{number}", misses, stage.address)


def search(
    crawl: Collection,
    candidates: Path,
    seed: Collection,
    before: Path | None,
    first: int,
    last: int,
    depth: int,
    threads: int,
    *,
    out: Path,
) -> dict[str, Any]:
    """Write which seed images ask, `seeds.npy` int64 [s], and their nearest candidates.

    These are `similarity.npy` float32 and `rows.npy` int64 [s, depth]. Seed images are counted in
    the order of their keys: from `first` to `last` of all, or of those that `before` left pending.
    """
    use_threads(threads)
    images = seed.open_by_key
    asking = np.arange(len(images)) if before is None else np.load(before / "pending.npy")
    asking = asking[first:last]
    numbers, _ = load_candidates(candidates)
    blocks = (
        crawl.vectors(np.array(numbers[at : at + BASE_ROWS]))
        for at in range(0, len(numbers), BASE_ROWS)
    )
    similarity, rows = nearest_images(seed.vectors(images[asking]), blocks, depth)
    np.save(out / "seeds.npy", asking)
    np.save(out / "similarity.npy", similarity)
    np.save(out / "rows.npy", rows)
    return {"images": len(asking)}


def nearest_images(
    seeds: Float[np.ndarray, "s d"], blocks: Iterable[Float[np.ndarray, "_ d"]], depth: int
) -> tuple[Float32[np.ndarray, "s k"], Int64[np.ndarray, "s k"]]:
    """Return cosines and rows of the `depth` nearest images of every seed image, ties by row.

    Rows count on from block to block, of which one is in memory at a time. Takes stored vectors.
    """
    similarity = np.empty((len(seeds), 0), np.float32)
    rows = np.empty((len(seeds), 0), np.int64)
    start = 0
    for block in blocks:
        near, row = top_k(seeds, block, depth)
        similarity, rows = first_k(
            np.hstack([similarity, near]), np.hstack([rows, row + start]), depth
        )
        start += len(block)
    return similarity, rows


def match(
    candidates: Path, searched: list[Path], settings: KnnSettings, floor: float, *, out: Path
) -> dict[str, Any]:
    """Write `missed.npy`, and `pending.npy`: the seed images that must ask for more to be content."""
    nearest = load_candidates(candidates)[1][:]
    missed = np.where(nearest < np.float32(floor), BELOW, FURTHER).astype(np.int8)
    seed, row, similarity, is_complete = _lists(searched, len(nearest), floor)
    pending = np.empty(0, np.int64)
    if settings.collisions == "once":
        missed[row] = 0
    else:
        dealt = deal(seed, row, similarity, settings.neighbours)
        missed[row[dealt]] = 0
        has = np.bincount(seed[dealt], minlength=len(is_complete))
        if (missed == FURTHER).any():  # else no one can get what is not retrieved already
            pending = np.flatnonzero((has < settings.neighbours) & ~is_complete)
    np.save(out / "missed.npy", missed)
    np.save(out / "pending.npy", pending)
    return {"pending": len(pending)}


def _lists(
    searched: list[Path], candidates: int, floor: float
) -> tuple[
    Int64[np.ndarray, " p"],
    Int64[np.ndarray, " p"],
    Float32[np.ndarray, " p"],
    Bool[np.ndarray, " s"],
]:
    """Return seeds, rows and similarities of all pairs that reach the floor, and who has no more.

    Of a seed image that was searched for several times, the last list counts: it begins as the
    others do.
    """
    asked = [np.load(folder / "seeds.npy") for folder in searched]
    total = max((int(seeds.max(initial=-1)) for seeds in asked), default=-1) + 1
    last = np.empty(total, np.int64)
    for place, seeds in enumerate(asked):
        last[seeds] = place
    is_complete = np.ones(total, bool)
    pairs = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))]
    for place, (folder, seeds) in enumerate(zip(searched, asked, strict=True)):
        mine = np.flatnonzero(last[seeds] == place)
        similarity = np.load(folder / "similarity.npy", mmap_mode="r")[mine]
        rows = np.load(folder / "rows.npy", mmap_mode="r")[mine]
        reach = similarity >= np.float32(floor)
        is_complete[seeds[mine]] = ~reach.all(1) | (rows.shape[1] == candidates)
        owner = np.broadcast_to(seeds[mine][:, None], rows.shape)
        pairs.append((owner[reach], rows[reach], similarity[reach]))
    seed, row, cosines = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
    return seed, row, cosines, is_complete


def deal(
    seed: Int64[np.ndarray, " p"],
    image: Int64[np.ndarray, " p"],
    similarity: Float32[np.ndarray, " p"],
    neighbours: int,
) -> Bool[np.ndarray, " p"]:
    """Return which pairs hold when every image goes to one seed image, and each gets `neighbours`.

    The most similar pair comes first, ties by seed image and image: it holds where the image is
    free and the seed image lacks one. All pairs of which that is certain are taken at once: those
    that are the first of their image and within what their seed image lacks.
    """
    order = np.lexsort((image, seed, -similarity))
    seed, image = seed[order], image[order]
    lacks = np.full(seed.max(initial=-1) + 1, neighbours)
    is_free = np.ones(image.max(initial=-1) + 1, bool)
    holds = np.zeros(len(seed), bool)
    left = np.arange(len(seed))
    while len(left):
        own, wanted = seed[left], image[left]
        sure = (rank_within(wanted) == 0) & (rank_within(own) < lacks[own])
        holds[left[sure]] = True
        lacks -= np.bincount(own[sure], minlength=len(lacks))
        is_free[wanted[sure]] = False
        left = left[is_free[wanted] & (lacks[own] > 0)]
    result = np.empty(len(order), bool)
    result[order] = holds
    return result
