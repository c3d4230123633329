"""Draws a contact sheet as one PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping

from PIL import Image

from curate.report import contact_sheets
from curate.report.contact_sheets import COLUMNS, Sheet
from curate.report.thumbnails import SIDE
from shared.pages.sheets import Strip, Tile, draw_sheet, png


def sheet_png(sheet: Sheet, thumbs: Mapping[tuple[str | None, str], bytes]) -> bytes:
    """Return the PNG of a sheet, `thumbs` being its thumbnails as JPEGs by `(seed, key)`."""

    def tile(of: contact_sheets.Tile) -> Tile:
        jpeg = thumbs.get((of.seed, of.key))
        image = jpeg and Image.open(io.BytesIO(jpeg), formats=["JPEG"])
        return Tile(image or None, of.caption, of.key, bool(of.mark), of.absent)

    strips = [Strip(strip.heading, [tile(of) for of in strip.tiles]) for strip in sheet.strips]
    return png(draw_sheet(sheet.title, strips, side=SIDE, columns=COLUMNS, note=sheet.note))
