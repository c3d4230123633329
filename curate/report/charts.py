"""The kinds of chart of a report, as PNG bytes: the funnel, similarities by decision, sizes of clusters."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
from jaxtyping import Int64

from curate.filters.decisions import DECISIONS
from curate.report.tables import rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "corrupt": "#7b241c",
    "unsafe": "#6c3483",
    "low_quality": "#ba4a00",
    "holdout": "#2471a3",
    "duplicate": "#d4a017",
    "irrelevant": "#909497",
    "over_budget": "#5f6a6a",
    "kept": "#1e8449",
}
BINS = 60
DOTS = 160  # per inch: sharp at twice the size it is shown at


@contextmanager
def _style() -> Iterator[None]:
    """Use matplotlib's defaults and ours, not those of the user."""
    import matplotlib.style

    with matplotlib.style.context(["default", {"font.size": 9}]):
        yield


@dataclass(frozen=True)
class Bin:
    """The number of images of one decision with a similarity in [left, left + width)."""

    left: float
    width: float
    decision: str
    images: int


@_style()
def funnel_chart(funnel: dict[str, Any]) -> bytes:
    """Return a waterfall chart: each decision takes its images from those left by the one before."""
    images, counts = funnel["images"], funnel["decisions"]
    scale = max(images, 1)
    figure, axes = _axes(3.6)
    left = images
    axes.barh(0, images, color="#34495e")
    axes.text(images + 0.01 * scale, 0, f"{images:,}", va="center", weight="bold")
    for place, name in enumerate(DECISIONS, start=1):
        count = counts[name]
        start = 0 if name == "kept" else left - count
        if name != "kept":
            axes.barh(place, start, color="#eceff1")
        axes.barh(place, count, left=start, color=COLOURS[name])
        share = f"{count:,}   {100 * count / scale:.1f} %" if count else "0"
        end = start + count
        tint = COLOURS[name] if count else "#b0b6ba"
        weight = "bold" if name == "kept" else "normal"
        axes.text(end + 0.01 * scale, place, share, va="center", color=tint, weight=weight)
        left = start
    axes.set_yticks(range(len(DECISIONS) + 1), ["crawled", *DECISIONS])
    axes.set_xlim(0, 1.16 * scale)
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0)
    return _png(figure)


def similarity_bins(tables: duckdb.DuckDBPyConnection, threshold: float | None) -> list[Bin]:
    """Return the histogram of `seed_similarity`; the threshold, if any, is a border of bins."""
    return _bins(
        tables,
        "SELECT seed_similarity AS similarity, decision FROM images"
        " WHERE seed_similarity IS NOT NULL",
        threshold,
    )


def copy_bins(tables: duckdb.DuckDBPyConnection, threshold: float | None) -> list[Bin]:
    """Return the histogram of the near copies' similarities to their representatives."""
    return _bins(
        tables,
        "SELECT similarity, 'duplicate' AS decision FROM duplicates"
        " WHERE NOT representative AND method = 'near'",
        threshold,
    )


@_style()
def histogram_chart(
    bins: list[Bin], threshold: float | None, label: str, *, log: bool = False
) -> bytes:
    """Return a stacked histogram with its threshold as a line. `bins` is not empty.

    A `log` scale is for bins of one decision: it would distort what is stacked on others.
    """
    figure, axes = _axes(3.2)
    lefts = sorted({one.left for one in bins})
    width = bins[0].width
    totals = np.zeros(len(lefts), int)
    for name in DECISIONS:
        counts = {one.left: one.images for one in bins if one.decision == name}
        if not counts:
            continue
        heights = np.array([counts.get(left, 0) for left in lefts])
        label_of = f"{name} ({heights.sum():,})"
        colour = COLOURS[name]
        axes.bar(lefts, heights, 0.92 * width, totals, align="edge", color=colour, label=label_of)
        totals += heights
    most = totals.max()
    if log:
        axes.set_yscale("log")
        axes.set_ylim(0.6, 2 * most)
    else:
        axes.set_ylim(0, 1.12 * most)
        axes.locator_params(axis="y", integer=True)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    if threshold is not None:
        _mark_threshold(axes, threshold)
    axes.margins(x=0.04)
    axes.set_xlabel(label)
    axes.set_ylabel("images, log scale" if log else "images")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _png(figure)


@_style()
def balance_chart(before: Int64[np.ndarray, " k"], after: Int64[np.ndarray, " k"]) -> bytes:
    """Return the sizes of clusters, each time from the largest to the smallest, on a log scale.

    `before` is not all 0.
    """
    figure, axes = _axes(3.2)
    for counts, name, colour in ((before, "retrieved", "irrelevant"), (after, "drawn", "kept")):
        sizes = np.sort(counts[counts > 0])[::-1]
        label = f"{name} ({sizes.sum():,} in {len(sizes):,})"
        axes.stairs(sizes, fill=True, alpha=0.25, color=COLOURS[colour])
        axes.stairs(sizes, baseline=None, color=COLOURS[colour], linewidth=1.4, label=label)
    axes.set_yscale("log")
    axes.set_ylim(0.6, 2 * max(before.max(), after.max()))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("lowest clusters, from the largest to the smallest")
    axes.set_ylabel("images, log scale")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _png(figure)


def _mark_threshold(axes: Axes, threshold: float) -> None:
    axes.axvline(threshold, color="#c0392b", linewidth=1.4)
    low, high = axes.get_xlim()
    on_left = threshold > (low + high) / 2
    axes.annotate(
        f"threshold {threshold:.4g}",
        (threshold, 1.0),
        xytext=(-4 if on_left else 4, -3),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="right" if on_left else "left",
        va="top",
        color="#c0392b",
    )


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


def _axes(height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, height), dpi=DOTS, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure, axes


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
