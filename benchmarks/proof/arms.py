"""What each part of the pipeline leaves of the pool: one list of keys an arm."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

ARMS = (
    "random",
    "hash dedup",
    "near dedup",
    "near dedup + retrieve",
    "near dedup + balance",
    "near dedup + retrieve + balance",
    "oracle",
)
HASH_DISTANCE = 4
"""Bits of 64 in which the hashes of two copies may differ."""
BALANCED = 0.75
"""What balance keeps of the images that it chooses among."""


def choose(
    pictures: Mapping[str, bytes], truth: Path, near: Path, retrieved: Path, seed: int
) -> dict[str, list[str]]:
    """Return the keys of each arm, sorted.

    `pictures` are the pool's by key; `near` and `retrieved` are OUT folders of `lvd-curate run`,
    the former with nothing dropped for want of likeness. The random sample is as large as what is
    retrieved. Balance takes as many images of each cluster as there are, up to a limit for all.
    """
    rng = np.random.default_rng(seed)
    deduplicated, clusters = _kept(near)
    relevant, _ = _kept(retrieved)
    both = sorted(set(deduplicated) & set(relevant))
    arms = {
        "random": rng.choice(sorted(pictures), len(relevant), replace=False).tolist(),
        "hash dedup": without_hash_copies(pictures),
        "near dedup": deduplicated,
        "near dedup + retrieve": relevant,
        "near dedup + balance": balanced(
            deduplicated, clusters, round(BALANCED * len(deduplicated)), rng
        ),
        "near dedup + retrieve + balance": balanced(
            both, clusters, round(BALANCED * len(both)), rng
        ),
        "oracle": _originals(truth),
    }
    return {name: sorted(arms[name]) for name in ARMS}


def without_hash_copies(pictures: Mapping[str, bytes]) -> list[str]:
    """Return the keys of pictures whose difference hash is near none of an earlier one's."""
    kept: list[str] = []
    seen: set[str] = set()
    hashes = np.empty(len(pictures), np.uint64)
    for key in sorted(pictures):
        digest = hashlib.sha256(pictures[key]).hexdigest()
        if digest in seen:
            continue
        seen.add(digest)
        own = difference_hash(pictures[key])
        distances = np.bitwise_count(hashes[: len(kept)] ^ own)
        if not (distances <= HASH_DISTANCE).any():
            hashes[len(kept)] = own
            kept.append(key)
    return kept


def difference_hash(data: bytes) -> np.uint64:
    """Return whether each pixel of 8 x 8 grey ones is brighter than its left neighbour, as bits."""
    grey = Image.open(io.BytesIO(data)).convert("L").resize((9, 8), Image.Resampling.BOX)
    levels = np.asarray(grey, np.int16)
    return np.packbits(levels[:, 1:] > levels[:, :-1]).view(np.uint64)[0]


def balanced(
    keys: Sequence[str], clusters: Mapping[str, int], count: int, rng: np.random.Generator
) -> list[str]:
    """Return `count` of the keys, as evenly over their clusters as these allow."""
    members: dict[int, list[str]] = {}
    for key in rng.permutation(sorted(keys)).tolist():
        members.setdefault(clusters[key], []).append(key)
    chosen: list[str] = []
    turn = 0
    while len(chosen) < min(count, len(keys)):
        left = [of[turn] for _, of in sorted(members.items()) if len(of) > turn]
        space = count - len(chosen)
        chosen += left if len(left) <= space else rng.choice(left, space, replace=False).tolist()
        turn += 1
    return chosen


def precision(keys: Sequence[str], truth: Path) -> float:
    """Return the share of keys that are wanted and no copy of another of them."""
    rows = {row["key"]: row for row in _rows(truth)}
    found: set[str] = set()
    for key in keys:
        if rows[key]["kind"] == "wanted":
            found.add(rows[key]["copy_of"] or key)
    return len(found) / max(1, len(keys))


def _kept(out: Path) -> tuple[list[str], dict[str, int]]:
    table = pq.read_table(
        out / "reports" / "images.parquet", columns=["key", "decision", "cluster"]
    )
    rows = table.to_pylist()
    kept = [row["key"] for row in rows if row["decision"] == "kept"]
    return kept, {row["key"]: row["cluster"] for row in rows if row["cluster"] is not None}


def _originals(truth: Path) -> list[str]:
    return [r["key"] for r in _rows(truth) if r["kind"] == "wanted" and not r["copy_of"]]


def _rows(truth: Path) -> list[dict[str, str]]:
    with truth.open(newline="") as file:
        return list(csv.DictReader(file))
