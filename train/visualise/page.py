"""The page of figures: self-contained HTML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shared.page import render_page
from train.visualise.sheets import SIDE, Sheet, jpeg


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
    return render_page(
        Path(__file__).with_name("figures.html"),
        title=title,
        figures=facts,
        remarks=remarks,
        sheets=sheets,
        command=command,
        side=SIDE,
        jpeg_of=jpeg,
    )
