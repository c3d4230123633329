"""Edits that lay a picture out anew: in a frame, behind a caption, half covered, on a page."""

from __future__ import annotations

import string
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_FILTERS = (
    Image.Resampling.NEAREST,
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.BOX,
)
_FRAME = 0.22
"""Most of a side that one edge of a frame takes."""
_STRIP = (0.1, 0.3)
"""Least and most of the height that a caption takes."""
_COVER = 0.3
"""Most of the area that is covered."""
_ON_PAGE = (0.4, 0.8)
"""Least and most of a page's side that the picture takes."""
_PIECES = (2, 8)
"""Least and most of what else is drawn on a page."""


def frame(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Set the picture in a frame of one colour, all around or above and below or at the sides."""
    size = image.size
    # Left, top, right, bottom: of one width, of two, or each of its own.
    edges = np.resize(rng.uniform(0, _FRAME, rng.choice([1, 2, 4])), 4)
    kept = rng.choice(["all", "lying", "standing"], p=[0.5, 0.25, 0.25])
    if kept == "lying":
        edges[[0, 2]] = 0
    elif kept == "standing":
        edges[[1, 3]] = 0
    left, top, right, bottom = np.rint(edges * size[0]).astype(int).tolist()
    inner = image.resize((size[0] - left - right, size[1] - top - bottom), resampling(rng))
    canvas = Image.new("RGB", size, colour(rng))
    canvas.paste(inner, (left, top))
    return canvas


def caption(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Put lines of text above or below the picture, on a strip or on the picture itself."""
    width, height = image.size
    strip = max(4, round(height * rng.uniform(*_STRIP)))
    below, beside = rng.random() < 0.6, rng.random() < 0.7
    paper, ink = _contrast(rng)
    if beside:
        canvas = Image.new("RGB", image.size, paper)
        canvas.paste(
            image.resize((width, height - strip), resampling(rng)), (0, 0 if below else strip)
        )
    else:
        canvas = image.copy()
    top = height - strip if below else 0
    _write(canvas, (0, top, width, strip), ink, rng)
    return canvas


def cover(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Lay a shape, a text or a piece of noise over a part of the picture, opaque or half so."""
    width, height = image.size
    area, aspect = rng.uniform(0.02, _COVER), np.exp(rng.uniform(-1, 1))
    wide = min(width, max(3, round(width * np.sqrt(area * aspect))))
    high = min(height, max(3, round(height * np.sqrt(area / aspect))))
    left, top = int(rng.integers(0, width - wide + 1)), int(rng.integers(0, height - high + 1))
    box = (left, top, left + wide, top + high)
    covered = image.copy()
    kind = rng.choice(["rectangle", "ellipse", "text", "noise", "piece"])
    if kind == "text":
        _write(covered, (left, top, wide, high), colour(rng), rng)
    elif kind == "noise":
        levels = rng.integers(0, 256, (4, 4, 3), np.uint8)
        covered.paste(Image.fromarray(levels).resize((wide, high), resampling(rng)), box)
    elif kind == "piece":
        piece = image.transpose(Image.Transpose.ROTATE_90).resize((wide, high), resampling(rng))
        covered.paste(piece, box)
    else:
        draw = ImageDraw.Draw(covered)
        (draw.rectangle if kind == "rectangle" else draw.ellipse)(
            (left, top, left + wide - 1, top + high - 1), fill=colour(rng)
        )
    return Image.blend(image, covered, rng.uniform(0.4, 1.0))


def page(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Set the picture, smaller, somewhere on a page of bars, text, boxes and drawn textures.

    The page is a sheet of one colour, or, as in a collage, textures all over. No other picture of
    the data is on it, so that the edit depends on its sample alone.
    """
    width, height = image.size
    ground = Image.new("RGB", image.size, colour(rng))
    canvas = _texture(image.size, rng) if rng.random() < 0.3 else ground
    for _ in range(rng.integers(*_PIECES, endpoint=True)):
        _draw_piece(canvas, rng)
    share = rng.uniform(*_ON_PAGE)
    stretch = np.exp(rng.uniform(-0.15, 0.15))
    wide, high = round(width * share * stretch), round(height * share / stretch)
    left, top = int(rng.integers(0, width - wide + 1)), int(rng.integers(0, height - high + 1))
    if rng.random() < 0.3:
        edge = (left - 1, top - 1, left + wide, top + high)
        ImageDraw.Draw(canvas).rectangle(edge, outline=colour(rng))
    canvas.paste(image.resize((wide, high), resampling(rng)), (left, top))
    return canvas


def _draw_piece(canvas: Image.Image, rng: np.random.Generator) -> None:
    """Draw a bar along an edge, lines of text, a box or a texture on a page."""
    width, height = canvas.size
    wide, high = (max(3, round(side * rng.uniform(0.1, 0.6))) for side in canvas.size)
    left, top = int(rng.integers(0, width - wide + 1)), int(rng.integers(0, height - high + 1))
    draw = ImageDraw.Draw(canvas)
    kind = rng.choice(["bar", "lines", "letters", "box", "texture"])
    if kind == "bar":
        thick = max(1, round(height * rng.uniform(0.03, 0.2)))
        at = rng.choice([0, height - thick])
        box = (0, at, width, at + thick) if rng.random() < 0.7 else (at, 0, at + thick, height)
        draw.rectangle(box, fill=colour(rng))
    elif kind == "lines":
        ink, step = colour(rng), int(rng.integers(2, 7))
        for at in range(top, min(height, top + 2 * high), step):
            end = left + wide * rng.uniform(0.5, 1.0)
            draw.rectangle((left, at, end, at + step // 3), fill=ink)
    elif kind == "letters":
        _write(canvas, (left, top, wide, max(6, high // 2)), colour(rng), rng)
    elif kind == "box":
        draw.rectangle((left, top, left + wide, top + high), fill=colour(rng))
    else:
        canvas.paste(_texture((wide, high), rng), (left, top))


def _texture(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Return coloured noise that is stronger the coarser it is, as photographs are."""
    levels = np.zeros((size[1], size[0], 3))
    base, contrast = rng.uniform(40, 215, 3), rng.uniform(20, 90)
    for cells in (2, 4, 8, 16):
        grey = rng.normal(0, 1, (cells, cells, 1)) + 0.5 * rng.normal(0, 1, (cells, cells, 3))
        noise = Image.fromarray(np.uint8(np.clip(128 + 48 * grey, 0, 255)))
        levels += (
            (np.asarray(noise.resize(size, Image.Resampling.BICUBIC)) - 128.0) / 48 * 2 / cells
        )
    return Image.fromarray(np.uint8(np.clip(base + contrast * levels, 0, 255)))


def _write(
    image: Image.Image,
    box: tuple[int, int, int, int],
    ink: tuple[int, int, int],
    rng: np.random.Generator,
) -> None:
    """Write one or two lines of letters into a box of left, top, width and height."""
    left, top, width, height = box
    lines = int(rng.integers(1, 3)) if height >= 16 else 1
    size = max(5, round(0.8 * height / lines))
    letters = max(1, round(width / (0.5 * size) * rng.uniform(0.5, 1.0)))
    draw = ImageDraw.Draw(image)
    for line in range(lines):
        text = "".join(rng.choice(list(string.ascii_letters + "    "), letters))
        draw.text((left + 1, top + line * height / lines), text, fill=ink, font=_font(size))


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def resampling(rng: np.random.Generator) -> Image.Resampling:
    """Return any of the filters that pictures are scaled with."""
    return _FILTERS[int(rng.integers(len(_FILTERS)))]


def colour(rng: np.random.Generator) -> tuple[int, int, int]:
    """Return black, white, or any colour."""
    drawn = rng.integers(0, 256, 3).tolist()
    kind = rng.random()
    return (0, 0, 0) if kind < 0.35 else (255, 255, 255) if kind < 0.7 else tuple(drawn)


def _contrast(rng: np.random.Generator) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return paper and ink that can be told apart."""
    paper = colour(rng)
    return paper, (0, 0, 0) if sum(paper) > 380 else (255, 255, 255)
