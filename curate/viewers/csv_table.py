"""The images of a finished run beside a CSV file that tells what became of each."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from curate.viewers.images import FIELDS, Row

NAME = "images.csv"


def write_csv(folder: Path, blocks: Iterable[list[Row]]) -> None:
    """Write `images.csv`: `path` and the fields of every row, empty where there is no value."""
    with (folder / NAME).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["path", *FIELDS], lineterminator="\n")
        writer.writeheader()
        for rows in blocks:
            writer.writerows(rows)
