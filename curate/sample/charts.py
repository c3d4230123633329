"""Charts of made-up numbers, for the built-in sample."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from curate.sample.words import WORDS, phrase

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 100
MARKS = ("bars", "bars", "lines", "lines", "points", "pie", "areas", "cells", "boxes")
STYLES = ("default", "default", "ggplot", "bmh", "dark_background", "grayscale", "seaborn-v0_8")
COLOUR_MAPS = ("viridis", "magma", "coolwarm", "Blues", "tab10", "Set2")


def chart(chosen: random.Random) -> Image.Image:
    """Return one chart, 300 to 460 pixels wide, of a kind in MARKS."""
    import matplotlib as mpl
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = chosen.randint(300, 460) / DPI
    look = {"font.size": chosen.choice((6, 7, 8)), "lines.linewidth": chosen.choice((1, 1.5, 3))}
    with style.context(["default", chosen.choice(STYLES), look]):
        figure = Figure((width, width * chosen.uniform(0.55, 1.1)), dpi=DPI)
        left, bottom = chosen.uniform(0.12, 0.2), chosen.uniform(0.18, 0.24)
        wide, high = chosen.uniform(0.55, 0.75), chosen.uniform(0.55, 0.65)
        axes = figure.add_axes((left, bottom, wide, high))
        colours = mpl.colormaps[chosen.choice(COLOUR_MAPS)](np.linspace(0.1, 0.9, 5))
        axes.set_prop_cycle(color=chosen.sample(colours.tolist(), 5))
        marks = chosen.choice(MARKS)
        _draw(axes, marks, np.random.default_rng(chosen.getrandbits(64)))
        if chosen.random() < 0.8:
            axes.set_title(phrase(chosen, 2, 4).capitalize(), y=1.03)  # placing it takes long
        axes.set_xticks([])  # each tick costs a millisecond
        axes.locator_params(axis="y", nbins=4)
        if marks not in ("pie", "cells"):
            axes.set_xlabel(chosen.choice(WORDS))
            axes.grid(chosen.random() < 0.5)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _draw(axes: Axes, marks: str, rng: np.random.Generator) -> None:
    series, steps = int(rng.integers(1, 5)), int(rng.integers(4, 40))
    walks = 50 + rng.normal(size=(series, steps)).cumsum(axis=1) * rng.uniform(1, 9)
    match marks:
        case "bars":
            draw = axes.bar if rng.random() < 0.7 else axes.barh
            for number, heights in enumerate(rng.uniform(5, 100, (series, min(steps, 14)))):
                draw(np.arange(len(heights)) + 0.8 * number / series, heights, 0.8 / series)
        case "lines":
            axes.plot(walks.T, marker="o" if steps < 16 else None)
        case "points":
            for x, y, slope in rng.uniform(-1, 1, (series, 3)):
                along, across = rng.normal(0, 0.2, (2, 60))
                axes.scatter(x + along, y + slope * along + across, s=rng.choice((4, 12, 40)))
        case "pie":
            ring = {"width": rng.choice((0.4, 1.0)), "edgecolor": "white"}
            parts = rng.uniform(1, 9, rng.integers(3, 8))
            axes.pie(parts, startangle=rng.uniform(0, 360), wedgeprops=ring)
        case "areas":
            axes.stackplot(range(steps), np.abs(walks))
        case "cells":
            across, down = (
                np.sin(rng.uniform(0.2, 1.2) * np.arange(n)) for n in (18, min(steps, 14))
            )
            cells = np.add.outer(down, across) + rng.normal(0, 0.3, (len(down), len(across)))
            axes.pcolormesh(cells, cmap=rng.choice(COLOUR_MAPS[:4]), edgecolors="white")
        case "boxes":
            means = rng.uniform(0, 9, min(steps, 9))
            axes.boxplot(rng.normal(means, 1, (30, len(means))), patch_artist=True)
