"""Sheets of captioned pictures: the figures of a model."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from shared.sheets import Strip, draw_sheet, png

SIDE = 180
"""Pixels of a picture's side, on the page and on a sheet."""
COLUMNS = 7


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


def jpeg(image: Image.Image) -> bytes:
    """Return the picture as a JPEG file."""
    stream = io.BytesIO()
    # Without subsampling: patches are blocks of colour with sharp edges.
    image.save(stream, "JPEG", quality=85, subsampling=0)
    return stream.getvalue()


def _drawn(title: str, strips: Sequence[Strip]) -> bytes:
    columns = min(COLUMNS, max(4, *(len(strip.tiles) for strip in strips)))  # titles need room
    return png(draw_sheet(title, strips, side=SIDE, columns=columns))
