"""Stage select: one decision for every image, and the order in which the kept ones are written.

A reduce over the searches: about 30 bytes an image, and the keys of the kept ones one part at a
time.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int8, Int64, Shaped

from curate.catalogue.collection import BLOCK, Catalogued, Collection, Numbers
from curate.dedup.holdout import Held
from curate.filters.decisions import CODE, DECISIONS, OPEN
from curate.retrieval.threshold import Retrieved, RetrieveSettings
from curate.stage import Runner, Stage, Unit

VERSION = 2


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
    return Selected(runner.folder(stage) / "all", result["decisions"], stage.address)


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
    is an image's place in it, or -1.
    """
    stands_for = np.load(representative / "representative.npy", mmap_mode="r")[:]
    own = np.arange(len(crawl))
    decision = np.array(crawl.decision)
    candidates = _concatenate([np.load(folder / "numbers.npy") for folder in retrieved], np.int64)
    similarity = _concatenate(
        [_best(np.load(folder / "similarity.npy")) for folder in retrieved], np.float32
    )
    relevant = similarity >= np.float32(threshold)
    decision[candidates] = np.where(relevant, CODE["kept"], CODE["irrelevant"])
    decision[(decision == OPEN) & (stands_for >= 0) & (stands_for != own)] = CODE["duplicate"]
    hits = _concatenate([np.load(folder / "hits.npy")[:, 0] for folder in holdout], np.int64)
    touched = np.zeros(len(crawl), bool)
    touched[stands_for[hits]] = True
    decision[(stands_for >= 0) & touched[stands_for]] = CODE["holdout"]
    if settings.max_images is not None:
        _apply_budget(decision, candidates, similarity, crawl, settings.max_images)
    np.save(out / "decision.npy", decision)
    order = _order(crawl, np.flatnonzero(decision == CODE["kept"]), seed)
    position = np.full(len(crawl), -1, np.int64)
    position[order] = np.arange(len(order))
    np.save(out / "order.npy", order)
    np.save(out / "position.npy", position)
    counts = np.bincount(decision, minlength=len(DECISIONS))
    return {"decisions": dict(zip(DECISIONS, counts.tolist(), strict=True))}


def _best(similarity: Float32[np.ndarray, "n k"]) -> Float32[np.ndarray, " n"]:
    return similarity[:, 0] if similarity.shape[1] else np.full(len(similarity), -1, np.float32)


def _concatenate(
    arrays: list[Shaped[np.ndarray, " _"]], dtype: type[np.generic]
) -> Shaped[np.ndarray, " n"]:
    return np.concatenate([np.empty(0, dtype), *arrays])


def _apply_budget(
    decision: Int8[np.ndarray, " n"],
    candidates: Int64[np.ndarray, " c"],
    similarity: Float32[np.ndarray, " c"],
    crawl: Collection,
    most: int,
) -> None:
    kept = decision[candidates] == CODE["kept"]
    if kept.sum() <= most:
        return
    numbers, similarity = candidates[kept], similarity[kept]
    decision[numbers[np.lexsort((crawl.place[numbers], -similarity))[most:]]] = CODE["over_budget"]


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
