"""Writes the tables of a run that tests say in a few columns, with all columns of the contract."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from curate.report.schemas import TABLES


def write_reports(out: Path, images: list[dict]) -> None:
    """Write the tables below `out`: these rows of images, and of what they leave out null."""
    (out / "reports").mkdir(parents=True, exist_ok=True)
    for name, schema in TABLES.items():
        rows = images if name == "images" else []
        pq.write_table(pa.Table.from_pylist(rows, schema), out / "reports" / f"{name}.parquet")
