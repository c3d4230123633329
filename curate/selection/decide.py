"""Stage select: one decision for every image, and the order in which the kept ones are written.

A reduce over the searches: about 30 bytes an image, and the keys of the kept ones one part at a
time.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64, Shaped

from curate.catalogue.collection import BLOCK, Catalogued, Collection, Numbers
from curate.dedup.holdout import Held
from curate.filters.decisions import CODE, DECISIONS, OPEN
from curate.retrieval.threshold import Retrieved, RetrieveSettings
from curate.stage import Runner, Stage, Unit

VERSION = 3


@dataclass(frozen=True)
class Selected:
    """The decisions, as `select` leaves them in `folder`, and how many there are of each."""

    folder: Path
    decisions: dict[str, int]
    threshold: float
    """From which images are relevant: the one that was given, or the one of the target."""
    target: int | None
    """How many were to be relevant; None without a target."""
    address: str


def decide(
    runner: Runner,
    crawl: Catalogued,
    groups: Path,
    held: Held,
    retrieved: Retrieved,
    threshold: float,
    settings: RetrieveSettings,
    seed: int,
) -> Selected:
    """Decide about every image, and deal the kept ones to shards in an order by `seed`."""
    stage = Stage(
        "select",
        VERSION,
        [crawl.address, retrieved.address, held.address],
        [threshold, settings.model_dump(exclude={"threshold", "embedder"}), seed],
    )
    found = list(held.folders), list(retrieved.folders)
    args = (crawl.collection, groups, *found, threshold, settings, seed)
    with runner.at_work("select"):
        [result] = runner.run(stage, select, [Unit("all", args)])
    return Selected(runner.folder(stage) / "all", **result, address=stage.address)


def select(
    crawl: Collection,
    representative: Path,
    holdout: list[Path],
    retrieved: list[Path],
    threshold: float,
    settings: RetrieveSettings,
    seed: int,
    *,
    out: Path,
) -> dict:
    """Write `decision.npy` int8 by image number, and `order.npy`, the kept images' numbers.

    The order is that of a hash of key and `seed`, so it depends on no other image; `position.npy`
    is an image's place in it, or -1. A target looks at no image that a holdout drops.
    """
    stands_for = np.load(representative / "representative.npy", mmap_mode="r")[:]
    own = np.arange(len(crawl))
    decision = np.array(crawl.decision)
    candidates = _concatenate([np.load(folder / "numbers.npy") for folder in retrieved], np.int64)
    similarity = _concatenate(
        [_best(np.load(folder / "similarity.npy")) for folder in retrieved], np.float32
    )
    decision[candidates] = CODE["kept"]
    decision[(decision == OPEN) & (stands_for >= 0) & (stands_for != own)] = CODE["duplicate"]
    hits = _concatenate([np.load(folder / "hits.npy")[:, 0] for folder in holdout], np.int64)
    touched = np.zeros(len(crawl), bool)
    touched[stands_for[hits]] = True
    decision[(stands_for >= 0) & touched[stands_for]] = CODE["holdout"]
    free = decision[candidates] == CODE["kept"]
    candidates, similarity = candidates[free], similarity[free]
    target = _count(settings.target, len(candidates))
    if target is None:
        relevant = np.flatnonzero(similarity >= np.float32(threshold))
    else:
        relevant = _most_similar(crawl, candidates, similarity)[:target]
        threshold = float(similarity[relevant[-1]]) if len(relevant) else -1.0
    decision[candidates] = CODE["irrelevant"]
    decision[candidates[relevant]] = CODE["kept"]
    if settings.max_images is not None and len(relevant) > settings.max_images:
        candidates, similarity = candidates[relevant], similarity[relevant]
        over = _most_similar(crawl, candidates, similarity)[settings.max_images :]
        decision[candidates[over]] = CODE["over_budget"]
    np.save(out / "decision.npy", decision)
    order = _order(crawl, np.flatnonzero(decision == CODE["kept"]), seed)
    position = np.full(len(crawl), -1, np.int64)
    position[order] = np.arange(len(order))
    np.save(out / "order.npy", order)
    np.save(out / "position.npy", position)
    counts = np.bincount(decision, minlength=len(DECISIONS))
    decisions = dict(zip(DECISIONS, counts.tolist(), strict=True))
    return {"decisions": decisions, "threshold": threshold, "target": target}


def _count(target: float | None, candidates: int) -> int | None:
    """Return how many images a target asks for: a share is rounded, and of one image at least."""
    return max(1, round(target * candidates)) if isinstance(target, float) else target


def _most_similar(
    crawl: Collection, candidates: Numbers, similarity: Float32[np.ndarray, " n"]
) -> Int64[np.ndarray, " n"]:
    """Return places in `candidates`, the most similar first, ties by key."""
    return np.lexsort((crawl.place[candidates], -similarity))


def _best(similarity: Float32[np.ndarray, "n k"]) -> Float32[np.ndarray, " n"]:
    return similarity[:, 0] if similarity.shape[1] else np.full(len(similarity), -1, np.float32)


def _concatenate(
    arrays: list[Shaped[np.ndarray, " _"]], dtype: type[np.generic]
) -> Shaped[np.ndarray, " n"]:
    return np.concatenate([np.empty(0, dtype), *arrays])


def _order(crawl: Collection, numbers: Numbers, seed: int) -> Numbers:
    """Return `numbers` in the order of the blake2 hash of seed and key, ties by number."""
    hashes = np.empty(len(numbers), np.uint64)
    for at in range(0, len(numbers), BLOCK):
        keys = crawl.keys(numbers[at : at + BLOCK])
        hashes[at : at + BLOCK] = [keyed_hash(key, seed) for key in keys]
    return numbers[np.lexsort((numbers, hashes))]


def keyed_hash(key: str, seed: int) -> int:
    """Return 64 bits of blake2b of a key under a seed."""
    digest = hashlib.blake2b(
        key.encode(), digest_size=8, key=str(seed).encode(), person=b"lvd-order"
    ).digest()
    return int.from_bytes(digest, "big")
