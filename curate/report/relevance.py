"""Stage report, what would be kept: whether images that are copies now would be relevant if they stood alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from curate.catalogue.collection import Collection
from curate.dedup.groups import COVERED
from curate.filters.decisions import CODE
from curate.neighbours.in_dataset import nearest_images
from curate.neighbours.search import use_threads

RELEVANT = "relevant.npy"


@dataclass(frozen=True)
class Relevance:
    """By which an image that stands for itself is kept: its cosine with an image of any of the seeds."""

    crawl: Collection
    """As the embedder for meaning sees it."""
    seeds: tuple[tuple[Collection, float], ...]
    """Each with the threshold of its own, inclusive."""


def find_relevant(
    relevance: Relevance,
    selected: Path,
    status: Path,
    threads: int,
    start: int,
    stop: int,
    *,
    out: Path,
) -> dict[str, int]:
    """Write bool `relevant.npy` of the images `start` to `stop`: whether one would be kept that stands alone.

    Of those that stand alone it is the decision in `selected`, which `relevance` alone has made;
    copies are compared with the seeds, but for those that `status`, int8 by image, calls `COVERED`.
    """
    use_threads(threads)
    decision = np.load(selected / "decision.npy", mmap_mode="r")[start:stop]
    relevant: Bool[np.ndarray, " n"] = decision == CODE["kept"]
    takes_part = np.load(status, mmap_mode="r")[start:stop] != COVERED
    asked = np.flatnonzero((decision == CODE["duplicate"]) & takes_part)
    vectors = relevance.crawl.vectors(asked + start)
    for seed, threshold in relevance.seeds:
        similarity, _ = nearest_images(vectors, seed, 1)
        relevant[asked] |= similarity[:, 0] >= np.float32(threshold)
    np.save(out / RELEVANT, relevant)
    return {"asked": len(asked)}
