"""The dedup threshold: the lowest at which, in a crawl of this size, enough of the copies are right."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64

from curate.calibration.histograms import Histograms, compare, draw
from curate.calibration.near_pairs import Looked, LookedPairs
from curate.calibration.tail import (
    FEWEST_PAIRS,
    HIGH,
    LOW,
    count_others,
    depth,
    draw_bootstrap,
    false_shares,
    true_shares,
)
from shared.errors import LvdError

FEWEST_COPIES = 0.01
"""Share of images that are taken for copies where fewer are: a crawl without copies allows none."""
FEW_FOUND = 0.1
"""Share of edited copies below which an embedder finds none to speak of."""
_STEPS = 200

Interval = tuple[float, float, float]
"""An estimate, and the ends of its 80 % interval."""


class UnmeasurableError(LvdError):
    """A crawl has too few pairs of different pictures to measure a threshold on."""


@dataclass(frozen=True)
class DedupCalibration:
    """A proposed threshold, and what is to be expected of it in a crawl of `size` images."""

    threshold: float
    drawn_threshold: float
    """Of two drawn pictures, not below that of all others."""
    at_least: float
    """Below it the measurement contradicts that the precision is kept."""
    drawn_at_least: float
    """The same of two drawn pictures."""
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

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, JSON-able."""
        return asdict(self)

    @classmethod
    def restored(cls, saved: dict[str, Any]) -> DedupCalibration:
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
        is_own = self.drawn_threshold > self.threshold
        of_drawn = f", of two drawn pictures {self.drawn_threshold}" if is_own else ""
        edits = ", ".join(f"{name} {share:.0%}" for name, share in self.recall_by_edit.items())
        lines = [
            *draw(self.histograms, self.threshold),
            f"dedup threshold {self.threshold}" + of_drawn,
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
    looked: Looked,
    size: int,
    precision: float,
    edited: Float32[np.ndarray, "n e"],
    edit_names: tuple[str, ...],
    edited_drawn: Bool[np.ndarray, " n"],
    seed: int = 0,
) -> DedupCalibration:
    """Return the lowest thresholds that keep `precision` in a crawl of `size` different images.

    `looked` are nearest pairs of a sample, `edited` the cosines of edited copies to their
    originals, of which some are drawn. A threshold is the lowest at which the upper end of the share
    of images with a false copy is at most 1 - `precision` of the lower end of the share with a true
    one (of `FEWEST_COPIES` where that is more). It is 1 where none below does. Pairs of two drawn
    pictures have one of their own, as charts of one template would else decide about photographs.
    A kind of which too few pairs are different has the other's, or the lowest cosine that was looked
    at of it where that is more, and what it holds there counts like the rest.

    Raises UnmeasurableError where that is so of both.
    """
    kinds = (looked.others, looked.drawn)
    different = [count_others(pairs) for pairs in kinds]
    if max(different) < FEWEST_PAIRS:
        raise UnmeasurableError(
            f"calibration found {round(sum(different))} pairs of different "
            f"pictures and needs {FEWEST_PAIRS}: say --set dedup.threshold=..., declare it with the "
            "embedder, or use a larger crawl"
        )
    share = looked.drawn_images / looked.others.images
    of_others, of_drawn = (
        _choose(pairs, size, precision, part * FEWEST_COPIES, seed)
        for pairs, part in zip(kinds, (1 - share, share), strict=True)
    )
    first = of_others or _adopted(of_drawn, looked.others)
    last = of_drawn or _adopted(of_others, looked.drawn)
    threshold, drawn_threshold = first.threshold, max(first.threshold, last.threshold)
    bars = np.where(edited_drawn, np.float32(drawn_threshold), np.float32(threshold))
    recall = edited >= bars[:, None]
    reached = [
        _shares(pairs, size, bar, seed)
        for pairs, bar in zip(kinds, (threshold, drawn_threshold), strict=True)
    ]
    false, true = (np.sum(of_kinds, axis=0) for of_kinds in zip(*reached, strict=True))
    right = true / np.maximum(true + false, 1e-12)
    return DedupCalibration(
        threshold=threshold,
        drawn_threshold=drawn_threshold,
        at_least=first.at_least,
        drawn_at_least=max(first.at_least, last.at_least),
        precision_asked=precision,
        size=size,
        sampled=looked.others.images,
        looked_at=looked.others.looks + looked.drawn.looks,
        separates=threshold < 1 and float(recall.mean()) >= FEW_FOUND,
        false_per_thousand=_interval(1000 * false),
        precision=_interval(right) if true[0] else None,
        recall=float(recall.mean()),
        recall_by_edit=dict(zip(edit_names, recall.mean(0).tolist(), strict=True)),
        histograms=compare(
            threshold,
            ("edited copies", edited),
            ("nearest pairs of different pictures", _different(looked)),
        ),
    )


