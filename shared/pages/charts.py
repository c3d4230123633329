"""Draws charts of a page by matplotlib, as SVG that takes its colours from the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEFT, RIGHT = 0.09, 0.98
"""Where the horizontal axis of a chart begins and ends, as shares of the chart's width."""
WIDE, NARROW = (9.0, 2.9), (4.2, 2.6)
"""Sizes in inches, which decide how large the text is against the chart: a page scales them."""
INK, LINE = "ink", "line"


class Palette:
    """The page's own colours, by the names of its variables; `ink` and `line` are among them."""

    def __init__(self, names: Sequence[str]) -> None:
        self._tokens = {name: f"#00{place:02x}fe" for place, name in enumerate((*names, INK, LINE))}

    def __getitem__(self, name: str) -> str:
        """Return what stands for a colour until the SVG is written."""
        return self._tokens[name]

    def named(self, svg: str) -> str:
        """Return an SVG with the page's variables in place of what stood for them."""
        for name, colour in self._tokens.items():
            svg = svg.replace(colour, f"var(--{name.replace('_', '-')})")
        return svg


def draw_chart(
    name: str,
    draw: Callable[[Axes], None],
    palette: Palette,
    size: tuple[float, float],
    left: float = LEFT,
) -> Markup:
    """Return the chart that `draw` makes of empty axes; the same chart has the same bytes.

    `name` tells it from the other charts of a page. It has no size of its own, and says nothing to
    a screen reader: the page around it does.
    """
    import matplotlib.style

    ink, line = palette[INK], palette[LINE]
    own = {
        "font.size": 9,
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), ink),
        **dict.fromkeys(("axes.edgecolor", "grid.color"), line),
    }
    with matplotlib.style.context(["default", own]):  # and not what the user has set
        return Markup(palette.named(_for_page(_svg(draw, size, left), name)))


def short(count: float, _: Any = None) -> str:
    """Return a number of an axis with k, M or G in place of its zeros."""
    for power, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= power:
            return f"{count / power:g}{letter}"
    return f"{count:g}"


def _svg(draw: Callable[[Axes], None], size: tuple[float, float], left: float) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    figure.patch.set_visible(False)
    axes = figure.add_axes((left, 0.17, RIGHT - left, 0.72))
    axes.patch.set_visible(False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    axes.set_axisbelow(True)
    axes.grid(axis="y", linewidth=0.6)
    draw(axes)
    stream = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(stream, format="svg", metadata=nothing)
    return stream.getvalue()


def _for_page(svg: str, prefix: str) -> str:
    """Return an SVG to stand in a page: without a style, a size, or another's ids."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    svg = re.sub(r"\n\s*", "\n", svg)
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)
    svg = re.sub(r'(id="|#)(?=[pm][0-9a-f]{10}\b)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*" ([^>]*?)width="[^"]*"', r"<svg \1\2", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*" ([^>]*?)height="[^"]*"', r"<svg \1\2", svg, count=1)
    return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
