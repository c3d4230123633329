"""The charts of a report, as SVG that takes its colours from the page: similarities, sizes of clusters."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
from jaxtyping import Int64
from markupsafe import Markup

from curate.filters.decisions import DECISIONS
from curate.report.tables import rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 60
LEFT, RIGHT = 0.09, 0.98
"""Where the axis of similarities begins and ends, as shares of a chart's width."""
_SIZES = {"wide": (9.0, 2.9), "narrow": (4.2, 2.6)}
_TOKENS = {name: f"#00{place:02x}fe" for place, name in enumerate((*DECISIONS, "ink", "line"))}
"""Colours that stand for the page's own until the SVG is written."""


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
            axes.bar(at, own, 0.9 * width, under, align="edge", color=_TOKENS[decision])
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
            axes.stairs(sizes, fill=True, alpha=0.25, color=_TOKENS[decision])
            axes.stairs(sizes, baseline=None, color=_TOKENS[decision], linewidth=1.6)
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
    axes.yaxis.set_major_formatter(_short)
    axes.set_title(f"{unit}, log scale" if log else unit, loc="left", fontsize=9)


def _short(count: float, _: Any = None) -> str:
    for power, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= power:
            return f"{count / power:g}{letter}"
    return f"{count:g}"


def _chart(name: str, draw: Callable[[Axes], None], low: float, high: float) -> Chart:
    drawn = {}
    for size in _SIZES:
        with _style(f"{name}-{size}"):
            drawn[size] = _svg(size, draw, f"{name}-{size}")
    return Chart(drawn["wide"], drawn["narrow"], low, high)


@contextmanager
def _style(salt: str) -> Iterator[None]:
    """Use matplotlib's defaults and ours, not those of the user; the same chart has the same bytes."""
    import matplotlib.style

    ink, line = _TOKENS["ink"], _TOKENS["line"]
    own = {
        "font.size": 9,
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), ink),
        **dict.fromkeys(("axes.edgecolor", "grid.color"), line),
    }
    with matplotlib.style.context(["default", own]):
        yield


def _svg(size: str, draw: Callable[[Axes], None], prefix: str) -> Markup:
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZES[size])
    figure.patch.set_visible(False)
    axes = figure.add_axes((LEFT, 0.17, RIGHT - LEFT, 0.72))
    axes.patch.set_visible(False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    axes.set_axisbelow(True)
    axes.grid(axis="y", linewidth=0.6)
    draw(axes)
    stream = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(stream, format="svg", metadata=nothing)
    return _for_page(stream.getvalue(), prefix)


def _for_page(svg: str, prefix: str) -> Markup:
    """Return an SVG to stand in a page: colours as its variables, ids its own, no size."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    svg = re.sub(r"\n\s*", "\n", svg)
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)
    svg = re.sub(r'(id="|#)(?=[pm][0-9a-f]{10}\b)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*" ([^>]*?)width="[^"]*"', r"<svg \1\2", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*" ([^>]*?)height="[^"]*"', r"<svg \1\2", svg, count=1)
    svg = svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
    for name, colour in _TOKENS.items():
        svg = svg.replace(colour, f"var(--{name.replace('_', '-')})")
    return Markup(svg)


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
