"""Draws sheets of captioned pictures as PNGs, for where a page of HTML cannot go."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from shared.progress import printable

INK, FAINT, FRAME, MARK, PAPER = "#1c2833", "#6b7780", "#d5dbdf", "#2471a3", "#f6f7f8"
MARGIN, GAP, LINE = 20, 10, 15  # pixels; LINE is the height of a line of small text
TITLE, NOTE, HEADING = 30, 22, 28  # pixels that each takes with the space below it
CAPTIONS = 2 * LINE + 3 * GAP // 2  # pixels below a tile's frame, where its detail is one line
DETAIL = 3
"""Lines that a tile's detail may take."""


@dataclass(frozen=True)
class Tile:
    """A picture in a frame, with a line of text under it, and one to three of detail."""

    image: Image.Image | None
    caption: str
    detail: str = ""
    mark: bool = False
    """The tiles behind it are compared with it."""
    absent: str = ""
    """Text in place of a missing image."""


@dataclass(frozen=True)
class Strip:
    """Tiles under a common heading."""

    heading: str
    tiles: Sequence[Tile]


def draw_sheet(
    title: str, strips: Sequence[Strip], *, side: int, columns: int, note: str = ""
) -> Image.Image:
    """Return a sheet of tiles whose pictures are at most `side` pixels wide, `columns` in a line."""
    fonts = _fonts()
    cell = side + 2 + GAP
    frames = [_frame_height(strip, side) for strip in strips]
    details = [[_lines(tile.detail, fonts["small"], side) for tile in s.tiles] for s in strips]
    rows = [
        frame + CAPTIONS + LINE * (max([1, *map(len, detail)]) - 1)
        for frame, detail in zip(frames, details, strict=True)
    ]
    heights = [
        bool(strip.heading) * HEADING + -(-len(strip.tiles) // columns) * row
        for strip, row in zip(strips, rows, strict=True)
    ]
    top = MARGIN + TITLE + bool(note) * NOTE
    sheet = Image.new(
        "RGB", (2 * MARGIN + columns * cell - GAP, top + sum(heights) + MARGIN), "white"
    )
    draw = ImageDraw.Draw(sheet)
    room = sheet.width - 2 * MARGIN

    def write(x: int, y: int, text: str, font: str, ink: str, width: int) -> None:
        draw.text((x, y), fitted(text, fonts[font], width), ink, fonts[font])

    write(MARGIN, MARGIN, title, "title", INK, room)
    write(MARGIN, MARGIN + TITLE - 4, note, "small", FAINT, room)
    for strip, frame, detail, row, height in zip(
        strips, frames, details, rows, heights, strict=True
    ):
        write(MARGIN, top + 4, strip.heading, "heading", INK, room)
        first = top + bool(strip.heading) * HEADING
        for place, tile in enumerate(strip.tiles):
            line, column = divmod(place, columns)
            x, y = MARGIN + column * cell, first + line * row
            box = (x, y, x + side + 1, y + frame + 1)
            draw.rectangle(box, PAPER)
            if tile.image is None:
                text = "\n".join(textwrap.wrap(printable(tile.absent[:100]), side // 7))
                middle = (x + side // 2, y + frame // 2)
                draw.multiline_text(
                    middle, text, FAINT, fonts["small"], anchor="mm", align="center"
                )
            else:
                left, above = (side - tile.image.width) // 2, (frame - tile.image.height) // 2
                sheet.paste(tile.image, (x + 1 + left, y + 1 + above))
            draw.rectangle(box, None, MARK if tile.mark else FRAME, 1 + tile.mark)
            write(x, y + frame + 4, tile.caption, "small", MARK if tile.mark else INK, side)
            for number, text in enumerate(detail[place], start=1):
                write(x, y + frame + 4 + number * LINE, text, "small", FAINT, side)
        top += height
    return sheet


def png(image: Image.Image) -> bytes:
    """Return the picture as a PNG file."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Return the text, cut in its middle where it is wider than `width` pixels.

    Keys differ at their ends, reasons at their beginnings: both stay.
    """
    text = printable(text[:1000])
    if font.getlength(text) <= width:
        return text
    kept = len(text)
    while kept > 2:
        kept -= 1
        shorter = f"{text[: (kept + 1) // 2]}…{text[-(kept // 2) :]}"
        if font.getlength(shorter) <= width:
            return shorter
    return "…"


def with_line_above(image: Image.Image, text: str, paper: str) -> Image.Image:
    """Return a picture under a line of small text on `paper`, cut where the picture is narrower."""
    font = _fonts()["small"]
    canvas = Image.new("RGB", (image.width, image.height + LINE), paper)
    ImageDraw.Draw(canvas).text((2, 0), fitted(text, font, image.width - 4), INK, font)
    canvas.paste(image, (0, LINE))
    return canvas


def _lines(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Return the text in at most `DETAIL` lines of that width in pixels; the last holds the rest."""
    words, lines = printable(text[:1000]).split(" "), [""]
    for place, word in enumerate(words):
        longer = f"{lines[-1]} {word}".lstrip()
        if not lines[-1] or font.getlength(longer) <= width:
            lines[-1] = longer
        elif len(lines) < DETAIL:
            lines.append(word)
        else:
            return [*lines[:-1], " ".join([lines[-1], *words[place:]])]
    return lines


def _frame_height(strip: Strip, side: int) -> int:
    return max([side, *(tile.image.height for tile in strip.tiles if tile.image)])


def _fonts() -> dict[str, ImageFont.FreeTypeFont]:
    """Return the sizes of type on a sheet, in the typeface that matplotlib brings along."""
    import matplotlib as mpl

    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
    faces = {"title": ("-Bold", 17), "heading": ("", 13), "small": ("", 11)}
    return {
        name: ImageFont.truetype(str(folder / f"DejaVuSans{weight}.ttf"), size)
        for name, (weight, size) in faces.items()
    }
