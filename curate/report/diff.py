"""Compares two finished runs: which images they decided differently about, and why."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from curate.report.tables import connect, read_funnel, rows, table_patterns, threshold
from shared.config import flat
from shared.storage.files import read_optional

SCHEMA = pa.schema(
    [
        ("key_a", pa.string()),
        ("key_b", pa.string()),
        ("sha256", pa.string()),
        ("decision_a", pa.string()),
        ("decision_b", pa.string()),
        ("reason_a", pa.string()),
        ("reason_b", pa.string()),
        ("matched", pa.string()),
    ]
)
"""`matched`: `key`, the same key and bytes; `content`, the same bytes at another key; `changed`, other
bytes at the same key; `a` or `b`, in that run's crawl only, where the other's columns are null."""
EXAMPLES = 8
_THRESHOLDS = ("dedup", "retrieve", "holdout")

_MATCH = """
    CREATE TABLE matched AS WITH same AS (
        SELECT a.key AS key_a, b.key AS key_b, 'key' AS matched
        FROM a JOIN b ON a.key = b.key AND a.sha256 IS NOT DISTINCT FROM b.sha256
    ),
    rest_a AS (
        SELECT key, sha256, row_number() OVER (PARTITION BY sha256 ORDER BY key) AS place
        FROM a ANTI JOIN same ON a.key = key_a
    ),
    rest_b AS (
        SELECT key, sha256, row_number() OVER (PARTITION BY sha256 ORDER BY key) AS place
        FROM b ANTI JOIN same ON b.key = key_b
    ),
    moved AS (
        SELECT rest_a.key AS key_a, rest_b.key AS key_b, 'content' AS matched
        FROM rest_a JOIN rest_b USING (sha256, place)
    ),
    changed AS (
        SELECT rest_a.key AS key_a, rest_b.key AS key_b, 'changed' AS matched
        FROM (FROM rest_a ANTI JOIN moved ON rest_a.key = key_a) AS rest_a
        JOIN (FROM rest_b ANTI JOIN moved ON rest_b.key = key_b) AS rest_b USING (key)
    ),
    known AS (FROM same UNION ALL FROM moved UNION ALL FROM changed)
    FROM known
    UNION ALL SELECT key, NULL, 'a' FROM a ANTI JOIN known ON a.key = key_a
    UNION ALL SELECT NULL, key, 'b' FROM b ANTI JOIN known ON b.key = key_b
"""

_COMPARED = """
    CREATE TABLE compared AS
    SELECT key_a, key_b, coalesce(a.sha256, b.sha256) AS sha256,
        a.decision AS decision_a, b.decision AS decision_b,
        a.reason AS reason_a, b.reason AS reason_b, matched,
        a.output_shard AS shard_a, a.output_key AS output_a,
        b.output_shard AS shard_b, b.output_key AS output_b
    FROM matched LEFT JOIN a ON a.key = key_a LEFT JOIN b ON b.key = key_b
"""
_DIFFERENT = f"""
    SELECT {", ".join(SCHEMA.names)} FROM compared
    WHERE decision_a IS DISTINCT FROM decision_b ORDER BY coalesce(key_a, key_b), key_b
"""


@dataclass(frozen=True)
class Difference:
    """What two runs say differently; counts are of images."""

    outs: tuple[Path, Path]
    crawls: tuple[str, str]
    matched: dict[str, int]
    """By how they were matched, as in `SCHEMA`; zeros included."""
    kept: dict[str, int]
    """`both`, `a`, `b`: kept by both, only by the first, only by the second."""
    moves: list[tuple[str | None, str | None, int]]
    """Decision by the first and by the second, and how many; where they differ, the most first."""
    settings: list[tuple[str, Any, Any]]
    """Settings, and thresholds that were used, by name, where the two have others."""
    examples: list[dict[str, Any]]
    """Rows of `SCHEMA`, `EXAMPLES` for each kind of move, drawn by a hash of the key; with where the
    image is in the shards of a run that kept it: `shard_a`, `output_a`, `shard_b`, `output_b`."""


def diff(
    a: Path, b: Path, write: Callable[[pa.RecordBatchReader], None] | None = None
) -> Difference:
    """Compare the runs in `a` and `b`.

    `write` is called with a row for each image about which they decided differently, by key, in the
    columns of `SCHEMA`.

    Images are the same where key and bytes are; then by their bytes alone, in the order of their keys;
    then by their keys alone. DuckDB holds keys and hashes of both, and spills to disk.
    """
    funnels = [read_funnel(out) for out in (a, b)]
    runs = [read_optional(out / "run.json") for out in (a, b)]
    with tempfile.TemporaryDirectory() as spill, connect(spill) as tables:
        for name, out in (("a", a), ("b", b)):
            tables.read_parquet(table_patterns(out, "images")).create_view(name)
        tables.execute(_MATCH)
        tables.execute(_COMPARED)
        if write is not None:
            write(tables.sql(_DIFFERENT).to_arrow_reader())
        return Difference(
            (a, b),
            (str(runs[0].get("crawl", "")), str(runs[1].get("crawl", ""))),
            _counts(tables, "matched", ("key", "content", "changed", "a", "b")),
            _kept(tables),
            _moves(tables),
            [*_thresholds(funnels), *_settings(runs)],
            _examples(tables),
        )


def _counts(
    tables: duckdb.DuckDBPyConnection, column: str, names: tuple[str, ...]
) -> dict[str, int]:
    found = rows(tables, f"SELECT {column} AS name, count(*) AS images FROM compared GROUP BY 1")
    return {**dict.fromkeys(names, 0), **{row["name"]: row["images"] for row in found}}


def _kept(tables: duckdb.DuckDBPyConnection) -> dict[str, int]:
    [row] = rows(
        tables,
        """
        SELECT count(*) FILTER (a AND b) AS both, count(*) FILTER (a AND NOT b) AS a,
            count(*) FILTER (b AND NOT a) AS b
        FROM (
            SELECT decision_a IS NOT DISTINCT FROM 'kept' AS a,
                decision_b IS NOT DISTINCT FROM 'kept' AS b FROM compared
        )
        """,
    )
    return row


def _moves(tables: duckdb.DuckDBPyConnection) -> list[tuple[str | None, str | None, int]]:
    found = rows(
        tables,
        """
        SELECT decision_a, decision_b, count(*) AS images FROM compared
        WHERE decision_a IS DISTINCT FROM decision_b
        GROUP BY 1, 2 ORDER BY images DESC, decision_a, decision_b
        """,
    )
    return [(row["decision_a"], row["decision_b"], row["images"]) for row in found]


def _examples(tables: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    return rows(
        tables,
        """
        SELECT * FROM compared WHERE decision_a IS DISTINCT FROM decision_b
        QUALIFY row_number() OVER (
            PARTITION BY decision_a, decision_b
            ORDER BY md5(coalesce(key_a, key_b)), key_a, key_b
        ) <= ?
        ORDER BY decision_a, decision_b, key_a, key_b
        """,
        [EXAMPLES],
    )


def _thresholds(funnels: list[dict[str, Any]]) -> list[tuple[str, Any, Any]]:
    used = {name: [threshold(funnel, name) for funnel in funnels] for name in _THRESHOLDS}
    return [(f"{name} threshold used", a, b) for name, (a, b) in used.items() if a != b]


def _settings(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, Any, Any]]:
    a, b = (flat(run.get("settings", {})) for run in runs)
    names = sorted({*a, *b} - {"crawl"})
    return [(name, a.get(name), b.get(name)) for name in names if a.get(name) != b.get(name)]
