"""The lettering and the colours of the pictures that reports draw."""

from __future__ import annotations

from pathlib import Path

from PIL import ImageDraw, ImageFont

from shared.progress import printable

INK, FAINT, FRAME, MARK, PAPER = "#1c2833", "#6b7780", "#d5dbdf", "#2471a3", "#f6f7f8"


class Fonts:
    """The sizes of type on a sheet, in the typeface that matplotlib brings along."""

    def __init__(self) -> None:
        import matplotlib as mpl

        folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
        self.title = ImageFont.truetype(str(folder / "DejaVuSans-Bold.ttf"), 17)
        self.heading = ImageFont.truetype(str(folder / "DejaVuSans.ttf"), 13)
        self.small = ImageFont.truetype(str(folder / "DejaVuSans.ttf"), 11)


def fitted(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Return the text, cut in its middle where it is wider than `width` pixels.

    Keys differ at their ends, reasons at their beginnings: both stay.
    """
    text = printable(text[:1000])
    if draw.textlength(text, font) <= width:
        return text
    kept = len(text)
    while kept > 2:
        kept -= 1
        shorter = f"{text[: (kept + 1) // 2]}…{text[-(kept // 2) :]}"
        if draw.textlength(shorter, font) <= width:
            return shorter
    return "…"
