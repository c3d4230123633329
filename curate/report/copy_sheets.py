"""The groups of copies: pairs nearest to the threshold, the largest groups, some at random, and all."""

from __future__ import annotations

import duckdb

from curate.report.bands import pair_tiles
from curate.report.contact_sheets import Sheet, Strip, member_tile
from curate.report.tables import rows
from shared.progress import count

PAIRS, GROUPS, MEMBERS = 8, 6, 8
"""Pairs on a side of the threshold, groups, and members of each, on the page."""
ON_PAGE = 100
"""Groups on a further page."""


def nearest_to_threshold(tables: duckdb.DuckDBPyConnection, threshold: float | None) -> Sheet:
    """Return the pairs nearest to the threshold on both sides, one of each image that stands for others."""
    strips = []
    at = "the threshold" if threshold is None else f"{threshold:.4g}"
    limit = -2.0 if threshold is None else threshold
    for heading, side, order in (
        (f"At {at} and above: copies", ">=", "ASC"),
        (f"Below {at}: not in one group", "<", "DESC"),
    ):
        query = f"""
            WITH apart AS (
                SELECT pairs.*, coalesce(own."group" = other."group", FALSE) AS together
                FROM pairs JOIN images AS own ON own.key = pairs.key
                JOIN images AS other ON other.key = pairs.better
            ), one AS (
                SELECT key, better, similarity FROM apart WHERE similarity {side} ?::FLOAT
                AND together = ('{side}' = '>=')
                QUALIFY row_number() OVER (
                    PARTITION BY better ORDER BY similarity {order}, key
                ) = 1
            )
            FROM one ORDER BY similarity {order}, key, better LIMIT {PAIRS}
        """
        strips.append(Strip(heading, pair_tiles(tables, query, [limit])))
    return Sheet(
        "borderline_copies",
        "Nearest to the threshold",
        "In pairs, first the one that stands, or would stand, for both (framed). If pairs above differ, "
        "raise dedup.threshold; if pairs below are one picture, lower it.",
        tuple(strip for strip in strips if strip.tiles),
        pairs=True,
    )


def chosen_groups(tables: duckdb.DuckDBPyConnection) -> list[Sheet]:
    """Return the largest groups of copies, and some at random."""
    found = []
    for name, title, order in (
        ("largest_groups", "The largest groups", 'members DESC, "group"'),
        ("random_groups", "Groups at random", 'md5("group"::VARCHAR), "group"'),
    ):
        found.append(
            Sheet(
                name,
                title,
                "First the image that stands for all (framed), then the members least similar to it.",
                group_strips(tables, order, GROUPS, 0),
                flow=True,
            )
        )
    return [sheet for sheet in found if sheet.strips]


def page_of_groups(tables: duckdb.DuckDBPyConnection, number: int, groups: int) -> Sheet:
    """Return a further page, from 0: `groups` groups, the largest of all on the first."""
    start = number * ON_PAGE
    return Sheet(
        f"copies-{number + 1:03d}",
        f"Groups of copies {start + 1:,} to {start + groups:,}",
        f"First the image that stands for all (framed), then the {MEMBERS - 1} members least similar "
        "to it. All members are in reports/duplicates.parquet.",
        group_strips(tables, 'members DESC, "group"', groups, start),
        flow=True,
    )


def group_strips(
    tables: duckdb.DuckDBPyConnection, order: str, most: int, start: int
) -> tuple[Strip, ...]:
    """Return a strip for each of the groups that come first in an order."""
    found = rows(
        tables,
        f"""
        WITH counted AS (
            SELECT "group", count(*) AS members FROM duplicates GROUP BY 1
        ), chosen AS (
            SELECT *, row_number() OVER (ORDER BY {order}) AS place FROM counted
            ORDER BY place LIMIT ? OFFSET ?
        ), shown AS (
            SELECT * FROM duplicates JOIN chosen USING ("group")
            QUALIFY row_number() OVER (
                PARTITION BY "group" ORDER BY representative DESC, similarity, key
            ) <= {MEMBERS}
        )
        SELECT images.*, representative, similarity, method, members, place
        FROM shown JOIN images USING (key)
        ORDER BY place, representative DESC, similarity, key
        """,
        [most, start],
    )
    strips = []
    for place in dict.fromkeys(row["place"] for row in found):
        mine = [row for row in found if row["place"] == place]
        members = mine[0]["members"]
        shown = f", {len(mine)} shown" if members > len(mine) else ""
        kept = "1 kept" if mine[0]["decision"] == "kept" else f"none kept ({mine[0]['decision']})"
        note = f"{count(members, 'image')}{shown}, {kept}"
        strips.append(Strip(mine[0]["key"], tuple(map(member_tile, mine)), note))
    return tuple(strips)
