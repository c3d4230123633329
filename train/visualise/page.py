"""The page of figures: self-contained HTML."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

from PIL import Image

from shared.page import embedded, escaped, numbers, page
from train.visualise.sheets import SIDE, Sheet, Tile

STYLE = f"""
p {{ max-width: 62rem; }}
.tiles {{ display: grid; margin-bottom: 1rem; grid-template-columns: repeat(auto-fill, {SIDE + 2}px); gap: 10px; }}
figure {{ width: {SIDE + 2}px; }}
figure img {{ display: block; border: 1px solid #d5dbdf; }}
figure.mark img {{ outline: 2px solid #2471a3; outline-offset: -1px; }}
figure.mark span:first-child {{ color: #2471a3; }}
"""


def figures_page(
    title: str,
    facts: Sequence[tuple[str, str]],
    remarks: Sequence[str],
    sheets: Sequence[Sheet],
    command: str,
) -> str:
    """Return the page: `facts` (value, name) in boxes, `remarks` in words, then the sheets.

    Everything that comes from outside is escaped, and nothing is a link.
    """
    parts = [numbers(facts), *(f"<p>{escaped(remark)}</p>" for remark in remarks)]
    for sheet in sheets:
        parts += _section(sheet)
    parts.append(f"<h2>Made by</h2><pre>{escaped(command)}</pre>")
    return page(title, parts, STYLE)


def _section(sheet: Sheet) -> Iterator[str]:
    yield f"<h2>{escaped(sheet.title)}</h2>"
    yield from (f"<p>{escaped(note)}</p>" for note in sheet.notes)
    for strip in sheet.strips:
        if strip.heading:
            yield f"<h3><bdi>{escaped(strip.heading)}</bdi></h3>"
        yield '<div class="tiles">'
        yield from map(_figure, strip.tiles)
        yield "</div>"


def _figure(tile: Tile) -> str:
    words = escaped(f"{tile.caption} · {tile.detail}")
    mark = ' class="mark"' if tile.mark else ""
    return (
        f'<figure{mark} title="{words}">'
        f'<img alt="{words}" width="{tile.image.width}" height="{tile.image.height}" '
        f'src="{embedded(_jpeg(tile.image), "jpeg")}"><figcaption>'
        f"<span><bdi>{escaped(tile.caption)}</bdi></span>"
        f"<span><bdi>{escaped(tile.detail)}</bdi></span></figcaption></figure>"
    )


def _jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    # Without subsampling: patches are blocks of colour with sharp edges.
    image.save(stream, "JPEG", quality=85, subsampling=0)
    return stream.getvalue()
