"""Stage retrieve: the nearest seed images of every image that stands for itself.

A map over blocks of numbers. The strategy `threshold` (`select.py`) then keeps an image whose
cosine with at least one seed image reaches the threshold; it needs no new search.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from curate.catalogue.collection import BLOCK, Collection
from curate.neighbours.search import top_k, use_threads
from shared.embedders import Threshold

VERSION = 1


class RetrieveSettings(BaseModel):
    """What counts as similar to the seed."""

    model_config = ConfigDict(extra="forbid")

    strategy: Literal["threshold"] = "threshold"
    threshold: Threshold | None = None
    """Cosine with the nearest seed image from which an image is kept, inclusive. Default: the
    embedder's own."""
    max_images: int | None = Field(None, ge=1)
    """Budget: at most as many are kept, the most similar ones, ties by key."""


def search(
    crawl: Collection,
    representative: Path,
    seed: Collection,
    start: int,
    stop: int,
    k: int,
    threads: int,
    *,
    out: Path,
) -> dict:
    """Write `numbers.npy`, and of each its nearest seed images: int64 and float32 [n, k]."""
    use_threads(threads)
    chosen = np.load(representative / "representative.npy", mmap_mode="r")[start:stop]
    numbers = np.flatnonzero(chosen == np.arange(start, stop)) + start
    images = np.flatnonzero(seed.canonical[:] >= 0)
    similarity, row = top_k(crawl.vectors(numbers), seed.vectors(images), k)
    np.save(out / "numbers.npy", numbers)
    np.save(out / "similarity.npy", similarity)
    np.save(out / "seeds.npy", images[row])
    return {"images": len(numbers)}


def found(folders: list[Path], numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what the searches of all blocks say of images: seen bool [n], and their rows.

    The rows are similarity float32 [n, k] and seed numbers int64 [n, k], nan and -1 where unseen.
    """
    widths = {np.load(folder / "seeds.npy", mmap_mode="r").shape[1] for folder in folders}
    k = max(widths, default=0)
    seen = np.zeros(len(numbers), bool)
    similarity = np.full((len(numbers), k), np.nan, np.float32)
    seeds = np.full((len(numbers), k), -1, np.int64)
    for block in np.unique(numbers // BLOCK):
        where = np.flatnonzero(numbers // BLOCK == block)
        searched = np.load(folders[block] / "numbers.npy")
        row = np.searchsorted(searched, numbers[where])
        row[row == len(searched)] = 0
        hit = searched[row] == numbers[where] if len(searched) else np.zeros(len(where), bool)
        seen[where] = hit
        similarity[where[hit]] = np.load(folders[block] / "similarity.npy", mmap_mode="r")[row[hit]]
        seeds[where[hit]] = np.load(folders[block] / "seeds.npy", mmap_mode="r")[row[hit]]
    return seen, similarity, seeds
