"""Two distributions of cosines side by side, as numbers and as text."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

_QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
_BINS = 20
_WIDTH = 33


@dataclass(frozen=True)
class Distribution:
    """Cosines, summed up for reading: their number, quantiles, and counts in the shared bins."""

    name: str
    count: int
    quantiles: dict[str, float]
    histogram: tuple[int, ...]


@dataclass(frozen=True)
class Histograms:
    """What should reach a threshold, and what should not, in the same bins."""

    positives: Distribution
    negatives: Distribution
    bins: tuple[float, ...]

    @classmethod
    def restored(cls, saved: dict[str, Any]) -> Histograms:
        """Return what `asdict` made a dict of."""
        positives, negatives = (
            Distribution(**{**saved[side], "histogram": tuple(saved[side]["histogram"])})
            for side in ("positives", "negatives")
        )
        return cls(positives, negatives, tuple(saved["bins"]))


def compare(
    threshold: float,
    positives: tuple[str, Float[np.ndarray, " ..."]],
    negatives: tuple[str, Float[np.ndarray, " ..."]],
) -> Histograms:
    """Return the named cosines in bins around the threshold; the lowest twentieth is in the first."""
    both = np.concatenate([values.ravel() for _, values in (positives, negatives)])
    low, high = float(np.quantile(both, 0.05)), float(both.max())
    low, high = min(low, threshold), max(high, threshold)
    bins = np.linspace(low if high - low > 1e-6 else high - 1e-6, high, _BINS + 1)
    return Histograms(
        _distribution(*positives, bins), _distribution(*negatives, bins), tuple(bins.tolist())
    )


def draw(histograms: Histograms, threshold: float) -> list[str]:
    """Return lines of at most 100 columns; the threshold's bin is marked."""
    sides, bins = (histograms.positives, histograms.negatives), histograms.bins
    lines = [f"{'cosine':>15}   {sides[0].name:<{_WIDTH + 6}}   {sides[1].name}"]
    marked = min(bisect_right(bins, threshold), len(bins) - 1) - 1
    for at in reversed(range(len(bins) - 1)):
        cells = " |".join(_bar(side, at) for side in sides)
        mark = ">" if at == marked else " "
        lines.append(f"{bins[at]:7.4f} {bins[at + 1]:7.4f}{mark} |{cells}")
    return lines


def _distribution(
    name: str, cosines: Float[np.ndarray, " ..."], bins: Float64[np.ndarray, " edges"]
) -> Distribution:
    values = np.asarray(cosines, np.float64).ravel()
    counts, _ = np.histogram(values.clip(bins[0], bins[-1]), bins)
    quantiles = np.quantile(values, _QUANTILES) if len(values) else np.zeros(len(_QUANTILES))
    return Distribution(
        name=name,
        count=len(values),
        quantiles={f"{q:g}": float(v) for q, v in zip(_QUANTILES, quantiles, strict=True)},
        histogram=tuple(counts.tolist()),
    )


def _bar(distribution: Distribution, at: int) -> str:
    share = distribution.histogram[at] / max(1, distribution.count)
    most = max(distribution.histogram) / max(1, distribution.count)
    return f"{'#' * round(_WIDTH * share / max(most, 1e-9)):<{_WIDTH}} {share:5.1%}"
