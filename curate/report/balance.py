"""What the summary and the page say of the balance: head and tail before and after."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def describe_balance(told: dict[str, Any]) -> str:
    """Return in words how many images are kept."""
    kept = f"{told['kept']:,} of {told['retrieved']:,} retrieved images are kept"
    return kept if told["drawn"] == told["kept"] else f"{kept}, to be drawn {told['drawn']:,} times"


def describe_levels(told: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a row for each level of clusters, from the top down, under a row of headings."""
    rows: list[tuple[str, ...]] = [
        ("clusters", "largest tenth holds", "as even as clusters of one size")
    ]
    for level in told["levels"]:
        before, after = level["before"], level["after"]
        rows.append(
            (
                f"{level['clusters']:,}",
                f"{100 * before['largest_tenth']:.1f} % before, {100 * after['largest_tenth']:.1f} % after",
                f"{before['effective_clusters']:,.1f} before, {after['effective_clusters']:,.1f} after",
            )
        )
    return rows


def balance_table(told: dict[str, Any]) -> Table:
    """Return `describe_levels` for a terminal."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    headings, *rows = describe_levels(told)
    table.add_column(headings[0], justify="right", no_wrap=True)
    for heading in headings[1:]:
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
