"""The page of figures: self-contained HTML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shared.pages.page import render_page
from train.visualise.sheets import Sheet, jpeg

HEADINGS = ("model", "input", "patches", "heads", "registers", "pooled by")


def figures_page(
    title: str,
    models: Sequence[Sequence[str]],
    remarks: Sequence[str],
    sheets: Sequence[Sheet],
    judgements: Sequence[str],
    command: str,
) -> str:
    """Return the page: a row of `HEADINGS` for each model, remarks, sheets, and what to think of it.

    Everything that comes from outside is escaped, and nothing is a link.
    """
    return render_page(
        Path(__file__).with_name("figures.html"),
        title=title,
        figures=[],
        headings=HEADINGS,
        models=models,
        remarks=remarks,
        sheets=sheets,
        judgements=judgements,
        command=command,
        jpeg_of=jpeg,
    )
