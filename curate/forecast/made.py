"""A made-up crawl and seed of vectors like embeddings, with planted copies and relations.

Synthetic vectors (`clumps.py`) with the facts that an embedded image has; nothing is embedded.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate.catalogue.collection import Catalogued, Collection, PartOutputs
from curate.catalogue.part_files import COLUMNS, FACTS, ROW_GROUP, VALID, VECTORS
from curate.catalogue.write import Judged, catalogue
from curate.filters.quality import QualitySettings
from curate.forecast.clumps import clumps
from curate.stage import Runner, Unit
from shared.datasets.dataset import Part

PART = 10_000
"""Images of a part: a shard of img2dataset."""
THRESHOLD = 0.9
"""Planted copies reach it, and hardly any other pair does."""


@dataclass(frozen=True)
class Made:
    """A crawl and a seed with known relations."""

    crawl: Catalogued
    seed: Catalogued
    copies: np.ndarray
    """int64 [p, 2]: numbers of crawled images that are near-copies."""
    related: np.ndarray
    """int64 [s, 2]: a crawled image, and the seed image that it is a near-copy of."""


def make(runner: Runner, images: int, seeds: int) -> Made:
    """Make a crawl of `images` in which every 20th is in a planted pair, and a seed of it."""
    planted = images // 20 + seeds
    stored, pairs = clumps(images + seeds, planted=planted, threshold=THRESHOLD, dtype=np.float16)
    of_seed = pairs[-seeds:, 1]
    in_crawl = np.ones(len(stored), bool)
    in_crawl[of_seed] = False
    number = np.cumsum(in_crawl) - 1
    order = np.sort(of_seed)
    related = np.stack([number[pairs[-seeds:, 0]], np.searchsorted(order, of_seed)], 1)
    crawl = catalogued(runner, "crawl", stored, np.flatnonzero(in_crawl))
    seed = catalogued(runner, "seed", stored, order)
    return Made(crawl, seed, number[pairs[:-seeds]], related)


def catalogued(
    runner: Runner, name: str, stored: np.ndarray, rows: np.ndarray | slice = slice(None)
) -> Catalogued:
    """Return a dataset with these rows of vectors, whose image number n has the n-th, and made-up facts."""
    work, outputs, parts = runner.work, [], []
    rows = np.arange(len(stored))[rows]
    for at in range(0, len(rows), PART):
        part = f"{at // PART:06d}"
        folder = work / "made" / name / part
        folder.mkdir(parents=True)
        own = stored[rows[at : at + PART]]
        np.save(folder / VECTORS, own)
        np.save(folder / VALID, np.ones(len(own), bool))
        facts = _facts(name, at, len(own))
        pq.write_table(facts, folder / FACTS, row_group_size=ROW_GROUP, compression="zstd")
        place = str(folder.relative_to(work))
        outputs.append(PartOutputs(part, "", place, None, place, False))
        parts.append(Part(part, "tar", "/nowhere", (f"{part}.tar",), (0,), None, "0" * 32, 0))
    with runner.at_work("catalogue"):
        args: tuple[Any, ...] = (outputs, work, Judged(QualitySettings()))
        runner.run(work / "catalogue" / name, catalogue, [Unit("all", args)])
    home = work / "catalogue" / name / "all"
    address = hashlib.sha256(f"{name}{len(rows)}".encode()).hexdigest()[:16]
    return Catalogued(name, parts, Collection(home), address)


def _facts(name: str, start: int, count: int) -> pa.Table:
    sides = np.random.default_rng(start).integers(200, 800, (count, 2), np.int32)
    rows = range(start, start + count)
    values = {
        "name": [f"{start // PART:06d}/{row:09d}" for row in rows],
        "member": [f"{row:09d}.jpg" for row in rows],
        "url": [f"https://example.org/{name}/{row}.jpg" for row in rows],
        "caption": [f"picture {row}" for row in rows],
        "sha256": [hashlib.sha256(f"{name}{row}".encode()).hexdigest() for row in rows],
        "width": sides[:, 0],
        "height": sides[:, 1],
        "format": ["jpeg"] * count,
        "bytes": sides.prod(1, dtype=np.int64) // 8,
        "offset": np.arange(count) * 65_536,
        "problem": [""] * count,
        "contrast": np.full(count, 50, np.float32),
    }
    return pa.table(values, COLUMNS)
