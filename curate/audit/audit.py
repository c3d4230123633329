"""Copies between two datasets: each image's nearest in the other one, if that is a copy.

What is found is what `dedup/holdout.py` finds of a crawl and an evaluation set, in both directions,
and what has the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64

from curate.audit.request import AuditRequest
from curate.calibration.measure import VERSIONS, CalibrateSettings, measure_dedup
from curate.calibration.thresholds import Threshold
from curate.catalogue.collection import Catalogued, Collection
from curate.catalogue.originals import save_parts
from curate.dedup.holdout import find_copies
from curate.dedup.near import DedupSettings
from curate.embedding.stage import catalogued, embed
from curate.stage import Runner, Stage, Unit
from shared.errors import LvdError

VERSION = 1
PAIRS = "pairs.npz"
TABLE = pa.schema(
    [
        ("key_a", pa.string()),
        ("key_b", pa.string()),
        ("similarity", pa.float32()),
        ("method", pa.string()),
    ]
)
"""`method` is `exact` for the same bytes, whose similarity is 1, else `near`."""

Pairs = Int64[np.ndarray, "p 2"]


@dataclass(frozen=True)
class Audited:
    """What an audit found: rows of `TABLE`, by `key_a` and `key_b`."""

    datasets: tuple[Catalogued, Catalogued]
    threshold: Threshold
    pairs: pa.Table


def audit(runner: Runner, request: AuditRequest) -> Audited:
    """Embed what is not embedded yet of two datasets, and find the copies between them.

    Every image that has a copy in the other dataset stands in a pair with the one of the same bytes
    whose key is first, else with the most similar one.
    """
    settings, threads = request.embedder.settings, request.engine.threads
    with runner.at_work("embed"):
        first, second = (
            catalogued(runner, embed(runner, x.role, x.name, x.parts, request.embed), settings)
            for x in request.datasets
        )
    threshold = request.threshold or _measured(runner, request, first, second)
    with runner.at_work("audit"):
        forth = find_copies(runner, first, [second], threshold.value, threads)
        back = find_copies(runner, second, [first], threshold.value, threads)
        stage = Stage("audit", VERSION, [forth.address, back.address])
        args = (first.collection, second.collection, list(forth.folders), list(back.folders))
        runner.run(stage, pair, [Unit("pairs", args)])
    found = _table(first.collection, second.collection, runner.folder(stage) / "pairs")
    return Audited((first, second), threshold, found)


def _measured(
    runner: Runner, request: AuditRequest, first: Catalogued, second: Catalogued
) -> Threshold:
    """Measure the threshold on the larger dataset, as a run does."""
    larger = max(first, second, key=lambda data: len(data.collection.usable))
    asked, precision = CalibrateSettings(), DedupSettings().precision
    stage = Stage("calibrate", VERSIONS, [larger.address], asked.model_dump())
    with runner.at_work("calibrate"):
        parts = save_parts(larger.parts, runner.scratch / f"parts-{larger.address}.json")
        embedder = (request.embedder.settings, request.engine.threads)
        limits = (request.embed.settings.max_pixels, precision, asked)
        try:
            found = measure_dedup(runner, stage, embedder, larger.collection, parts, *limits)
        except LvdError as error:
            said = str(error).replace("--set dedup.threshold=...", "--threshold ...")
            raise LvdError(said) from error
    return Threshold(found["threshold"], "calibrated")


def pair(
    first: Collection, second: Collection, forth: list[Path], back: list[Path], *, out: Path
) -> dict[str, int]:
    """Write `pairs.npz`: `pairs` int64 [p, 2], numbers in both, `similarity` and `exact` [p].

    `forth` are the copies of images of `second` in `first`, `back` the reverse. A reduce.
    """
    same, near = same_bytes(first, second), nearest_copies(forth)
    same_back, near_back = same_bytes(second, first), nearest_copies(back)
    near, near_back = (
        (pairs[~np.isin(pairs[:, 0], known)], similarity[~np.isin(pairs[:, 0], known)])
        for (pairs, similarity), known in ((near, same[:, 0]), (near_back, same_back[:, 0]))
    )
    exact = np.concatenate([same, same_back[:, ::-1]])
    pairs = np.concatenate([exact, near[0], near_back[0][:, ::-1]])
    similarity = np.concatenate([np.ones(len(exact), np.float32), near[1], near_back[1]])
    pairs, rows = np.unique(pairs, axis=0, return_index=True)
    order = np.lexsort((second.place[pairs[:, 1]], first.place[pairs[:, 0]]))
    rows = rows[order]
    np.savez(out / PAIRS, pairs=pairs[order], similarity=similarity[rows], exact=rows < len(exact))
    return {"pairs": len(pairs), "exact": int((rows < len(exact)).sum())}


def same_bytes(own: Collection, other: Collection) -> Pairs:
    """Return the images of `own` that have the bytes of one of `other`, with the first by key."""
    order = other.order[:]
    digests = other.digests()[order]
    known, first = np.unique(digests, return_index=True)
    known, first = known[known != b""], first[known != b""]
    mine = own.digests()
    at = np.minimum(np.searchsorted(known, mine), max(0, len(known) - 1))
    has = known[at] == mine if len(known) else np.zeros(len(mine), bool)
    return np.column_stack([np.flatnonzero(has), order[first[at[has]]]])


def nearest_copies(folders: list[Path]) -> tuple[Pairs, Float32[np.ndarray, " p"]]:
    """Return the hits of all blocks, as numbers in both datasets, and their cosines."""
    hits = [np.load(folder / "hits.npy")[:, [0, 2]] for folder in folders]
    similarity = [np.load(folder / "similarity.npy") for folder in folders]
    none = np.empty((0, 2), np.int64), np.empty(0, np.float32)
    return np.concatenate([none[0], *hits]), np.concatenate([none[1], *similarity])


def _table(first: Collection, second: Collection, folder: Path) -> pa.Table:
    with np.load(folder / PAIRS) as found:
        pairs, similarity, exact = (found[name] for name in ("pairs", "similarity", "exact"))
    methods = np.where(exact, "exact", "near").tolist()
    keys = first.keys(pairs[:, 0]), second.keys(pairs[:, 1])
    arrays = [pa.array(keys[0], pa.string()), pa.array(keys[1], pa.string())]
    return pa.table([*arrays, pa.array(similarity), pa.array(methods, pa.string())], schema=TABLE)
