"""The report: gpu.json and gpu.md, whole after every row, so that a kill keeps what was measured."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.section import Row

JSON, TABLE = "gpu.json", "gpu.md"
WAITING = "waiting"


class Report:
    """Sections by name, in order; each change is on disk when the method returns."""

    def __init__(self, out: Path, about: dict[str, Any], sections: Iterable[str]) -> None:
        """Begin a report in the folder `out`, in place of one that is there."""
        out.mkdir(parents=True, exist_ok=True)
        self._out = out
        self._about = about
        self.sections: dict[str, dict[str, Any]] = {
            name: {"status": WAITING, "rows": []} for name in sections
        }
        self._write()

    def add(self, section: str, row: Row) -> None:
        """Append a row to a section."""
        self.sections[section]["rows"].append(row)
        self._write()

    def set(self, section: str, **fields: Any) -> None:
        """Set `status`, `seconds` or `reason` of a section."""
        self.sections[section] |= fields
        self._write()

    def set_about(self, **fields: Any) -> None:
        """Set what holds for all sections, such as the card's name."""
        self._about |= fields
        self._write()

    @property
    def rows(self) -> dict[str, list[Row]]:
        """Return the rows of all sections by name."""
        return {name: section["rows"] for name, section in self.sections.items()}

    def markdown(self) -> str:
        """Return the report as Markdown: a heading and a table for each section."""
        lines = ["# One card", "", *(f"- {name}: {value}" for name, value in self._about.items())]
        for name, section in self.sections.items():
            lines += ["", f"## {name}", "", heading(section), ""]
            lines += table(section["rows"])
        return "\n".join(lines).rstrip() + "\n"

    def _write(self) -> None:
        report = {**self._about, "sections": self.sections}
        _replace(self._out / JSON, json.dumps(report, indent=1, allow_nan=False) + "\n")
        _replace(self._out / TABLE, self.markdown())


def heading(section: dict[str, Any]) -> str:
    """Return a section's status in one line."""
    seconds = f" ({section['seconds']:.0f} s)" if "seconds" in section else ""
    reason = f": {section['reason']}" if section.get("reason") else ""
    return f"{section['status']}{seconds}{reason}"


def table(rows: Sequence[Row]) -> list[str]:
    """Return rows as a Markdown table with all of their columns; nothing where there are none."""
    if not rows:
        return []
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(row.get(column)) for column in columns] for row in rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value).replace("|", "\\|")


def _replace(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.part")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
