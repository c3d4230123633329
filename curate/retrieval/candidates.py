"""Which images a seed may retrieve: those that nothing else drops, in the order of their keys.

A strategy speaks of a candidate by its row here, so that ties by row are ties by key.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from curate.catalogue.collection import Collection, Numbers
from curate.dedup.chains import Dropped, load_chains
from curate.dedup.holdout import Held
from curate.retrieval.nearest_seeds import Retrieved
from curate.stage import Runner, Stage, Unit
from shared.storage.arrays import map_array

VERSION = 4


@dataclass(frozen=True)
class Candidates:
    """The candidates of one seed, as `find` leaves them in `folder`, and how many there are.

    All seeds have the same ones, and each its own similarities to them.
    """

    folder: Path
    count: int
    address: str


def find_candidates(
    runner: Runner,
    crawl: Collection,
    groups: Path,
    dropped: Dropped,
    copies: Held,
    retrieved: Retrieved,
) -> Candidates:
    """Find the images that stand for groups and are not `dropped` for a holdout.

    `copies` are those of the images of included seeds, and no candidates.
    """
    addresses = [retrieved.address, dropped.address, copies.address]
    stage = Stage("choose", ["candidates", VERSION], addresses)
    args = (crawl, groups, dropped.folder, list(copies.folders), list(retrieved.folders))
    [result] = runner.run(stage, find, [Unit("candidates", args)])
    return Candidates(runner.folder(stage) / "candidates", result["candidates"], stage.address)


def find(
    crawl: Collection,
    groups: Path,
    dropped: Path | None,
    copies: list[Path],
    nearest: list[Path],
    *,
    out: Path,
) -> dict[str, Any]:
    """Write `numbers.npy` int64, in key order, and `similarity.npy` float32 to the nearest seed.

    `exported.npy` bool says which of them the result to add to holds. A reduce, of about 20 bytes an image beside what is memory-mapped.
    """
    representative = np.load(groups / "representative.npy", mmap_mode="r")[:]
    free = representative == np.arange(len(crawl))
    free[load_chains(dropped).number] = False
    for folder in copies:
        free[np.load(folder / "hits.npy")[:, 0]] = False
    similarity = np.full(len(crawl), -1, np.float32)
    for folder in nearest:
        found = map_array(folder / "similarity.npy")
        if found.shape[1]:
            similarity[map_array(folder / "numbers.npy")] = found[:, 0]
    order = crawl.order[:]
    numbers = order[free[order]]
    np.save(out / "numbers.npy", numbers)
    np.save(out / "similarity.npy", similarity[numbers])
    np.save(out / "exported.npy", np.isin(numbers, crawl.exported[:, 0]))
    return {"candidates": len(numbers)}


def load_candidates(folder: Path) -> tuple[Numbers, Float32[np.ndarray, " n"]]:
    """Return the memory-mapped numbers of the candidates, and their similarity to the seed."""
    numbers: np.ndarray = np.load(folder / "numbers.npy", mmap_mode="r")
    return numbers, np.load(folder / "similarity.npy", mmap_mode="r")


def load_exported(folder: Path) -> Bool[np.ndarray, " n"]:
    """Return which of the candidates the result to add to holds."""
    exported: np.ndarray = np.load(folder / "exported.npy")
    return exported
