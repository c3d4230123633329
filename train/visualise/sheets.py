"""Sheets of captioned pictures: the figures of a model."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from shared.pages.sheets import Strip, draw_sheet, png

SIDE = 180
"""Pixels of a picture's side, on the page and on a sheet."""
COLUMNS = 7
BETWEEN = "#b8bfc4"
"""The colour between pictures: quiet on white and on black."""


@dataclass(frozen=True)
class Sheet:
    """Strips of one kind. `name` begins its files' names, `notes` say what is to be seen and how."""

    name: str
    title: str
    notes: tuple[str, ...]
    strips: tuple[Strip, ...]
    apart: bool = False
    """Each strip has a PNG of its own."""

    @property
    def side(self) -> int:
        """Return the width of its widest picture, in pixels."""
        images = [tile.image for strip in self.strips for tile in strip.tiles if tile.image]
        return max([SIDE, *(image.width for image in images)])

    def pngs(self) -> dict[str, bytes]:
        """Return the PNGs by file name."""
        if not self.apart:
            return {f"{self.name}.png": self._drawn(self.strips)}
        return {
            f"{self.name}-{number:02d}.png": self._drawn([strip])
            for number, strip in enumerate(self.strips, start=1)
        }

    def _drawn(self, strips: Sequence[Strip]) -> bytes:
        most = max(1, COLUMNS * SIDE // self.side)
        # Titles need room.
        columns = min(most, max(4 * SIDE // self.side, *(len(strip.tiles) for strip in strips)))
        return png(draw_sheet(self.title, strips, side=self.side, columns=columns))


def stacked(images: Sequence[Image.Image]) -> Image.Image:
    """Return pictures of one width, the first on top."""
    width, gap = images[0].width, 4
    height = sum(image.height + gap for image in images) - gap
    canvas = Image.new("RGB", (width, height), BETWEEN)
    top = 0
    for image in images:
        canvas.paste(image, (0, top))
        top += image.height + gap
    return canvas


def under(picture: Image.Image, columns: Sequence[Image.Image]) -> Image.Image:
    """Return columns of pictures side by side, under the middle of one that is as wide as each."""
    gap = 4
    width = sum(column.width + gap for column in columns) - gap
    height = picture.height + gap + max(column.height for column in columns)
    canvas = Image.new("RGB", (width, height), BETWEEN)
    canvas.paste(picture, ((width - picture.width) // 2, 0))
    for place, column in enumerate(columns):
        canvas.paste(column, (place * (picture.width + gap), picture.height + gap))
    return canvas


def jpeg(image: Image.Image) -> bytes:
    """Return the picture as a JPEG file."""
    stream = io.BytesIO()
    # Without subsampling: patches are blocks of colour with sharp edges.
    image.save(stream, "JPEG", quality=85, subsampling=0)
    return stream.getvalue()
