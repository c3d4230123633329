"""Chooses the few hundred images by which a person can judge a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import duckdb

from curate.report.tables import rows

COLUMNS = 8  # tiles in a line
REJECTED = ("corrupt", "unsafe", "low_quality", "holdout", "over_budget")


@dataclass(frozen=True)
class Tile:
    """One image on a sheet."""

    key: str
    caption: str
    detail: str = ""  # shown when the pointer is over it
    shard: str | None = None  # of a kept image
    shard_key: str | None = None
    seed: str | None = None  # the seed of which `key` names an image; None: a crawled one
    mark: str = ""  # "reference": the tiles after it are compared with it
    hidden: bool = False  # it must not be drawn
    absent: str = "no picture"  # text in place of a picture


@dataclass(frozen=True)
class Strip:
    """A heading and the tiles under it."""

    heading: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Sheet:
    """A contact sheet: `name` is that of its file, `note` tells how its images were chosen."""

    name: str
    title: str
    note: str
    strips: tuple[Strip, ...]
    pairs: bool = False  # each two tiles belong together


def contact_sheets(
    tables: duckdb.DuckDBPyConnection,
    relevance: float | None,
    dedup: float | None,
) -> list[Sheet]:
    """Return the sheets of a run that have an image on them, in reading order.

    `relevance` and `dedup` are the run's thresholds, for the text. The choice depends only on the
    tables: the same run gives the same sheets.
    """
    sheets = [
        _kept(tables),
        _threshold(tables, relevance),
        _retrieval(tables),
        _largest_groups(tables),
        _borderline_copies(tables, dedup),
        _rejects(tables),
    ]
    return [sheet for sheet in sheets if sheet.strips]


def _kept(tables: duckdb.DuckDBPyConnection) -> Sheet:
    # md5 gives a random order that is the same in every version of DuckDB.
    found = rows(
        tables,
        "SELECT * FROM images WHERE decision = 'kept' ORDER BY md5(key), key LIMIT ?",
        [5 * COLUMNS],
    )
    found.sort(key=lambda row: -row["seed_similarity"])
    return Sheet(
        "kept",
        "Kept: what a model will train on",
        "Drawn at random, the most similar to a seed image first.",
        _strips([("", [_similarity_tile(row) for row in found])]),
    )


def _threshold(tables: duckdb.DuckDBPyConnection, relevance: float | None) -> Sheet:
    query = (
        "SELECT * FROM images WHERE decision {decisions} AND seed_similarity IS NOT NULL"
        " ORDER BY seed_similarity {order}, key LIMIT ?"
    )
    kept = query.format(decisions="IN ('kept', 'over_budget')", order="ASC")
    rejected = query.format(decisions="= 'irrelevant'", order="DESC")
    least, most = (rows(tables, one, [2 * COLUMNS]) for one in (kept, rejected))
    title = "What just became relevant, and what just did not"
    text = "A strategy without a threshold may take an image and leave a more similar one."
    if relevance is not None:
        title = f"On the two sides of the relevance threshold ({relevance:.4g})"
        text = "If what is above is wanted and what is below is not, the threshold is right."
    return Sheet(
        "threshold",
        title,
        text,
        _strips(
            [
                ("The least similar that are relevant", [_similarity_tile(r) for r in least[::-1]]),
                ("The most similar that are not", [_similarity_tile(row) for row in most]),
            ]
        ),
    )


def _retrieval(tables: duckdb.DuckDBPyConnection) -> Sheet:
    found = rows(
        tables,
        """
        WITH kept AS (
            SELECT images.*, seed FROM images JOIN retrieval USING (key)
            WHERE decision = 'kept' AND rank = 0
        ), brought AS (
            SELECT nearest_seed, seed, count(*) AS images FROM kept GROUP BY 1, 2
        ), chosen AS (
            (FROM brought ORDER BY images DESC, nearest_seed, seed LIMIT 4)
            UNION (FROM brought ORDER BY md5(nearest_seed), nearest_seed, seed LIMIT 6)
        )
        SELECT * FROM kept JOIN chosen USING (nearest_seed, seed)
        QUALIFY row_number() OVER (
            PARTITION BY nearest_seed, seed ORDER BY seed_similarity DESC, key
        ) < ?
        ORDER BY images DESC, nearest_seed, seed, seed_similarity DESC, key
        """,
        [COLUMNS],
    )
    strips = []
    for key, seed in dict.fromkeys((row["nearest_seed"], row["seed"]) for row in found):
        mine = [row for row in found if (row["nearest_seed"], row["seed"]) == (key, seed)]
        heading = f"{key}: the nearest seed of {_count(mine[0]['images'], 'kept image')}"
        reference = Tile(key, "seed", detail=f"seed {key}", seed=seed, mark="reference")
        strips.append((heading, [reference, *(_similarity_tile(row) for row in mine)]))
    return Sheet(
        "retrieval",
        "What seed images brought in",
        "The seeds that brought in most, and some at random, each with its most similar images.",
        _strips(strips),
    )


def _largest_groups(tables: duckdb.DuckDBPyConnection) -> Sheet:
    found = rows(
        tables,
        """
        WITH largest AS (
            SELECT "group", count(*) AS members FROM duplicates
            GROUP BY 1 ORDER BY members DESC, 1 LIMIT 8
        ), shown AS (
            SELECT * FROM duplicates JOIN largest USING ("group")
            QUALIFY row_number() OVER (
                PARTITION BY "group" ORDER BY representative DESC, similarity, key
            ) <= ?
        )
        SELECT * FROM shown JOIN images USING (key)
        ORDER BY members DESC, shown."group", representative DESC, similarity, key
        """,
        [COLUMNS],
    )
    strips = []
    for group in dict.fromkeys(row["group"] for row in found):
        mine = [row for row in found if row["group"] == group]
        heading = f"{_count(mine[0]['members'], 'image')} in the group of {mine[0]['key']}"
        strips.append((heading, [_copy_tile(row) for row in mine]))
    return Sheet(
        "largest_groups",
        "The largest groups of copies",
        "Framed the representative, which stands for all; then the members least similar to it.",
        _strips(strips),
    )


def _borderline_copies(tables: duckdb.DuckDBPyConnection, dedup: float | None) -> Sheet:
    pairs = 3 * COLUMNS // 2
    least = rows(
        tables,
        """
        SELECT "group", key FROM duplicates WHERE NOT representative AND method = 'near'
        ORDER BY similarity, key LIMIT ?
        """,
        [20 * pairs],
    )
    # One pair of each group, so that a single bad group does not fill the sheet.
    chosen = list({row["group"]: row["key"] for row in reversed(least)}.items())[-pairs:]
    found = rows(
        tables,
        """
        SELECT * FROM duplicates JOIN images USING (key)
        WHERE duplicates."group" IN (SELECT unnest(?::BIGINT[]))
        AND (representative OR key IN (SELECT unnest(?::VARCHAR[])))
        ORDER BY representative DESC, similarity, key
        """,
        [[group for group, _ in chosen], [key for _, key in chosen]],
    )
    representatives = {row["group"]: row for row in found if row["representative"]}
    tiles = [
        _copy_tile(row)
        for member in found
        if not member["representative"]
        for row in (representatives[member["group"]], member)
    ]
    at = "" if dedup is None else f" ({dedup:.4g})"
    return Sheet(
        "borderline_copies",
        f"Copies closest to the duplicate threshold{at}",
        "In pairs, a representative (framed) and its copy. If pairs differ, raise the threshold.",
        _strips([("", tiles)]),
        pairs=True,
    )


def _rejects(tables: duckdb.DuckDBPyConnection) -> Sheet:
    # As many different reasons as possible; reasons that differ in numbers only are the same.
    found = rows(
        tables,
        """
        WITH rejected AS (
            SELECT *, regexp_replace(reason, '[0-9]+', '0', 'g') AS kind
            FROM images WHERE decision IN (SELECT unnest(?::VARCHAR[]))
        ), dealt AS (
            SELECT *,
                row_number() OVER (PARTITION BY decision, kind ORDER BY md5(key), key) AS turn,
                count(*) OVER (PARTITION BY decision) AS images
            FROM rejected
        )
        SELECT * FROM dealt
        QUALIFY row_number() OVER (PARTITION BY decision ORDER BY turn, kind, key) <= ?
        ORDER BY decision, kind, key
        """,
        [list(REJECTED), 2 * COLUMNS],
    )
    strips = []
    for decision in REJECTED:
        mine = [row for row in found if row["decision"] == decision]
        if mine:
            heading = f"{decision}: {_count(mine[0]['images'], 'image')}"
            strips.append((heading, [_rejected_tile(row) for row in mine]))
    return Sheet(
        "rejects",
        "Rejected before any comparison",
        "Of each reason some, at random.",
        _strips(strips),
    )


def _similarity_tile(row: dict[str, Any]) -> Tile:
    return Tile(
        row["key"],
        f"{row['seed_similarity']:.3f}",
        _detail(row, f"cosine {row['seed_similarity']:.4f} with seed {row['nearest_seed']}"),
        row["output_shard"],
        row["output_key"],
    )


def _copy_tile(row: dict[str, Any]) -> Tile:
    if row["representative"]:
        caption, fact, mark = "", "stands for its group", "reference"
    else:
        caption = "exact · " if row["method"] == "exact" else f"{row['similarity']:.3f} · "
        fact, mark = f"{row['method']} copy, cosine {row['similarity']:.4f}", ""
    return Tile(
        row["key"],
        caption + _size(row),
        _detail(row, fact),
        row["output_shard"],
        row["output_key"],
        mark=mark,
        **_hidden_if_unsafe(row),
    )


def _rejected_tile(row: dict[str, Any]) -> Tile:
    detail = _detail(row, row["reason"])
    if row["decision"] == "corrupt":
        size = f"{_size(row)} {row['format'] or ''}".strip() if row["width"] else ""
        caption = size or f"{row['bytes']:,} bytes"
        return Tile(row["key"], caption, detail, hidden=True, absent=row["reason"])
    return Tile(row["key"], row["reason"], detail, **_hidden_if_unsafe(row))


def _hidden_if_unsafe(row: dict[str, Any]) -> dict[str, Any]:
    unsafe = row["decision"] == "unsafe"
    return {"hidden": True, "absent": "unsafe: not shown"} if unsafe else {}


def _detail(row: dict[str, Any], fact: str) -> str:
    facts = [row["key"], f"{_size(row)} {row['format'] or ''}".strip(), row["decision"], fact]
    return " · ".join(facts)


def _size(row: dict[str, Any]) -> str:
    return f"{row['width']}×{row['height']}" if row["width"] else "no size"


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _strips(strips: Iterable[tuple[str, list[Tile]]]) -> tuple[Strip, ...]:
    return tuple(Strip(heading, tuple(tiles)) for heading, tiles in strips if tiles)
