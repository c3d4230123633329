"""Stage holdout: which crawled images are near-copies of an evaluation set's.

A map over blocks of numbers. What is found takes its copies with it, and these theirs (`chains.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from curate.catalogue.collection import Catalogued, Collection
from curate.neighbours.in_dataset import nearest_images
from curate.neighbours.search import gpus_wanted, use_threads
from curate.stage import Runner, Stage, Unit

VERSION = 2


class HoldoutSettings(BaseModel):
    """What counts as a copy of a holdout image."""

    model_config = ConfigDict(extra="forbid")

    threshold: float | None = Field(None, ge=-1, le=1)
    """Cosine from which a crawled image is dropped, inclusive. Default: the dedup threshold."""


@dataclass(frozen=True)
class Held:
    """What the blocks of a crawl hold of evaluation sets; no folders where there is no such set."""

    folders: tuple[Path, ...] = ()
    address: str | None = None


def find_copies(
    runner: Runner,
    crawl: Catalogued,
    holdouts: Sequence[Catalogued],
    threshold: float,
    threads: int,
) -> Held:
    """Find the images of one dataset that are copies of images of others."""
    if not holdouts:
        return Held()
    addresses = [crawl.address, *[[held.name, held.address] for held in holdouts]]
    stage = Stage("holdout", VERSION, addresses, [threshold, threads])
    sets = [held.collection for held in holdouts]
    units = [
        Unit(
            f"{start:012d}",
            (crawl.collection, sets, start, stop, threshold, threads),
            stop - start,
        )
        for start, stop in crawl.collection.blocks()
    ]
    runner.run(stage, search, units, gpus=gpus_wanted())
    return Held(tuple(runner.folder(stage) / unit.name for unit in units), stage.address)


def search(
    crawl: Collection,
    holdouts: list[Collection],
    start: int,
    stop: int,
    threshold: float,
    threads: int,
    *,
    out: Path,
) -> dict[str, Any]:
    """Write what the block's images are copies of: an int64 table [hits, 3] and similarities.

    A row is (number of the crawled image, place of the holdout set, number in it): the most similar
    holdout image, ties by set and key.
    """
    use_threads(threads)
    numbers = np.flatnonzero(crawl.canonical[start:stop] >= 0) + start
    vectors = crawl.vectors(numbers)
    best = np.full(len(numbers), -2, np.float32)
    where = np.full((len(numbers), 2), -1, np.int64)
    for place, holdout in enumerate(holdouts):
        similarity, images = nearest_images(vectors, holdout, 1)
        if not similarity.size:
            continue
        closer = similarity[:, 0] > best
        best[closer] = similarity[closer, 0]
        where[closer] = np.stack([np.full(closer.sum(), place), images[closer, 0]], 1)
    hits = best >= np.float32(threshold)
    np.save(out / "hits.npy", np.column_stack([numbers[hits], where[hits]]))
    np.save(out / "similarity.npy", best[hits])
    return {"hits": int(hits.sum())}
