"""Screens, documents and a placeholder drawn with Pillow, for the built-in sample."""

from __future__ import annotations

import random
import textwrap
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from curate.sample.words import WORDS, phrase

COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#bc5090", "#003f5c", "#1b9e77", "#762a83")
Box = tuple[float, float, float, float]


def screenshot(chosen: random.Random) -> Image.Image:
    """Return one screen: a terminal or an editor, a web page, a table or a phone."""
    layout = chosen.choice((_lines, _lines, _web_page, _table, _phone))
    if layout is _phone:
        width, aspect = chosen.randint(170, 230), chosen.uniform(1.5, 2.0)
    else:
        width, aspect = chosen.randint(360, 520), chosen.uniform(0.55, 0.75)
    image = Image.new("RGB", (2 * width, round(2 * width * aspect)), "white")
    draw = ImageDraw.Draw(image)
    layout(draw, (0, 44, *image.size), chosen)
    draw.rectangle((0, 0, image.width, 44), chosen.choice(("#46464c", "#dee1e6", *COLOURS)))
    _write(draw, (20, 10), chosen.choice(WORDS).title(), 22, "white")
    return image.reduce(2)


def document(chosen: random.Random) -> Image.Image:
    """Return one page in columns or a form; at times askew, or a part of it, as if scanned."""
    width = chosen.randint(520, 720)
    paper = (chosen.randint(205, 255),) * 3
    image = Image.new("RGB", (width, round(width * chosen.uniform(1.2, 1.5))), paper)
    draw = ImageDraw.Draw(image)
    margin = chosen.randint(24, 80)
    _write(draw, (margin, margin), phrase(chosen, 1, 4).title(), 30)
    body = (margin, margin + 60, image.width - margin, image.height - margin)
    if chosen.random() < 0.3:
        _table(draw, body, chosen)
    else:
        _columns(draw, body, chosen.choice((1, 2, 2, 3)), chosen)
    if chosen.random() < 0.4:
        image = image.rotate(chosen.uniform(-4, 4), Image.Resampling.BILINEAR, fillcolor=paper)
    if chosen.random() < 0.4:
        side = round(width * chosen.uniform(0.4, 0.7))
        x, y = chosen.randint(0, width - side), chosen.randint(0, image.height - side)
        image = image.crop((x, y, x + side, y + side))
    return image.reduce(2)


def placeholder() -> Image.Image:
    """Return the grey picture that a host serves in place of one that is gone."""
    image = Image.new("RGB", (640, 480), "#e1e4e8")
    draw = ImageDraw.Draw(image)
    draw.rectangle((240, 120, 400, 240), outline="#969ba0", width=8)
    draw.polygon(((252, 232), (300, 170), (335, 210), (358, 188), (390, 232)), "#969ba0")
    _write(draw, (140, 320), "image not available", 40, "#787d82")
    return image.reduce(2)


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, ink: str = "#333"
) -> None:
    draw.text(at, text, ink, _font(size))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(
        font, ImageFont.FreeTypeFont
    )  # what Pillow gives where it is asked for a size
    return font


def _paragraph(draw: ImageDraw.ImageDraw, box: Box, size: int, chosen: random.Random) -> float:
    """Write words into `box`, as many as have room, and return where they end."""
    left, upper, right, lower = box
    lines = textwrap.wrap(phrase(chosen, 12, 60), max(int((right - left) / size * 2), 8))
    lines = lines[: int((lower - upper) / size / 1.4)]
    _write(draw, (left, upper), "\n".join(lines), size)
    return upper + (len(lines) + 1) * size * 1.35


def _columns(draw: ImageDraw.ImageDraw, box: Box, count: int, chosen: random.Random) -> None:
    """Fill columns with paragraphs, and here and there a figure."""
    left, upper, right, lower = box
    wide, size = (right - left) / count, chosen.randint(13, 24)
    for x in (left + wide * column for column in range(count)):
        y = upper
        while y < lower - 3 * size:
            if chosen.random() < 0.25:
                bottom = min(y + wide * 0.55, lower)
                draw.rectangle((x, y, x + wide - 16, bottom), chosen.choice(COLOURS))
                y = bottom + size
            else:
                y = _paragraph(draw, (x, y, x + wide - 16, lower), size, chosen)


def _lines(draw: ImageDraw.ImageDraw, box: Box, chosen: random.Random) -> None:
    """Fill a terminal or an editor with lines of words in several colours."""
    left, upper, _, lower = box
    paper, ink = chosen.choice((("#000", "#ddd"), ("#282c34", "#50fa7b"), ("#fcfcfc", "#333")))
    draw.rectangle(box, paper)
    inks = (ink, ink, *chosen.sample(COLOURS, 2))
    indent = chosen.choice((0, 0, 34))
    for y in range(int(upper) + 10, int(chosen.uniform(0.4, 1) * lower) - 20, 28):
        x = left + 14 + indent * chosen.randint(0, 5)
        for _ in range(chosen.randint(0, 3)):
            text = phrase(chosen, 1, 3)
            _write(draw, (x, y), text, 22, chosen.choice(inks))
            x += 12 * len(text)


def _web_page(draw: ImageDraw.ImageDraw, box: Box, chosen: random.Random) -> None:
    left, upper, right, lower = box
    banner = upper + chosen.randint(70, 200)
    draw.rectangle((left, upper, right, banner), chosen.choice(COLOURS))
    _write(draw, (30, upper + 20), phrase(chosen, 1, 3).title(), chosen.randint(34, 52), "white")
    _columns(draw, (left + 20, banner + 24, right, lower), chosen.randint(1, 4), chosen)


def _table(draw: ImageDraw.ImageDraw, box: Box, chosen: random.Random) -> None:
    left, upper, right, lower = map(round, box)
    wide, high = chosen.randint(90, 200), chosen.randint(34, 60)
    head, filled = chosen.choice(("#e8ecf0", *COLOURS)), chosen.uniform(0.3, 0.9)
    for y in range(upper, lower - high, high):
        for x in range(left, right - wide // 2, wide):
            paper = head if y == upper else None
            draw.rectangle((x, y, min(x + wide, right), y + high), paper, "#b0b4b8")
            if chosen.random() < filled:
                number = f"{chosen.uniform(0, 9999):.2f}"
                _write(draw, (x + 8, y + 8), chosen.choice((chosen.choice(WORDS), number)), 19)


def _phone(draw: ImageDraw.ImageDraw, box: Box, chosen: random.Random) -> None:
    """Draw a chat, or a list with round pictures."""
    left, upper, right, lower = box
    row, chat, accent = chosen.randint(60, 140), chosen.random() < 0.5, chosen.choice(COLOURS)
    for y in range(int(upper) + 12, int(lower) - row, row + 12):
        if chat:
            x = left + 14 + chosen.choice((0, right / 4))
            fill = accent if chosen.random() < 0.5 else "#e1e3e6"
            draw.rounded_rectangle((x, y, x + right * 0.65, y + row), 18, fill)
        else:
            x = left + row
            draw.ellipse((14, y, 14 + row * 0.7, y + row * 0.7), chosen.choice(COLOURS))
        _paragraph(draw, (x + 14, y + 10, x + right * 0.6, y + row), 20, chosen)
