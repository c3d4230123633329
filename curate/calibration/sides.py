"""The pairs just above and just below a proposed threshold, by which a person can judge it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float16, Float32, Int64

from curate.calibration.measure import (
    CalibrateSettings,
    edited_units,
    load_edited,
    sample,
    sample_both,
)
from curate.catalogue.collection import Collection
from curate.neighbours.search import top_k
from curate.stage import Runner, Stage, Unit

MOST = 8
"""Pairs on a side."""

Places = Int64[np.ndarray, " p"]
Sides = dict[str, list[dict[str, Any]]]
"""`above` and `below`, the nearest to the threshold first: `cosine`, `key`, and `other`, the key of
a crawled image or of a seed image, or `edit`, the name of what was done to the image."""


def find_dedup_sides(
    runner: Runner,
    stage: Stage,
    crawl: Collection,
    threshold: float,
    settings: CalibrateSettings,
) -> dict[str, Sides]:
    """Return `neighbours`, of crawled images, and `edited`, of images and edited copies of them.

    To be called after `measure_dedup`, with its stage.
    """
    _, rows = sample(crawl, settings)
    folders = [runner.folder(stage) / name for name in edited_units(len(rows))]
    unit = Unit(f"sides-{threshold!r}", (crawl, threshold, settings, folders))
    [found] = runner.run(stage, dedup_sides, [unit])
    return found


def find_retrieve_sides(
    runner: Runner,
    stage: Stage,
    crawl: Collection,
    seed: Collection,
    threshold: float,
    settings: CalibrateSettings,
) -> dict[str, Sides]:
    """Return `neighbours`, of crawled images and the seed images that are nearest to them."""
    unit = Unit(f"sides-{threshold!r}", (crawl, seed, threshold, settings))
    [found] = runner.run(stage, retrieve_sides, [unit])
    return found


def dedup_sides(
    collection: Collection,
    threshold: float,
    settings: CalibrateSettings,
    edited: list[Path],
    *,
    out: Path,
) -> dict[str, Sides]:
    """Return what `find_dedup_sides` does, of the images that `look` and `edit` sampled."""
    numbers, _ = sample(collection, settings)
    one, other, cosines = neighbours(collection.vectors(numbers))
    originals, names, edited_cosines = load_edited(collection, edited)
    places = {
        side: np.divmod(at, len(names)) for side, at in nearest(edited_cosines, threshold).items()
    }
    return {
        "neighbours": {
            side: _keyed(
                collection.keys(numbers[one[at]]), collection.keys(numbers[other[at]]), cosines[at]
            )
            for side, at in nearest(cosines, threshold).items()
        },
        "edited": {
            side: [
                {"key": key, "edit": names[edit], "cosine": float(edited_cosines[row, edit])}
                for key, row, edit in zip(
                    collection.keys(originals[rows]), rows, edits.tolist(), strict=True
                )
            ]
            for side, (rows, edits) in places.items()
        },
    }


def retrieve_sides(
    crawl: Collection,
    seed: Collection,
    threshold: float,
    settings: CalibrateSettings,
    *,
    out: Path,
) -> dict[str, Sides]:
    """Return what `find_retrieve_sides` does, of the images that `retrieve` sampled."""
    seeds, _, crawled = sample_both(crawl, seed, settings)
    cosines, rows = (found[:, 0] for found in top_k(crawl.vectors(crawled), seed.vectors(seeds), 1))
    return {
        "neighbours": {
            side: _keyed(crawl.keys(crawled[at]), seed.keys(seeds[rows[at]]), cosines[at])
            for side, at in nearest(cosines, threshold).items()
        }
    }


def neighbours(
    vectors: Float16[np.ndarray, "m d"],
) -> tuple[Places, Places, Float32[np.ndarray, " p"]]:
    """Return the pairs of stored vectors of which one is the nearest to the other, each once.

    Two rows, the smaller first, and their cosine; sorted by rows. Takes two vectors at least.
    """
    cosines, rows = top_k(vectors, vectors, 2)
    own = np.arange(len(vectors))
    column = (rows[:, 0] == own).astype(int)
    pairs = np.sort(np.stack([own, rows[own, column]], 1), axis=1)
    pairs, first = np.unique(pairs, axis=0, return_index=True)
    return pairs[:, 0], pairs[:, 1], cosines[own, column][first]


def nearest(
    cosines: Float32[np.ndarray, ...], threshold: float, most: int = MOST
) -> dict[str, Places]:
    """Return the places of the `most` cosines nearest to a threshold on each of its sides.

    `above`: those that reach it, as thresholds are inclusive; `below`: the others. The nearest come
    first, ties by place. Places are those of the flattened cosines.
    """
    values = cosines.ravel()
    order = np.lexsort((np.arange(len(values)), np.abs(values - np.float32(threshold))))
    above = values[order] >= np.float32(threshold)
    return {"above": order[above][:most], "below": order[~above][:most]}


def _keyed(
    keys: list[str], others: list[str], cosines: Float32[np.ndarray, " p"]
) -> list[dict[str, Any]]:
    return [
        {"key": key, "other": other, "cosine": cosine}
        for key, other, cosine in zip(keys, others, cosines.tolist(), strict=True)
    ]
