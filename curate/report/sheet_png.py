"""Draws a contact sheet as one PNG, for where a page of HTML cannot go."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping

from PIL import Image, ImageDraw

from curate.report.contact_sheets import COLUMNS, Sheet, Strip, Tile
from curate.report.thumbnails import SIDE
from shared.lettering import FAINT, FRAME, INK, MARK, PAPER, Fonts, fitted
from shared.progress import printable

MARGIN, GAP, TEXT = 20, 10, 16  # pixels; TEXT is a line's height
CELL = SIDE + 2 + GAP


def draw_sheet(sheet: Sheet, pictures: Mapping[tuple[bool, str], bytes]) -> bytes:
    """Return the PNG of a sheet, `pictures` being its thumbnails by `(seed, key)`."""
    fonts = Fonts()
    heights = [_strip_height(strip) for strip in sheet.strips]
    size = (2 * MARGIN + COLUMNS * CELL - GAP, 2 * MARGIN + 52 + sum(heights))
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, MARGIN), sheet.title, INK, fonts.title)
    draw.text((MARGIN, MARGIN + 26), sheet.note, FAINT, fonts.small)
    top = MARGIN + 52
    for strip, height in zip(sheet.strips, heights, strict=True):
        _draw_strip(canvas, draw, top, strip, pictures, fonts)
        top += height
    stream = io.BytesIO()
    canvas.save(stream, "PNG")
    return stream.getvalue()


def _strip_height(strip: Strip) -> int:
    lines = -(-len(strip.tiles) // COLUMNS)
    return (26 if strip.heading else 0) + lines * (CELL + 2 * TEXT) + 6


def _draw_strip(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    top: int,
    strip: Strip,
    pictures: Mapping[tuple[bool, str], bytes],
    fonts: Fonts,
) -> None:
    if strip.heading:
        heading = fitted(draw, strip.heading, fonts.heading, canvas.width - 2 * MARGIN)
        draw.text((MARGIN, top + 4), heading, INK, fonts.heading)
        top += 26
    for place, tile in enumerate(strip.tiles):
        line, column = divmod(place, COLUMNS)
        x, y = MARGIN + column * CELL, top + line * (CELL + 2 * TEXT)
        _draw_tile(canvas, draw, (x, y), tile, pictures.get((tile.seed, tile.key)), fonts)


def _draw_tile(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    tile: Tile,
    jpeg: bytes | None,
    fonts: Fonts,
) -> None:
    x, y = corner
    box = (x, y, x + SIDE + 1, y + SIDE + 1)
    draw.rectangle(box, PAPER)
    if jpeg is None:
        text = "\n".join(textwrap.wrap(printable(tile.absent[:100]), 22))
        middle = (x + SIDE // 2, y + SIDE // 2)
        draw.multiline_text(middle, text, FAINT, fonts.small, anchor="mm", align="center")
    else:
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as picture:
            left, above = (1 + (SIDE - side) // 2 for side in picture.size)
            canvas.paste(picture, (x + left, y + above))
    draw.rectangle(box, None, MARK if tile.mark else FRAME, 2 if tile.mark else 1)
    caption = fitted(draw, tile.caption, fonts.small, SIDE)
    draw.text((x, y + SIDE + 4), caption, MARK if tile.mark else INK, fonts.small)
    key = fitted(draw, tile.key, fonts.small, SIDE)
    draw.text((x, y + SIDE + 4 + TEXT - 2), key, FAINT, fonts.small)
