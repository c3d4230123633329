"""Charts drawn with Pillow alone, for the built-in sample."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from PIL import Image

from curate.sample.canvas import PALETTES, WHITE, WORDS, blend, canvas, font, paper_colour, phrase


def chart(chosen: random.Random) -> Image.Image:
    """Return one chart: bars, lines, points, a pie, an area, a grid of cells or a box plot."""
    image, draw, width, height = canvas(chosen, (300, 460), (0.55, 1.1))
    dark = chosen.random() < 0.2
    paper = chosen.choice(((28, 30, 38), (16, 24, 48))) if dark else paper_colour(chosen)
    ink = (215, 215, 220) if dark else (60, 60, 60)
    palette = chosen.sample(chosen.choice(PALETTES), 5)
    draw.rectangle((0, 0, width, height), fill=paper)
    left, right = chosen.randint(50, 120), width - chosen.randint(20, 150)
    upper, lower = chosen.randint(30, 100), height - chosen.randint(50, 110)
    if chosen.random() < 0.8:
        draw.text((left, 14), phrase(chosen, 2, 5).capitalize(), ink, font(30))
    if right < width - 110:
        _legend(draw, (right + 16, upper), palette, ink, chosen)
    plot = (left, upper, right, lower)
    draw_marks = chosen.choice((_bars, _bars, _lines, _lines, _points, _pie, _area, _cells, _boxes))
    if draw_marks not in (_pie, _cells):
        _axes(draw, plot, ink, chosen)
    draw_marks(draw, plot, palette, chosen)
    return image.reduce(2)


def _walk(chosen: random.Random, steps: int) -> list[float]:
    """Return a random walk of `steps` values scaled into 0.05 to 0.95."""
    values, level = [], 0.0
    for _ in range(steps):
        level += chosen.gauss(0, 1)
        values.append(level)
    low, high = min(values), max(values)
    return [0.05 + 0.9 * (value - low) / (high - low or 1.0) for value in values]


def _axes(draw, plot, ink, chosen) -> None:
    left, upper, right, lower = plot
    soft = blend(ink, (128, 128, 128), 0.7)
    if chosen.random() < 0.6:
        for i in range(5):
            y = upper + (lower - upper) * i // 5
            draw.line((left, y, right, y), fill=soft, width=1)
            draw.text((left - 8, y), str(100 - 20 * i), ink, font(18), anchor="rm")
    draw.line((left, lower, right, lower), fill=ink, width=2)
    draw.line((left, upper, left, lower), fill=ink, width=2)
    draw.text(((left + right) / 2, lower + 24), chosen.choice(WORDS), ink, font(22), anchor="mt")


def _legend(draw, corner, palette, ink, chosen) -> None:
    for i, colour in enumerate(palette[: chosen.randint(2, 4)]):
        y = corner[1] + 30 * i
        draw.rectangle((corner[0], y, corner[0] + 18, y + 18), fill=colour)
        draw.text((corner[0] + 26, y + 9), chosen.choice(WORDS), ink, font(20), anchor="lm")


def _bars(draw, plot, palette, chosen) -> None:
    left, upper, right, lower = plot
    across = chosen.random() < 0.3
    groups, series = chosen.randint(3, 14), chosen.choice((1, 1, 2, 3))
    span = (lower - upper if across else right - left) / groups
    for i in range(groups):
        for j in range(series):
            share = chosen.uniform(0.05, 0.97)
            start = span * (i + 0.1 + 0.8 * j / series)
            end = span * (i + 0.1 + 0.8 * (j + 1) / series)
            if across:
                box = (left, upper + start, left + share * (right - left), upper + end)
            else:
                box = (left + start, lower - share * (lower - upper), left + end, lower)
            draw.rectangle(box, fill=palette[j])


def _lines(draw, plot, palette, chosen) -> None:
    for colour in palette[: chosen.randint(1, 5)]:
        points = _curve(plot, _walk(chosen, chosen.randint(6, 60)))
        draw.line(points, fill=colour, width=chosen.choice((3, 4, 6)), joint="curve")
        if len(points) < 16:
            for x, y in points:
                draw.ellipse((x - 6, y - 6, x + 6, y + 6), fill=colour)


def _area(draw, plot, palette, chosen) -> None:
    left, _, right, lower = plot
    for i, colour in enumerate(palette[: chosen.randint(1, 4)]):
        shares = [value * (1 - 0.22 * i) for value in _walk(chosen, chosen.randint(8, 50))]
        draw.polygon([(left, lower), *_curve(plot, shares), (right, lower)], fill=colour)


def _curve(plot, shares: Sequence[float]) -> list[tuple[float, float]]:
    left, upper, right, lower = plot
    step = (right - left) / (len(shares) - 1)
    return [(left + i * step, lower - share * (lower - upper)) for i, share in enumerate(shares)]


def _points(draw, plot, palette, chosen) -> None:
    left, upper, right, lower = plot
    for colour in palette[: chosen.randint(1, 4)]:
        x0, y0, slope = chosen.uniform(0.2, 0.8), chosen.uniform(0.2, 0.8), chosen.uniform(-1, 1)
        radius = chosen.choice((4, 6, 10))
        for _ in range(chosen.randint(15, 90)):
            dx = chosen.gauss(0, 0.14)
            x, y = x0 + dx, y0 + slope * dx + chosen.gauss(0, 0.07)
            if 0 < x < 1 and 0 < y < 1:
                px, py = left + x * (right - left), lower - y * (lower - upper)
                draw.ellipse((px - radius, py - radius, px + radius, py + radius), fill=colour)


def _pie(draw, plot, palette, chosen) -> None:
    left, upper, right, lower = plot
    side = min(right - left, lower - upper)
    box = (left, upper, left + side, upper + side)
    edges = sorted(chosen.uniform(0, 360) for _ in range(chosen.randint(3, 7)))
    for i, (start, end) in enumerate(zip(edges, [*edges[1:], edges[0] + 360], strict=True)):
        draw.pieslice(box, start, end, fill=palette[i % 5], outline=WHITE, width=3)
    if chosen.random() < 0.4:
        inset = side * 0.28
        middle = (left + inset, upper + inset, left + side - inset, upper + side - inset)
        draw.ellipse(middle, fill=WHITE)


def _cells(draw, plot, palette, chosen) -> None:
    left, upper, right, lower = plot
    rows, columns = chosen.randint(4, 14), chosen.randint(5, 22)
    wide, high = (right - left) / columns, (lower - upper) / rows
    waves = [chosen.uniform(0.2, 1.2) for _ in range(2)]
    for i in range(rows):
        for j in range(columns):
            share = (math.sin(i * waves[0]) + math.cos(j * waves[1]) + 2) / 4
            share = min(max(share + chosen.gauss(0, 0.12), 0), 1)
            corner = (left + j * wide, upper + i * high)
            box = (*corner, corner[0] + wide - 2, corner[1] + high - 2)
            draw.rectangle(box, fill=blend(palette[0], palette[1], share))


def _boxes(draw, plot, palette, chosen) -> None:
    left, upper, right, lower = plot
    count = chosen.randint(3, 9)
    span = (right - left) / count
    for i in range(count):
        shares = sorted(chosen.uniform(0.03, 0.97) for _ in range(5))
        low, first, middle, third, high = (lower - s * (lower - upper) for s in shares)
        x = left + span * (i + 0.5)
        draw.line((x, low, x, high), fill=palette[4], width=3)
        box = (x - span * 0.3, third, x + span * 0.3, first)
        draw.rectangle(box, fill=palette[i % 3], outline=palette[4], width=3)
        draw.line((x - span * 0.3, middle, x + span * 0.3, middle), fill=WHITE, width=4)
