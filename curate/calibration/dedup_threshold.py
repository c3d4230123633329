"""The dedup threshold: the lowest at which, in a crawl of this size, enough of the copies are right."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64

from curate.calibration.histograms import Histograms, compare, draw
from curate.calibration.near_pairs import LookedPairs
from curate.calibration.tail import HIGH, LOW, depth, draw_bootstrap, false_shares, true_shares
from shared.errors import LvdError

FEWEST_PAIRS = 5
"""Pairs of different pictures without which there is no tail."""
FEWEST_COPIES = 0.01
"""Share of images that are taken for copies where fewer are: a crawl without copies allows none."""
FEW_FOUND = 0.1
"""Share of edited copies below which an embedder finds none to speak of."""
_STEPS = 400

Interval = tuple[float, float, float]
"""An estimate, and the ends of its 80 % interval."""


@dataclass(frozen=True)
class DedupCalibration:
    """A proposed threshold, and what is to be expected of it in a crawl of `size` images."""

    threshold: float
    at_least: float
    """Below it the measurement contradicts that the precision is kept."""
    precision_asked: float
    size: int
    """Different images of the crawl."""
    sampled: int
    looked_at: int
    """Pairs whose pixels were looked at."""
    separates: bool
    """False where no threshold keeps the precision and finds edited copies."""
    false_per_thousand: Interval
    """Images, of 1,000, that have a false copy."""
    precision: Interval | None
    """Of what is called copies. None where the sample holds no copy."""
    recall: float
    """Share of edited copies that pass."""
    recall_by_edit: dict[str, float]
    histograms: Histograms

    def to_dict(self) -> dict:
        """Return all fields, JSON-able."""
        return asdict(self)

    @classmethod
    def restored(cls, saved: dict) -> DedupCalibration:
        """Return what `to_dict` made a dict of, whose tuples JSON made lists of."""
        read: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in saved.items()
        }
        return cls(**{**read, "histograms": Histograms.restored(saved["histograms"])})

    def render(self) -> str:
        """Return both distributions as text, at most 100 columns wide, and what is expected."""
        false, low, high = self.false_per_thousand
        if self.precision is None:
            right = "the sample holds no copies"
        else:
            right = "{:.1%} of copies are right ({:.1%} to {:.1%})".format(*self.precision)
        edits = ", ".join(f"{name} {share:.0%}" for name, share in self.recall_by_edit.items())
        lines = [
            *draw(self.histograms, self.threshold),
            f"dedup threshold {self.threshold}",
            f"expected among {self.size:,} images, by {self.sampled:,} of them and a look at "
            f"{self.looked_at:,} pairs:",
            f"false copies of {false:.2g} in 1,000 images ({low:.2g} to {high:.2g}); {right}",
            f"finds {self.recall:.1%} of edited copies",
            *textwrap.wrap(f"by edit: {edits}", 100),
        ]
        if not self.separates:
            lines.append(
                f"no threshold keeps precision {self.precision_asked} and finds edited copies with "
                "this embedder"
            )
        return "\n".join(lines)


def calibrate_dedup(
    looked: LookedPairs,
    size: int,
    precision: float,
    edited: Float32[np.ndarray, "n e"],
    edit_names: tuple[str, ...],
    seed: int = 0,
) -> DedupCalibration:
    """Return the lowest threshold that keeps `precision` in a crawl of `size` different images.

    `looked` are nearest pairs of a sample, `edited` the cosines of edited copies to their
    originals. The threshold is the lowest at which the upper end of the share of images with a
    false copy is at most 1 - `precision` of the lower end of the share with a true one (of
    `FEWEST_COPIES` where that is more). It is 1 where none below does.

    Raises LvdError where there are too few pairs of different pictures.
    """
    if (different := int((~looked.same).sum())) < FEWEST_PAIRS:
        raise LvdError(
            f"calibration found {different} pairs of different pictures and needs {FEWEST_PAIRS}: "
            "declare the embedder's thresholds.dedup, or use a larger crawl"
        )
    thresholds = _grid(looked)
    bootstrap = draw_bootstrap(looked, seed)
    false = false_shares(looked, size, thresholds, bootstrap)
    true = true_shares(looked, size, thresholds, bootstrap)
    high, low = false.quantile(HIGH), false.quantile(LOW)
    kept = high <= (1 - precision) * np.maximum(true.quantile(LOW), FEWEST_COPIES)
    possible = low <= (1 - precision) * np.maximum(true.quantile(HIGH), FEWEST_COPIES)
    chosen = _lowest(kept)
    threshold = float(thresholds[chosen])
    recall = edited >= np.float32(threshold)
    right = true.replicates / np.maximum(true.replicates + false.replicates, 1e-12)
    share = true.estimate[chosen]
    return DedupCalibration(
        threshold=threshold,
        at_least=float(thresholds[_lowest(possible)]),
        precision_asked=precision,
        size=size,
        sampled=looked.images,
        looked_at=len(looked.one),
        separates=threshold < 1 and float(recall.mean()) >= FEW_FOUND,
        false_per_thousand=_interval(
            1000 * false.estimate[chosen], 1000 * false.replicates[:, chosen]
        ),
        precision=_interval(share / (share + false.estimate[chosen]), right[:, chosen])
        if share
        else None,
        recall=float(recall.mean()),
        recall_by_edit=dict(zip(edit_names, recall.mean(0).tolist(), strict=True)),
        histograms=compare(
            threshold,
            ("edited copies", edited),
            ("nearest pairs of different pictures", looked.cosine[~looked.same]),
        ),
    )


def _interval(estimate: float, replicates: Float64[np.ndarray, " b"]) -> Interval:
    low, high = np.quantile(replicates, (LOW, HIGH))
    return float(estimate), float(low), float(high)


def _grid(looked: LookedPairs) -> Float64[np.ndarray, " t"]:
    """Return thresholds to choose from, rounded up to few digits.

    They go from `looked.lowest` to 1, denser towards 1, and some lie just above different pictures.
    """
    first, last = depth(np.array([looked.lowest, 1.0])).tolist()
    even = 1 - np.exp(-np.linspace(first, last, _STEPS))
    above = np.nextafter(looked.cosine[~looked.same], np.float32(2)).astype(np.float64)
    values = np.concatenate([even, above])
    scale = np.where(values < 0.99, 1e4, 1e7)
    return np.unique(np.append(np.minimum(1.0, np.ceil(values * scale) / scale), 1.0))


def _lowest(passes: Bool[np.ndarray, " t"]) -> int:
    """Return the first place from which on all pass; the last one where none does."""
    failing = np.flatnonzero(~passes)
    return min(int(failing[-1]) + 1, len(passes) - 1) if len(failing) else 0
