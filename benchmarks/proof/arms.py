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
ALL, BALANCED = "retrieve.threshold=-1", "balance.target=0.75"
RUNS = {
    "near dedup": (ALL,),
    "near dedup + retrieve": (),
    "near dedup + balance": (ALL, BALANCED),
    "near dedup + retrieve + balance": (BALANCED,),
}
"""The settings of the arms that are what a run of `lvd-curate` keeps."""
HASH_DISTANCE = 4
"""Bits of 64 in which the hashes of two copies may differ."""


def choose(
    pictures: Mapping[str, bytes], truth: Path, runs: Mapping[str, Path], seed: int
) -> dict[str, list[str]]:
    """Return the keys of each arm, sorted.

    `pictures` are the pool's by key; `runs` are the OUT folders of the arms of `RUNS`. The random
    sample is as large as what is retrieved.
    """
    rng = np.random.default_rng(seed)
    kept = {name: _kept(out) for name, out in runs.items()}
    some = rng.choice(sorted(pictures), len(kept["near dedup + retrieve"]), replace=False)
    arms = {
        **kept,
        "random": some.tolist(),
        "hash dedup": without_hash_copies(pictures),
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


def precision(keys: Sequence[str], truth: Path) -> float:
    """Return the share of keys that are wanted and no copy of another of them."""
    rows = {row["key"]: row for row in _rows(truth)}
    found: set[str] = set()
    for key in keys:
        if rows[key]["kind"] == "wanted":
            found.add(rows[key]["copy_of"] or key)
    return len(found) / max(1, len(keys))


def _kept(out: Path) -> list[str]:
    table = pq.read_table(out / "reports" / "images.parquet", columns=["key", "decision"])
    return [row["key"] for row in table.to_pylist() if row["decision"] == "kept"]


def _originals(truth: Path) -> list[str]:
    return [r["key"] for r in _rows(truth) if r["kind"] == "wanted" and not r["copy_of"]]


def _rows(truth: Path) -> list[dict[str, str]]:
    with truth.open(newline="") as file:
        return list(csv.DictReader(file))
