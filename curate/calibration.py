"""Stage calibrate: samples the crawl and the seed, and measures the embedder's thresholds on them.

The dedup threshold depends on the crawl alone, so that runs with other seeds share its groups.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from curate.calibrate import (
    FEWEST,
    Calibration,
    calibrate_dedup,
    calibrate_retrieve,
    edits,
    render,
    thumbnail,
)
from curate.collection import Collection
from curate.originals import Originals, load_parts
from curate.search import unit
from shared.embedders import Embedder
from shared.errors import LvdError
from shared.images import ImageError, decode

VERSION = 1


class CalibrateSettings(BaseModel):
    """How much is measured where a threshold is `auto`."""

    model_config = ConfigDict(extra="forbid")

    originals: int = Field(300, ge=FEWEST)
    """Images that are edited and embedded again; seed images that are looked up."""
    crawl_sample: int = Field(20_000, ge=FEWEST)
    """Images among which non-copies are looked for."""
    parts: int = Field(64, ge=1)
    """At most as many parts are sampled."""
    seed: int = 0


def dedup(
    embedder: Embedder,
    collection: Collection,
    parts: Path,
    max_pixels: int,
    settings: CalibrateSettings,
    *,
    out: Path,
) -> dict:
    """Return the calibration of the dedup threshold: edited copies against nearest non-copies."""
    rng = np.random.default_rng(settings.seed)
    numbers = _sample(collection, settings.crawl_sample, settings.parts, rng)
    _refuse_few(len(numbers), "images of the crawl", "dedup")
    rows = np.sort(rng.choice(len(numbers), min(settings.originals, len(numbers)), replace=False))
    crawl = unit(collection.vectors(numbers))
    chosen, edited, names = [], [], ()
    with Originals(collection, load_parts(parts), out.parent) as originals:
        for row in rows:
            picture = _decoded(originals, int(numbers[row]), max_pixels)
            if picture is not None:
                copies = edits(picture, np.random.default_rng([settings.seed, int(numbers[row])]))
                names = tuple(copies)
                edited.append(embedder.embed([embedder.prepare(copy) for copy in copies.values()]))
                chosen.append(row)
        calibration = calibrate_dedup(
            crawl[chosen],
            np.stack(edited),
            crawl,
            np.array(chosen),
            _thumbnails(originals, numbers, max_pixels),
            names,
        )
    return calibration.to_dict()


def retrieve(
    crawl: Collection,
    seed: Collection,
    parts: Path,
    max_pixels: int,
    settings: CalibrateSettings,
    *,
    out: Path,
) -> dict:
    """Return the calibration of the relevance threshold: leave-one-out seed similarities.

    `parts` are those of the seed.
    """
    rng = np.random.default_rng(settings.seed)
    seeds = _sample(seed, settings.crawl_sample, settings.parts, rng)
    _refuse_few(len(seeds), "images of the seed", "retrieve")
    rows = np.sort(rng.choice(len(seeds), min(settings.originals, len(seeds)), replace=False))
    crawled = _sample(crawl, settings.crawl_sample, settings.parts, rng)
    with Originals(seed, load_parts(parts), out.parent) as originals:
        calibration = calibrate_retrieve(
            unit(seed.vectors(seeds)),
            unit(crawl.vectors(crawled)),
            rows,
            _thumbnails(originals, seeds, max_pixels),
        )
    return calibration.to_dict()


def report(measured: dict[str, dict]) -> str:
    """Return both calibrations as text; the last line can be pasted behind `lvd-curate run`."""
    lines = []
    for name, calibration in measured.items():
        lines += [f"{name}.threshold", render(Calibration.from_dict(calibration)), ""]
    sets = [f"--set {name}.threshold={found['threshold']}" for name, found in measured.items()]
    return "\n".join([*lines, " ".join(sets)])


def _sample(
    collection: Collection, size: int, most_parts: int, rng: np.random.Generator
) -> np.ndarray:
    """Return numbers of distinct usable images of a few parts, in order."""
    usable = collection.usable
    homes = collection.part[usable]
    named = np.unique(homes)
    if len(named) > most_parts:
        usable = usable[np.isin(homes, rng.choice(named, most_parts, replace=False))]
    return np.sort(rng.choice(usable, min(size, len(usable)), replace=False))


def _refuse_few(count: int, what: str, stage: str) -> None:
    if count < FEWEST:
        raise LvdError(
            f"{count} {what} are too few to calibrate on (it takes {FEWEST}): "
            f"say --set {stage}.threshold=..., or declare it with the embedder"
        )


def _decoded(originals: Originals, number: int, max_pixels: int):
    data = originals.read(number)
    try:
        return None if data is None else decode(data, max_pixels=max_pixels)
    except ImageError:
        return None


def _thumbnails(
    originals: Originals, numbers: np.ndarray, max_pixels: int
) -> Callable[[int], np.ndarray | None]:
    def of(row: int) -> np.ndarray | None:
        picture = _decoded(originals, int(numbers[row]), max_pixels)
        return None if picture is None else thumbnail(picture)

    return of
