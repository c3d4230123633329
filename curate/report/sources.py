"""Where the kept images come from, and for what reasons others could not be used."""

from __future__ import annotations

from typing import Any

import duckdb

from curate.report.tables import rows

MOST = 12
"""Rows of a table."""
SOURCES_OF = {
    "domain": r"regexp_extract(url, '^[A-Za-z][A-Za-z0-9+.-]*://(?:[^/@]*@)?([^/:?#]+)', 1)",
    "part": "part",
}
YIELD = """
    SELECT {source} AS source, count(*) AS images, count(*) FILTER (decision = 'kept') AS kept,
        count(*) FILTER (decision = 'duplicate') AS copies,
        count(*) FILTER (decision = 'irrelevant') AS irrelevant
    FROM {images} WHERE {source} <> '' GROUP BY ALL ORDER BY images DESC, source
"""
REASONS = r"""
    SELECT decision, regexp_replace(reason, '[0-9]+([.][0-9]+)?', '#', 'g') AS kind,
        count(*) AS images
    FROM {images} WHERE decision IN ('corrupt', 'unsafe', 'low_quality')
    GROUP BY ALL ORDER BY decision, images DESC, kind
"""
"""Reasons that differ in numbers only are one."""


def yields(tables: duckdb.DuckDBPyConnection) -> dict[str, list[dict[str, Any]]]:
    """Return by kind of source the largest `MOST`; none of a kind that the crawl does not tell."""
    found = {
        name: rows(tables, f"{YIELD.format(source=source, images='images')} LIMIT {MOST}")
        for name, source in SOURCES_OF.items()
    }
    return {name: there for name, there in found.items() if there}


def reasons(tables: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """Return `decision`, `kind` and `images` of the most frequent reasons of each decision."""
    return rows(
        tables,
        f"WITH told AS ({REASONS.format(images='images')}) FROM told QUALIFY row_number() OVER "
        f"(PARTITION BY decision ORDER BY images DESC, kind) <= {MOST} "
        "ORDER BY decision, images DESC, kind",
    )
