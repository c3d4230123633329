"""The relevance threshold: a seed image should find its own kind among the others."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from curate.calibration.histograms import Histograms, compare, draw
from curate.calibration.same_picture import Thumbnail, same_picture
from curate.calibration.second_look import Thumbnails
from shared.errors import LvdError

FEWEST = 8
"""Calibration on fewer images than this says nothing."""
QUANTILE = 0.1
_MOST_COPIES = 64
_BLOCK = 1024


@dataclass(frozen=True)
class RetrieveCalibration:
    """A proposed threshold, and what is to be expected of it."""

    threshold: float
    recall: float
    """Share of left-out seed images that pass."""
    crawl_share: float
    """Share of the sampled crawl that passes, relevant or not."""
    histograms: Histograms

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, JSON-able."""
        return asdict(self)

    @classmethod
    def restored(cls, saved: dict[str, Any]) -> RetrieveCalibration:
        """Return what `to_dict` made a dict of."""
        return cls(**{**saved, "histograms": Histograms.restored(saved["histograms"])})

    def render(self) -> str:
        """Return both distributions as text, at most 100 columns wide, and what is expected."""
        return "\n".join(
            [
                *draw(self.histograms, self.threshold),
                f"retrieve threshold {self.threshold}",
                f"expected: finds {self.recall:.1%} of seed-like images; {self.crawl_share:.1%} of "
                "the crawl reaches it",
            ]
        )


def calibrate_retrieve(
    seeds: Float32[np.ndarray, "s d"],
    crawl: Float32[np.ndarray, "m d"],
    rows: Int64[np.ndarray, " n"],
    thumbnail_of: Thumbnails,
    quantile: float = QUANTILE,
) -> RetrieveCalibration:
    """Return the relevance threshold: the `quantile` of leave-one-out seed similarities.

    Each seed image of `rows` is taken out and looked up among the others, as a crawled image of
    its kind would be. At the quantile 0.1, nine in ten of such images are found; lower ones are
    ruled by the oddest seed images. Copies among the seeds are passed over (`same_picture`), or
    they would raise the threshold. `thumbnail_of` speaks of rows of `seeds`. Takes unit vectors.

    Raises LvdError when there are too few seed images.
    """
    left_out = nearest_other(seeds[rows], seeds, rows, thumbnail_of)
    left_out = left_out[np.isfinite(left_out)]
    if len(left_out) < FEWEST:
        raise LvdError(
            f"calibration found {len(left_out)} different seed images and needs {FEWEST}: declare "
            "the embedder's thresholds.retrieve, or give more seed images"
        )
    lowest = float(np.quantile(left_out, quantile, method="lower"))
    scale = 10**4 if lowest < 0.99 else 10**7
    threshold = float(np.floor(lowest * scale) / scale)
    crawled = np.concatenate(
        [
            (crawl[at : at + _BLOCK] @ seeds.T).max(1).clip(-1, 1)
            for at in range(0, len(crawl), _BLOCK)
        ]
        or [np.empty(0, np.float32)]
    )
    return RetrieveCalibration(
        threshold=threshold,
        recall=float((left_out >= threshold).mean()),
        crawl_share=float((crawled >= threshold).mean()) if len(crawled) else 0.0,
        histograms=compare(
            threshold, ("seeds to other seeds", left_out), ("crawl to seeds", crawled)
        ),
    )


def nearest_other(
    queries: Float32[np.ndarray, "n d"],
    vectors: Float32[np.ndarray, "m d"],
    rows: Int64[np.ndarray, " n"],
    thumbnail_of: Thumbnails,
) -> Float64[np.ndarray, " n"]:
    """Return each unit query's cosine to its nearest neighbour that shows another picture.

    `rows` is where the queries themselves stand in `vectors`. NaN where the `_MOST_COPIES` nearest
    are all copies, or there is no other. Thumbnails are asked for only as far as they are needed.
    """
    known: dict[int, Thumbnail | None] = {}

    def look_up(row: int) -> Thumbnail | None:
        if row not in known:
            known[row] = thumbnail_of(row)
        return known[row]

    found = np.full(len(queries), np.nan)
    for start in range(0, len(queries), _BLOCK):
        cosines = (queries[start : start + _BLOCK] @ vectors.T).clip(-1, 1)
        for at, near in enumerate(np.argsort(-cosines, axis=1, kind="stable"), start):
            own = int(rows[at])
            for row in near[: _MOST_COPIES + 1].tolist():
                if row == own or _are_copies(look_up(own), look_up(row)):
                    continue
                found[at] = cosines[at - start, row]
                break
    return found


def _are_copies(one: Thumbnail | None, other: Thumbnail | None) -> bool:
    return one is not None and other is not None and same_picture(one, other)
