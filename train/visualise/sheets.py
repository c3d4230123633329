"""Sheets of captioned pictures, and how one is drawn as a PNG for where a page cannot go."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from shared.lettering import FAINT, FRAME, INK, MARK, Fonts, fitted

SIDE = 180
"""Pixels of a picture's side, on the page and on a sheet."""
COLUMNS = 7

_MARGIN, _GAP, _LINE = 20, 10, 15
_CELL = SIDE + 2 + _GAP
_HEAD, _HEADING = 30, 28


@dataclass(frozen=True)
class Tile:
    """A picture, `SIDE` pixels wide, with two lines of words under it."""

    image: Image.Image
    caption: str
    detail: str = ""
    mark: bool = False
    """It is what the tiles behind it are compared with."""


@dataclass(frozen=True)
class Strip:
    """Tiles that belong together; all are equally high."""

    heading: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Sheet:
    """Strips of one kind. `name` begins its files' names, `notes` say what is to be seen and how."""

    name: str
    title: str
    notes: tuple[str, ...]
    strips: tuple[Strip, ...]
    facts: tuple[tuple[str, str], ...] = ()
    """Values and their names, of what the sheet is about."""
    apart: bool = False
    """Each strip has a PNG of its own."""

    def pngs(self) -> dict[str, bytes]:
        """Return the PNGs by file name."""
        if not self.apart:
            return {f"{self.name}.png": _drawn(self.title, self.strips)}
        return {
            f"{self.name}-{number:02d}.png": _drawn(self.title, [strip])
            for number, strip in enumerate(self.strips, start=1)
        }


def stacked(images: Sequence[Image.Image]) -> Image.Image:
    """Return pictures of one width, the first on top."""
    width, gap = images[0].width, 4
    height = sum(image.height + gap for image in images) - gap
    canvas = Image.new("RGB", (width, height), "white")
    top = 0
    for image in images:
        canvas.paste(image, (0, top))
        top += image.height + gap
    return canvas


def _drawn(title: str, strips: Sequence[Strip]) -> bytes:
    fonts = Fonts()
    heights = [_heading(strip) + _lines(strip) * _cell_height(strip) for strip in strips]
    columns = min(COLUMNS, max(4, *(len(strip.tiles) for strip in strips)))  # titles need room
    size = (2 * _MARGIN + columns * _CELL - _GAP, 2 * _MARGIN + _HEAD + sum(heights))
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    room = size[0] - 2 * _MARGIN
    draw.text((_MARGIN, _MARGIN), fitted(draw, title, fonts.title, room), INK, fonts.title)
    top = _MARGIN + _HEAD
    for strip, height in zip(strips, heights, strict=True):
        heading = fitted(draw, strip.heading, fonts.heading, room)
        draw.text((_MARGIN, top + 4), heading, INK, fonts.heading)
        for place, tile in enumerate(strip.tiles):
            line, column = divmod(place, COLUMNS)
            above = _heading(strip) + line * _cell_height(strip)
            corner = (_MARGIN + column * _CELL, top + above)
            _draw_tile(canvas, draw, corner, tile, fonts)
        top += height
    stream = io.BytesIO()
    canvas.save(stream, "PNG")
    return stream.getvalue()


def _heading(strip: Strip) -> int:
    return _HEADING if strip.heading else 0


def _lines(strip: Strip) -> int:
    return -(-len(strip.tiles) // COLUMNS)


def _cell_height(strip: Strip) -> int:
    return strip.tiles[0].image.height + 2 * _LINE + 3 * _GAP // 2


def _draw_tile(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    tile: Tile,
    fonts: Fonts,
) -> None:
    x, y = corner
    bottom = y + tile.image.height + 1
    canvas.paste(tile.image, (x + 1, y + 1))
    draw.rectangle((x, y, x + SIDE + 1, bottom), None, MARK if tile.mark else FRAME, 1 + tile.mark)
    caption = fitted(draw, tile.caption, fonts.small, SIDE)
    draw.text((x, bottom + 3), caption, MARK if tile.mark else INK, fonts.small)
    detail = fitted(draw, tile.detail, fonts.small, SIDE)
    draw.text((x, bottom + 3 + _LINE), detail, FAINT, fonts.small)
