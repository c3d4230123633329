"""The pairs just above and just below a proposed threshold, by which a person can judge it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from curate.calibration.measure import (
    CalibrateSettings,
    edited_units,
    load_edited,
    load_looked,
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
    folder = runner.folder(stage)
    made = (folder / "look", [folder / name for name in edited_units(len(rows))])
    unit = Unit(f"sides-{threshold!r}", (crawl, threshold, settings, *made))
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
    looked: Path,
    edited: list[Path],
    *,
    out: Path,
) -> dict[str, Sides]:
    """Return what `find_dedup_sides` does, of the pairs that `look` and `edit` made."""
    numbers, _ = sample(collection, settings)
    pairs = load_looked(looked).others
    originals, names, edited_cosines = load_edited(collection, edited)
    places = {
        side: np.divmod(at, len(names)) for side, at in nearest(edited_cosines, threshold).items()
    }
    return {
        "neighbours": {
            side: _keyed(
                collection.keys(numbers[pairs.one[at]]),
                collection.keys(numbers[pairs.other[at]]),
                pairs.cosine[at],
            )
            for side, at in nearest(pairs.cosine, threshold).items()
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


def nearest(
    cosines: Float32[np.ndarray, " ..."], threshold: float, most: int = MOST
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