def _different(looked: Looked) -> Float32[np.ndarray, " p"]:
    kinds = (looked.others, looked.drawn)
    return np.concatenate([pairs.cosine[~pairs.same] for pairs in kinds])


@dataclass(frozen=True)
class _Choice:
    """What one kind of pairs needs."""

    threshold: float
    at_least: float


def _choose(
    looked: LookedPairs, size: int, precision: float, fewest: float, seed: int
) -> _Choice | None:
    """Return the lowest threshold that keeps `precision`; None of pairs that are too few to tell."""
    if count_others(looked) < FEWEST_PAIRS:
        return None
    thresholds = _grid(looked)
    bootstrap = draw_bootstrap(looked, seed)
    false = false_shares(looked, size, thresholds, bootstrap)
    true = true_shares(looked, size, thresholds, bootstrap)
    high, low = false.quantile(HIGH), false.quantile(LOW)
    kept = high <= (1 - precision) * np.maximum(true.quantile(LOW), fewest)
    possible = low <= (1 - precision) * np.maximum(true.quantile(HIGH), fewest)
    return _Choice(float(thresholds[_lowest(kept)]), float(thresholds[_lowest(possible)]))


def _adopted(choice: _Choice | None, looked: LookedPairs) -> _Choice:
    """Return another kind's choice for pairs of which nobody looked at any below `lowest`."""
    assert choice is not None
    if not len(looked.one):
        return choice
    return _Choice(max(choice.threshold, looked.lowest), choice.at_least)


def _shares(
    looked: LookedPairs, size: int, threshold: float, seed: int
) -> tuple[Float64[np.ndarray, " r"], Float64[np.ndarray, " r"]]:
    """Return the shares of images with a false and with a true copy: estimates, then replicates."""
    bootstrap, at = draw_bootstrap(looked, seed), np.array([threshold])
    found = (of(looked, size, at, bootstrap) for of in (false_shares, true_shares))
    false, true = (np.append(shares.estimate, shares.replicates[:, 0]) for shares in found)
    return false, true


def _interval(shares: Float64[np.ndarray, " r"]) -> Interval:
    low, high = np.quantile(shares[1:], (LOW, HIGH))
    return float(shares[0]), float(low), float(high)


def _grid(looked: LookedPairs) -> Float64[np.ndarray, " t"]:
    """Return thresholds to choose from, rounded up to few digits.

    They go from `looked.lowest` to 1, denser towards 1, and some lie just above different pictures.
    """
    first, last = depth(np.array([looked.lowest, 1.0])).tolist()
    even = 1 - np.exp(-np.linspace(first, last, _STEPS))
    nearest = looked.cosine[~looked.same][:_STEPS]
    above = np.nextafter(nearest, np.float32(2)).astype(np.float64)
    values = np.concatenate([even, above])
    scale = np.where(values < 0.99, 1e4, 1e7)
    return np.unique(np.append(np.minimum(1.0, np.ceil(values * scale) / scale), 1.0))


def _lowest(passes: Bool[np.ndarray, " t"]) -> int:
    """Return the first place from which on all pass; the last one where none does."""
    failing = np.flatnonzero(~passes)
    return min(int(failing[-1]) + 1, len(passes) - 1) if len(failing) else 0
