"""What a section of the report is, and what it is given to work with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
"""The repository."""

Row = dict[str, Any]
"""A line of a section's table: JSON-able values by the names of the columns."""


class NothingToMeasureError(Exception):
    """Raised by a section that this machine or this checkout has nothing for, with the reason."""


@dataclass(frozen=True)
class Context:
    """What a section is told. It travels to the section's process."""

    device: str
    """`cuda` or `cpu`."""
    quick: bool
    """Tiny sizes: to see that everything runs, not to measure."""
    scratch: Path
    """A folder for whatever the section writes; removed at the end."""
    cache: Path | None = None
    """A folder for what torch.compile makes, which sections share."""
    rows: Mapping[str, list[Row]] = field(default_factory=dict)
    """What the sections before it found, by their names."""

    def best(self, section: str, column: str) -> float | None:
        """Return the largest value of a column of a finished section; None where there is none."""
        values = [row[column] for row in self.rows.get(section, []) if column in row]
        return max(values, default=None)


@dataclass(frozen=True)
class Section:
    """A part of the report: a function called in a process of its own."""

    name: str
    target: str
    """`module:function`, called with the context, `emit`, and `arguments`."""
    arguments: tuple[Any, ...] = ()
    needs: float = 15
    """Seconds below which it is not begun."""
    most: float = 60
    """Seconds after which it is stopped."""

    def run(self, context: Context, emit: Callable[[Row], None]) -> None:
        """Call the function, which gives each row to `emit` as soon as it is measured."""
        module, _, function = self.target.partition(":")
        getattr(import_module(module), function)(context, emit, *self.arguments)
