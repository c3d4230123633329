"""What was kept, what was dropped, and what seeds brought in: some of each, at random."""

from __future__ import annotations

import duckdb

from curate.report.contact_sheets import (
    Sheet,
    Strip,
    copy_tile,
    judged_tiles,
    near_tile,
    rejected_tile,
    seed_tile,
)
from curate.report.tables import rows
from curate.written_cosine import rounded_down
from shared.progress import count

KEPT, DROPPED, BROUGHT = 24, 8, 7
"""Images shown of what was kept, of each decision, and of each seed image."""
SEEDS = 8
_NEAREST = "LEFT JOIN retrieval ON retrieval.key = images.key AND retrieval.rank = 0"


def kept_sample(tables: duckdb.DuckDBPyConnection) -> Sheet:
    """Return kept images, drawn at random, each beside its nearest seed image."""
    return Sheet(
        "kept",
        "Kept",
        "What a model will train on: drawn at random, the most similar to a seed image first, each "
        "beside the seed image that it is nearest to (framed).",
        _strips([_judged_strip(tables, "kept", KEPT)]),
        pairs=True,
    )


def dropped_samples(tables: duckdb.DuckDBPyConnection) -> list[Sheet]:
    """Return a sheet for each decision that dropped images, drawn at random."""
    found = [
        Sheet(
            "duplicate",
            "Dropped: duplicate",
            "Copies at random, each behind the image that stands for it (framed).",
            _strips([_copies(tables)]),
            pairs=True,
        )
    ]
    for decision, why in (
        ("irrelevant", "Not similar enough to a seed image: each beside the nearest one (framed)."),
        (
            "over_budget",
            "Relevant, and beyond a budget: each beside its nearest seed image (framed).",
        ),
    ):
        strip = _judged_strip(tables, decision, DROPPED)
        found.append(Sheet(decision, f"Dropped: {decision}", why, _strips([strip]), pairs=True))
    for decision, why in (
        ("holdout", "Copies of images that a model will be evaluated on, with their groups."),
        ("low_quality", "Of each reason some, at random."),
        ("unsafe", "Of each reason some, at random; their pictures are not shown."),
        ("corrupt", "Of each reason some, at random; there is no picture to show."),
    ):
        found.append(
            Sheet(decision, f"Dropped: {decision}", why, _strips([_rejected(tables, decision)]))
        )
    return [sheet for sheet in found if sheet.strips]


def brought_in(tables: duckdb.DuckDBPyConnection) -> Sheet:
    """Return seed images, those that brought in most and some at random, with what is nearest to them."""
    found = rows(
        tables,
        f"""
        WITH brought AS (
            SELECT seed_key, seed, count(*) FILTER (rank = 0 AND decision = 'kept') AS kept
            FROM retrieval JOIN images USING (key) GROUP BY 1, 2
        ), chosen AS (
            (FROM brought ORDER BY kept DESC, seed_key, seed LIMIT {SEEDS // 2})
            UNION (FROM brought ORDER BY md5(seed_key), seed_key, seed LIMIT {SEEDS})
        ), few AS (FROM chosen ORDER BY kept DESC, seed_key, seed LIMIT {SEEDS})
        SELECT images.*, seed_key, seed, similarity, few.kept
        FROM few JOIN retrieval USING (seed_key, seed) JOIN images USING (key)
        QUALIFY row_number() OVER (
            PARTITION BY seed_key, seed ORDER BY similarity DESC, key
        ) <= {BROUGHT}
        ORDER BY few.kept DESC, seed_key, seed, similarity DESC, key
        """,
    )
    strips = []
    for key, seed in dict.fromkeys((row["seed_key"], row["seed"]) for row in found):
        mine = [row for row in found if (row["seed_key"], row["seed"]) == (key, seed)]
        note = f"the nearest seed image of {count(mine[0]['kept'], 'kept image')}"
        strips.append(Strip(key, (seed_tile(key, seed), *map(near_tile, mine)), note))
    return Sheet(
        "retrieval",
        "What is nearest to seed images",
        "The seed images (framed) that brought in most, and some at random, with the crawled images that "
        "are most similar to them, kept or not, of those that have them among their nearest.",
        _strips(strips),
    )


def _judged_strip(tables: duckdb.DuckDBPyConnection, decision: str, most: int) -> Strip:
    # md5 gives a random order that is the same in every version of DuckDB.
    found = rows(
        tables,
        f"""
        WITH drawn AS (
            FROM images WHERE decision = ? ORDER BY md5(key), key LIMIT ?
        )
        SELECT images.*, seed FROM drawn AS images {_NEAREST}
        WHERE seed_similarity IS NOT NULL ORDER BY seed_similarity DESC, images.key
        """,
        [decision, most],
    )
    return Strip("", tuple(tile for row in found for tile in judged_tiles(row)))


def _copies(tables: duckdb.DuckDBPyConnection) -> Strip:
    found = rows(
        tables,
        """
        WITH drawn AS (
            FROM images WHERE decision = 'duplicate' ORDER BY md5(key), key LIMIT ?
        )
        SELECT drawn.*, own AS stands FROM drawn
        JOIN images AS own ON own.key = drawn.duplicate_of ORDER BY md5(drawn.key), drawn.key
        """,
        [DROPPED],
    )
    tiles = []
    for row in found:
        tiles += [
            copy_tile(row["stands"], framed=True),
            copy_tile(row, fact=rounded_down(row["duplicate_similarity"])),
        ]
    return Strip("", tuple(tiles))


def _rejected(tables: duckdb.DuckDBPyConnection, decision: str) -> Strip:
    # As many different reasons as possible; reasons that differ in numbers only are the same.
    found = rows(
        tables,
        """
        WITH dealt AS (
            SELECT *, regexp_replace(reason, '[0-9]+', '0', 'g') AS kind,
                row_number() OVER (PARTITION BY kind ORDER BY md5(key), key) AS turn
            FROM images WHERE decision = ?
        ), drawn AS (FROM dealt ORDER BY turn, kind, key LIMIT ?)
        FROM drawn ORDER BY kind, key
        """,
        [decision, 2 * DROPPED],
    )
    return Strip("", tuple(rejected_tile(row) for row in found))


def _strips(strips: list[Strip]) -> tuple[Strip, ...]:
    return tuple(strip for strip in strips if strip.tiles)
