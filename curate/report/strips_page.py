"""Renders strips of pictures under some remarks: the page of an answer, of one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from curate.report.contact_sheets import Strip
from shared.pages.page import render_page


def strips_page(
    title: str,
    figures: Sequence[tuple[str, str]],
    remarks: Sequence[str],
    table: Sequence[Sequence[str]],
    strips: Sequence[Strip],
    thumbs: Mapping[tuple[str | None, str], bytes],
) -> str:
    """Return the page: `figures` (value, name) in boxes, `remarks`, rows of a table, then the strips.

    `thumbs` are the JPEGs of the tiles by `(seed, key)`. What comes from outside is escaped.
    """
    return render_page(
        Path(__file__).with_name("strips.html"),
        title=title,
        figures=figures,
        remarks=remarks,
        table=table,
        strips=strips,
        thumbs=thumbs,
    )
