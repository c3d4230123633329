"""Asks the reports of a finished run in SQL: DuckDB over its tables, with nothing else in reach.

A query comes from whoever types it, and may be pasted from anywhere: it reads the tables of this run,
and neither files, nor the network, nor the settings of the database.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from curate.report.tables import connect, read_funnel, table_files
from shared.errors import LvdError

ALIASES = {"copies": "duplicates"}
"""Names that tables have besides the stems of their files."""
ROWS = 65_536
"""Rows of one batch of an answer."""
LONGEST = 300
"""Characters that are told of an error of DuckDB's, which may list all columns."""


@contextmanager
def asked(out: Path, sql: str) -> Iterator[pa.RecordBatchReader]:
    """Give the answer to one SELECT over the tables of `out`, in batches of `ROWS` rows.

    The tables are those of `out/reports`, by the stems of their names, and `ALIASES`. Raises LvdError,
    in one line, where `out` is no finished run and for SQL that is wrong, that is no SELECT, or that
    asks for anything outside.
    """
    read_funnel(out)
    with tempfile.TemporaryDirectory() as spill, connect(spill) as tables:
        tables.execute("SET python_enable_replacements = false")
        for name, files in report_tables(out).items():
            tables.register(name, ds.dataset([str(path) for path in files], format="parquet"))
        for name, stem in ALIASES.items():
            tables.execute(f"CREATE VIEW {name} AS FROM {stem}")
        # What DuckDB spills to stays within reach of a query: an empty folder of its own.
        tables.execute("SET enable_external_access = false")
        tables.execute("SET lock_configuration = true")
        try:
            statements = tables.extract_statements(sql)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise LvdError("query: say one SELECT: tables are only read")
            yield tables.sql(statements[0]).to_arrow_reader(ROWS)
        except (duckdb.Error, pa.ArrowException) as error:
            raise LvdError(f"query: {_in_one_line(error)} ({_names(out)})") from error


def report_tables(out: Path) -> dict[str, list[Path]]:
    """Return the files of each table of a result, by the table's name."""
    stems = sorted(path.stem for path in (out / "reports").glob("*.parquet"))
    return {stem: table_files(out, stem) for stem in stems}


def _names(out: Path) -> str:
    return f"tables: {', '.join(sorted([*report_tables(out), *ALIASES]))}"


def _in_one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(line for line in lines if not line.startswith(("LINE ", "^")))
    return said if len(said) <= LONGEST else f"{said[:LONGEST]}..."
