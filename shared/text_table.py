"""Rows as lines of aligned columns, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shared.progress import printable


def text_table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Return a line of `names` and one for each row; numbers stand at the right, None is empty.

    What could steer a terminal is written out. A cell is as wide as it has to be.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    lines = [list(names), *cells]
    widths = [max(len(line[at]) for line in lines) for at in range(len(names))]
    right = [any(isinstance(row[at], int | float) for row in rows) for at in range(len(names))]
    return [
        "  ".join(
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    ]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}"
    return printable(f"{value:,}" if type(value) is int else str(value))
