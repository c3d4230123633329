"""The DuckDB query behind each figure of the page, as it can be pasted beside a result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from curate.report.sources import REASONS, SOURCES_OF, YIELD

TABLES = ("images", "duplicates", "retrieval", "pairs", "regrouped", "balance")


def queries(out: Path, relevance: float | None) -> Mapping[str, str]:
    """Return by name the queries, in which a table is its files below the folder of the result."""
    at = "" if relevance is None else f"{relevance!r}::FLOAT"
    told = {
        "funnel": "SELECT decision, count(*) AS images FROM {images} GROUP BY ALL ORDER BY ALL",
        "relevance": (
            "SELECT seed_similarity >= " + at + " AS reach, decision, count(*) AS images\n"
            "FROM {images} WHERE seed_similarity IS NOT NULL GROUP BY ALL ORDER BY ALL"
            if at
            else "SELECT decision, count(*) AS images, min(seed_similarity), max(seed_similarity)\n"
            "FROM {images} WHERE seed_similarity IS NOT NULL GROUP BY ALL ORDER BY ALL"
        ),
        "copies": "FROM {regrouped} ORDER BY threshold",
        "pairs": (
            "SELECT floor(similarity * 100) / 100 AS similarity, count(*) AS pairs\n"
            "FROM {pairs} GROUP BY ALL ORDER BY ALL"
        ),
        "groups": (
            'SELECT "group", count(*) AS images, min(similarity) AS least\n'
            'FROM {duplicates} GROUP BY ALL ORDER BY images DESC, "group" LIMIT 20'
        ),
        "seeds": (
            "SELECT nearest_seed, count(*) AS images FROM {images}\n"
            "WHERE decision = 'kept' GROUP BY ALL ORDER BY images DESC, nearest_seed LIMIT 20"
        ),
        "clusters": (
            "SELECT cluster, count(*) AS images, count(*) FILTER (decision = 'kept') AS kept\n"
            "FROM {images} WHERE cluster IS NOT NULL GROUP BY ALL ORDER BY images DESC, cluster"
        ),
        "balance": "SELECT path, images, kept, weight FROM {balance} ORDER BY images DESC, path",
        **{
            name: YIELD.format(source=source, images="{images}")
            for name, source in SOURCES_OF.items()
        },
        "reasons": REASONS,
        "measured": "FROM 'reports/funnel.json'",
    }
    files = {name: _files(out, name) for name in TABLES}
    # Not `format`: regular expressions have braces too.
    return {name: _fill(_straight(query), files) for name, query in told.items()}


def _files(out: Path, name: str) -> str:
    several = (out / "reports" / f"{name}.parquet").is_dir()
    return f"'reports/{name}.parquet{'/*.parquet' if several else ''}'"


def _fill(query: str, files: Mapping[str, str]) -> str:
    for name, path in files.items():
        query = query.replace(f"{{{name}}}", path)
    return query


def _straight(query: str) -> str:
    return "\n".join(line.strip() for line in query.strip().splitlines())
