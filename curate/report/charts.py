"""The charts of a report, as SVG that takes its colours from the page: similarities, sizes of clusters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import duckdb
import numpy as np
from jaxtyping import Int64
from markupsafe import Markup

from curate.filters.decisions import DECISIONS
from curate.report.tables import rows
from shared.pages.charts import NARROW, WIDE, Palette, draw_chart, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 60
_COLOURS = Palette(DECISIONS)


@dataclass(frozen=True)
class Chart:
    """A chart twice, for a wide page and a narrow one, and where its axis of similarities ends."""

    wide: Markup
    narrow: Markup
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True)
class Bin:
    """The number of images of one decision with a similarity in [left, left + width)."""

    left: float
    width: float
    decision: str
    images: int


def similarity_bins(tables: duckdb.DuckDBPyConnection, threshold: float | None) -> list[Bin]:
    """Return the histogram of `seed_similarity`; the threshold, if any, is a border of bins."""
    return _bins(
        tables,
        "SELECT seed_similarity AS similarity, decision FROM images"
        " WHERE seed_similarity IS NOT NULL",
        threshold,
    )


def pair_bins(tables: duckdb.DuckDBPyConnection, threshold: float | None) -> list[Bin]:
    """Return the histogram of the pairs: those that reach the threshold as duplicates, others as kept."""
    reached = "TRUE" if threshold is None else f"similarity >= {threshold!r}::FLOAT"
    return _bins(
        tables,
        f"SELECT similarity, CASE WHEN {reached} THEN 'duplicate' ELSE 'kept' END AS decision"
        " FROM pairs",
        threshold,
    )


def histogram(name: str, bins: list[Bin], label: str, unit: str, *, log: bool = False) -> Chart:
    """Return a stacked histogram of one of `name`, in `unit`s. `bins` is not empty.

    A `log` scale is for bins that do not share a place: it would distort what is stacked on others.
    """
    lefts = sorted({one.left for one in bins})
    width = bins[0].width
    low, high = lefts[0], lefts[-1] + width
    pad = 0.02 * (high - low)

    def draw(axes: Axes) -> None:
        totals = np.zeros(len(lefts), int)
        for decision in DECISIONS:
            counts = {one.left: one.images for one in bins if one.decision == decision}
            heights = np.array([counts.get(left, 0) for left in lefts])
            some = np.flatnonzero(heights)
            at, own, under = np.array(lefts)[some], heights[some], totals[some]
            axes.bar(at, own, 0.9 * width, under, align="edge", color=_COLOURS[decision])
            totals += heights
        axes.set_xlim(low - pad, high + pad)
        axes.set_xlabel(label)
        _count_axis(axes, int(totals.max()), unit, log)

    return _chart(name, draw, low - pad, high + pad)


def balance_chart(before: Int64[np.ndarray, " k"], after: Int64[np.ndarray, " k"]) -> Chart:
    """Return the sizes of clusters, each time from the largest to the smallest, on a log scale.

    `before` is not all 0.
    """

    def draw(axes: Axes) -> None:
        for counts, decision in ((before, "irrelevant"), (after, "kept")):
            sizes = np.sort(counts[counts > 0])[::-1]
            axes.stairs(sizes, fill=True, alpha=0.25, color=_COLOURS[decision])
            axes.stairs(sizes, baseline=None, color=_COLOURS[decision], linewidth=1.6)
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("lowest clusters, from the largest to the smallest")
        _count_axis(axes, int(max(before.max(), after.max())), "images", log=True)

    return _chart("balance", draw, 0.0, 1.0)


def _count_axis(axes: Axes, most: int, unit: str, log: bool) -> None:
    if log:
        axes.set_yscale("log")
        axes.set_ylim(0.6, 2 * max(most, 1))
        axes.minorticks_off()
    else:
        axes.set_ylim(0, 1.08 * max(most, 1))
        axes.locator_params(axis="y", integer=True, nbins=5)
    axes.yaxis.set_major_formatter(short)
    axes.set_title(f"{unit}, log scale" if log else unit, loc="left", fontsize=9, pad=9)


def _chart(name: str, draw: Callable[[Axes], None], low: float, high: float) -> Chart:
    wide = draw_chart(f"{name}-wide", draw, _COLOURS, WIDE)
    return Chart(wide, draw_chart(f"{name}-narrow", draw, _COLOURS, NARROW), low, high)


def _bins(
    tables: duckdb.DuckDBPyConnection, similarities: str, threshold: float | None
) -> list[Bin]:
    span = f"SELECT min(similarity) AS low, max(similarity) AS high FROM ({similarities})"
    [ends] = rows(tables, span)
    if ends["low"] is None:
        return []
    width = max(ends["high"] - ends["low"], 0.01) / BINS
    origin = ends["low"] if threshold is None else threshold
    # Similarities are float32, and so is the threshold that they were compared with.
    counted = rows(
        tables,
        f"""
        SELECT floor((similarity - ?::FLOAT)::DOUBLE / ?)::INTEGER AS bin, decision,
            count(*) AS images
        FROM ({similarities}) GROUP BY ALL ORDER BY ALL
        """,
        [origin, width],
    )
    return [
        Bin(origin + row["bin"] * width, width, row["decision"], row["images"]) for row in counted
    ]
