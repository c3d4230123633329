"""The tables of a part: facts, looks and scores of its images, a row each, in the order of names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from curate.catalogue.content import name_of
from curate.catalogue.part_files import COLUMNS, FACTS, ROW_GROUP, SCORES
from curate.embedding.reading import Row
from curate.filters.look import Look
from curate.filters.scores import score_column
from shared.datasets.dataset import Part
from shared.datasets.parts import Member


def write_facts(rows: Sequence[Row], part: Part, folder: Path) -> None:
    """Write what is known of a part's images without their pictures: `part_files.COLUMNS`."""
    values = {
        "name": [name_of(row.member, part) for row in rows],
        "member": [row.member.member for row in rows],
        "url": [row.member.url for row in rows],
        "caption": [row.member.caption for row in rows],
        "sha256": [row.sha256 for row in rows],
        "width": [row.picture.header and row.picture.header.width for row in rows],
        "height": [row.picture.header and row.picture.header.height for row in rows],
        "format": [row.picture.header and row.picture.header.format for row in rows],
        "bytes": [row.size for row in rows],
        "offset": [row.member.offset for row in rows],
        "problem": [row.picture.problem for row in rows],
        "contrast": [row.picture.contrast for row in rows],
    }
    pq.write_table(
        pa.table(values, COLUMNS), folder / FACTS, row_group_size=ROW_GROUP, compression="zstd"
    )


def write_look(rows: Sequence[Row], look: Look, folder: Path) -> None:
    """Write what a look took of each picture; null where there is none."""
    values = {name: [row.picture.looks.get(name) for row in rows] for name in look.columns.names}
    pq.write_table(
        pa.table(values, look.columns),
        folder / look.file,
        row_group_size=ROW_GROUP,
        compression="zstd",
    )


def write_scores(members: Sequence[Member], columns: tuple[str, ...], folder: Path) -> None:
    """Write columns of the crawl's own tables as numbers; null for what is none."""
    scores = {
        score_column(column): pa.array(
            [_number(member.columns.get(column)) for member in members], pa.float64()
        )
        for column in columns
    }
    pq.write_table(pa.table(scores), folder / SCORES, row_group_size=ROW_GROUP, compression="zstd")


def _number(value: object) -> float | None:
    try:
        return None if value is None else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
