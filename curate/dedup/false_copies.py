"""Stage estimate: looks at a sample of the near copies again, by their pixels.

The embedder that found the copies has no say in it. What such a look found itself (`looks.py`) is not
among them, as the same look would be no second opinion. A map over blocks of pairs, and a reduce; the
sample is drawn with 17 bytes an image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from curate.catalogue.collection import Catalogued, Collection
from curate.catalogue.originals import Originals, load_parts, save_parts
from curate.dedup.looks import NOT
from curate.dedup.pictures import decode_pair
from curate.dedup.stage import Deduplicated
from curate.neighbours.search import cosine, unit
from curate.pixels import align, same
from curate.pixels.same import judge
from curate.stage import Runner, Stage, Unit

VERSION = 1
HOW = "pixels after alignment (curate/pixels)"
PAIRS = "pairs.npy"
TOLERATED = 0.01
"""Share of false copies that is looked for with a higher threshold."""
FEWEST = 20
"""Pairs at least that a threshold is proposed by."""

_TOGETHER = 50
_EXAMPLES = 5
_Z = 1.959964  # of a 95% interval

Looked = dict[str, Any]
"""`key`, `representative`, `cosine`, and `verdict`: one of `judge`'s, or `unreadable`."""


class EstimateSettings(BaseModel):
    """How many near copies of a run are looked at again."""

    model_config = ConfigDict(extra="forbid")

    pairs: int = Field(200, ge=0)
    """Pairs of an image and the one that stands for it; 0: none."""
    seed: int = 0


@dataclass(frozen=True)
class FalseCopies:
    """The estimate, JSON-able as `estimate` returns it; None without near copies."""

    found: dict[str, Any] | None
    address: str


def estimate_false_copies(
    runner: Runner,
    crawl: Catalogued,
    copies: Deduplicated,
    settings: EstimateSettings,
    max_pixels: int,
) -> FalseCopies:
    """Estimate how many of the near copies are copies, by a second look at a sample of them.

    An image that cannot be read any more is counted apart. Raises LvdError where the storage fails.
    """
    asked = settings.model_dump()
    stage = Stage("estimate", [VERSION, align.VERSION, same.VERSION], copies.address, asked)
    collection, home = crawl.collection, runner.folder(stage)
    joined = copies.looked.of_images if copies.looked else None
    with runner.at_work("estimate"):
        [drawn] = runner.run(
            stage, sample, [Unit("sample", (collection, copies.groups, joined, settings))]
        )
        if not drawn["pairs"]:
            return FalseCopies(None, stage.address)
        parts = save_parts(crawl.parts, runner.scratch / f"parts-{crawl.address}.json")
        units = []
        for start in range(0, drawn["pairs"], _TOGETHER):
            stop = min(start + _TOGETHER, drawn["pairs"])
            args = (collection, parts, max_pixels, home / "sample", start, stop)
            units.append(Unit(f"look-{start:06d}", args, stop - start))
        looked = runner.run(stage, look, units, note="a second look at copies")
        pairs = [pair for block in looked for pair in block["pairs"]]
    return FalseCopies({"copies": drawn["copies"], **estimate(pairs)}, stage.address)


def sample(
    collection: Collection,
    groups: Path,
    looked: Path | None,
    settings: EstimateSettings,
    *,
    out: Path,
) -> dict[str, int]:
    """Write `pairs.npy`: numbers of near copies and of what stands for them, int64 [pairs, 2].

    `looked` is what `looks.join` wrote of each image: what came there by a look is left out.
    They are a sample without repeats, in the order of the numbers, so that parts are read in turn.
    """
    representative = np.load(groups / "representative.npy", mmap_mode="r")[:]
    canonical = collection.canonical[:]
    members = np.flatnonzero(representative >= 0)
    near = members[canonical[members] != canonical[representative[members]]]
    if looked is not None:
        near = near[np.load(looked, mmap_mode="r")[near] == NOT]
    rng = np.random.default_rng(settings.seed)
    chosen = np.sort(rng.choice(near, min(settings.pairs, len(near)), replace=False))
    np.save(out / PAIRS, np.stack([chosen, representative[chosen]], 1))
    return {"pairs": len(chosen), "copies": len(near)}


def look(
    collection: Collection,
    parts: Path,
    max_pixels: int,
    sampled: Path,
    start: int,
    stop: int,
    *,
    out: Path,
) -> dict[str, Any]:
    """Return what the pixels of the pairs `start` to `stop` say, as `pairs` of `Looked`."""
    pairs = np.load(sampled / PAIRS)[start:stop]
    vectors = [unit(collection.vectors(collection.canonical[side])) for side in pairs.T]
    cosines = cosine(*vectors)
    keys = [collection.keys(side) for side in pairs.T]
    verdicts = []
    with Originals(collection, load_parts(parts), out.parent) as originals:
        for pair in pairs.tolist():
            pictures = decode_pair(originals, pair, max_pixels)
            verdicts.append("unreadable" if pictures is None else judge(*pictures))
    told = zip(*keys, cosines.tolist(), verdicts, strict=True)
    names = ("key", "representative", "cosine", "verdict")
    return {"images": len(pairs), "pairs": [dict(zip(names, each, strict=True)) for each in told]}


def estimate(pairs: Sequence[Looked]) -> dict[str, Any]:
    """Return `precision` of the looked-at pairs, and the ends `low` and `high` of a 95% interval.

    What could not be told counts as half a false copy, and widens the interval (Wilson's): its ends
    take all of it as false, or none. `pairs` counts those that were judged, `false`, `unsure` and
    `unreadable` the others. `threshold` is the lowest one by which few of the pairs look false, or
    None; `examples` are pairs that look false.
    """
    counts = Counter(pair["verdict"] for pair in pairs)
    false, unsure = counts["other"], counts["unsure"]
    judged = counts["same"] + false + unsure
    examples = [pair for pair in pairs if pair["verdict"] == "other"][:_EXAMPLES]
    return {
        "precision": 1 - (false + unsure / 2) / judged if judged else None,
        "low": 1 - wilson(false + unsure, judged)[1],
        "high": 1 - wilson(false, judged)[0],
        "pairs": judged,
        "false": false,
        "unsure": unsure,
        "unreadable": counts["unreadable"],
        "threshold": better_threshold(pairs),
        "examples": [[pair["key"], pair["representative"]] for pair in examples],
        "how": HOW,
    }


def wilson(count: int, of: int) -> tuple[float, float]:
    """Return the ends of Wilson's 95% interval of a share, (0, 1) of nothing."""
    if not of:
        return 0.0, 1.0
    share, square = count / of, _Z**2 / of
    middle = (share + square / 2) / (1 + square)
    half = _Z / (1 + square) * sqrt(share * (1 - share) / of + square / of / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def better_threshold(pairs: Sequence[Looked]) -> float | None:
    """Return the lowest cosine from which at most `TOLERATED` of the pairs look false.

    It is rounded up, and reached by `FEWEST` of the pairs at least; None where there is none.
    """
    doubt = {"same": 0.0, "unsure": 0.5, "other": 1.0}
    judged = sorted(
        ((pair["cosine"], doubt[pair["verdict"]]) for pair in pairs if pair["verdict"] in doubt),
        reverse=True,
    )
    best, false = None, 0.0
    for count, (cosine_, doubtful) in enumerate(judged, 1):
        false += doubtful
        ends = count == len(judged) or judged[count][0] < cosine_
        if ends and count >= FEWEST and false <= TOLERATED * count:
            best = cosine_
    return None if best is None else min(1.0, ceil(best * 10**4) / 10**4)
