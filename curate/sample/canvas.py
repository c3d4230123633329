"""Paper, ink, letters and words for the drawn pictures of the built-in sample."""

from __future__ import annotations

import random
from functools import cache

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

_TEXT = (
    "account amount annual archive average balance budget capacity centre change chapter client "
    "column contract cost current daily data delivery demand design detail district energy export "
    "figure forecast growth harbour history import income index issue item joint journal key label "
    "level list market measure meeting method model month north number order output page paper "
    "percent period plan price product profile project quarter rate record region report result "
    "river sample season section service share signal source south station status storage summary "
    "supply survey system table target total traffic transfer unit update value volume water week"
)
WORDS = tuple(_TEXT.split())
PALETTES = (
    ((76, 120, 168), (245, 133, 24), (228, 87, 86), (114, 183, 178), (84, 162, 75)),
    ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189)),
    ((0, 63, 92), (88, 80, 141), (188, 80, 144), (255, 99, 97), (255, 166, 0)),
    ((27, 158, 119), (217, 95, 2), (117, 112, 179), (231, 41, 138), (102, 166, 30)),
    ((40, 40, 40), (110, 110, 110), (160, 160, 160), (200, 200, 200), (75, 75, 75)),
    ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)),
)
WHITE = (255, 255, 255)


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font that is built into Pillow, `size` pixels high."""
    return ImageFont.load_default(size)


def canvas(
    chosen: random.Random, widths: tuple[int, int], aspects: tuple[float, float]
) -> tuple[Image.Image, ImageDraw.ImageDraw, int, int]:
    """Return a white picture of twice a random size, its pen, its width and its height.

    Draw at that scale and `reduce(2)` at the end: lines and letters then have soft edges.
    """
    width = chosen.randint(*widths)
    height = round(width * chosen.uniform(*aspects))
    image = Image.new("RGB", (2 * width, 2 * height), WHITE)
    return image, ImageDraw.Draw(image), 2 * width, 2 * height


def paper_colour(chosen: random.Random) -> Colour:
    """Return white or nearly white."""
    return chosen.choice((WHITE, WHITE, WHITE, (250, 248, 240), (240, 243, 247)))


def phrase(chosen: random.Random, fewest: int, most: int) -> str:
    """Return between `fewest` and `most` random words."""
    return " ".join(chosen.choices(WORDS, k=chosen.randint(fewest, most)))


def blend(colour: Colour, other: Colour, share: float) -> Colour:
    """Return `colour` with `share` (0 to 1) of `other` mixed in."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def paragraph(draw, box, ink, size: int, chosen) -> float:
    """Write words into `box` until its bottom or a chance end, and return where it stopped."""
    left, upper, right, lower = box
    x, y = left, upper
    for _ in range(chosen.randint(12, 90)):
        word = chosen.choice(WORDS)
        length = font(size).getlength(word)
        if x + length > right:
            x, y = left, y + size * 1.35
        if y + size > lower or left + length > right:
            break
        draw.text((x, y), word, ink, font(size))
        x += length + size * 0.35
    return y + size * 1.35
