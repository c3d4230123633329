"""Opens the reports of a finished run: the Parquet tables as DuckDB views, the JSON as dicts."""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

from shared.datasets.folders import describe_folder
from shared.errors import LvdError
from shared.storage.files import read_json

_WITHOUT = {
    "pairs": """
        CREATE VIEW pairs AS
        SELECT copy.key, own.key AS better, copy.similarity FROM duplicates AS copy
        JOIN duplicates AS own ON own."group" = copy."group" AND own.representative
        WHERE NOT copy.representative AND copy.method = 'near'
    """,
    "regrouped": """
        CREATE VIEW regrouped AS
        SELECT 0.0::DOUBLE AS threshold, 0 AS copies, 0 AS standing, 0 AS undecided,
            0 AS kept, 0 AS released, 0 AS of_kept, 0 AS groups, 0 AS members WHERE false
    """,
}
SEED_IMAGES = "seed_images"
"""The table of the images of seeds that went into the shards themselves, where there are such."""


def connect(spill: str) -> duckdb.DuckDBPyConnection:
    """Return an empty database in memory that spills to the folder `spill` and fetches no extension."""
    connection = duckdb.connect(
        config={
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "temp_directory": spill,  # its default is below the working directory
        }
    )
    connection.execute("SET enable_progress_bar = false")
    return connection


def open_tables(out: Path) -> duckdb.DuckDBPyConnection:
    """Return a connection with the views `images`, `retrieval`, `duplicates`, `pairs` and `regrouped`.

    Without a table of pairs these are the near copies with what stands for them, and nothing is
    regrouped. A table is one Parquet file or a folder of them. Nothing is read until a query asks for it.
    """
    connection = connect(tempfile.gettempdir())
    for name in ("images", "retrieval", "duplicates"):
        table = connection.read_parquet(table_patterns(out, name))
        if name == "retrieval" and "seed" not in table.columns:  # of a run before several seeds
            table = table.project("*, '' AS seed")
        table.create_view(name)
    for name in ("pairs", "regrouped"):
        if (out / "reports" / f"{name}.parquet").exists():
            connection.read_parquet(table_patterns(out, name)).create_view(name)
        else:  # not asked for, or of a run before there were pairs
            connection.execute(_WITHOUT[name])
    return connection


def table_files(out: Path, name: str) -> list[Path]:
    """Return the files of one of the tables of `out`, in the order of their rows."""
    path = out / "reports" / f"{name}.parquet"
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise _unfinished(out, path)
    return files


def image_files(out: Path) -> Iterator[tuple[str, int, Path]]:
    """Yield the files of the tables of images, each with its table and the number of its first row."""
    tables = [
        "images",
        *([SEED_IMAGES] if (out / "reports" / f"{SEED_IMAGES}.parquet").exists() else []),
    ]
    for name in tables:
        start = 0
        for path in table_files(out, name):
            yield name, start, path
            start += pq.read_metadata(path).num_rows


def table_patterns(out: Path, name: str) -> list[str]:
    """Return `table_files` as DuckDB's patterns."""
    return [glob.escape(str(path)) for path in table_files(out, name)]


def rows(
    connection: duckdb.DuckDBPyConnection, query: str, parameters: list[Any] | None = None
) -> list[dict[str, Any]]:
    """Return the rows of a query as dicts. The query says how many: nothing here is lazy."""
    result = connection.execute(query, parameters or [])
    names = [column[0] for column in result.description]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def read_funnel(out: Path) -> dict[str, Any]:
    """Return `reports/funnel.json`; a run has finished when it has one."""
    path = out / "reports" / "funnel.json"
    try:
        funnel: dict[str, Any] = read_json(path)
        return funnel
    except (OSError, ValueError):
        raise _unfinished(out, path) from None


def threshold(funnel: dict[str, Any], stage: str) -> float | None:
    """Return the threshold that `stage` (dedup, retrieve, holdout) used; None if it had none."""
    value = (funnel.get("thresholds", {}).get(stage) or {}).get("value")
    return None if value is None else float(value)


def _unfinished(out: Path, missing: Path) -> LvdError:
    if not (out / "reports").exists() and (whose := describe_folder(out)):
        return LvdError(f"{out} is {whose}")
    return LvdError(
        f"{out} holds no finished run ({missing.relative_to(out)} is not there or not readable): "
        f"finish it with `lvd-curate run ... --out {out}`"
    )
