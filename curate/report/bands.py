"""Pictures by which a threshold is chosen: some at random of each band of similarity, on both sides."""

from __future__ import annotations

from itertools import pairwise

import duckdb
import numpy as np

from curate.report.contact_sheets import Sheet, Strip, Tile, copy_tile, judged_tiles
from curate.report.tables import rows
from curate.written_cosine import rounded_down
from shared.progress import count

BANDS = 4
"""On each side of the threshold."""
IN_BAND = 4
"""Images, or pairs, that are shown of each."""
_JUDGED = """
    SELECT images.*, retrieval.seed FROM images LEFT JOIN retrieval
    ON images.key = retrieval.key AND retrieval.rank = 0
"""
"""Images, each with the name of its nearest seed's dataset."""


def relevance_bands(tables: duckdb.DuckDBPyConnection, threshold: float | None) -> Sheet:
    """Return crawled images beside their nearest seed images, from dissimilar to similar.

    The choice within a band is random and depends on the keys only.
    """
    strips = []
    for low, high in _edges(tables, "images", "seed_similarity", threshold):
        band = "seed_similarity >= ?::FLOAT AND seed_similarity < ?::FLOAT"
        [counted] = rows(
            tables,
            "SELECT count(*) AS images, count(*) FILTER (decision = 'kept') AS kept"
            f" FROM images WHERE {band}",
            [low, high],
        )
        found = rows(
            tables,
            f"WITH drawn AS (FROM images WHERE {band} ORDER BY md5(key), key LIMIT ?)"
            f"{_JUDGED.replace('FROM images', 'FROM drawn AS images')}"
            " ORDER BY md5(images.key), images.key",
            [low, high, IN_BAND],
        )
        tiles = tuple(tile for row in found for tile in judged_tiles(row))
        note = f"{count(counted['images'], 'image')}, {counted['kept']:,} of them kept"
        strips.append(_strip(low, high, tiles, note))
    return Sheet(
        "relevance",
        "Pictures by similarity",
        "Some at random of each band, each beside its nearest seed image (framed). Where what you "
        "want begins is where the threshold belongs.",
        tuple(strip for strip in strips if strip.tiles),
        pairs=True,
    )


def copy_bands(tables: duckdb.DuckDBPyConnection, threshold: float | None) -> Sheet:
    """Return pairs of crawled images, from dissimilar to similar, the better one first."""
    strips = []
    for low, high in _edges(tables, "pairs", "similarity", threshold):
        band = "similarity >= ?::FLOAT AND similarity < ?::FLOAT"
        [counted] = rows(tables, f"SELECT count(*) AS pairs FROM pairs WHERE {band}", [low, high])
        query = f"FROM pairs WHERE {band} ORDER BY md5(key || better), key, better LIMIT {IN_BAND}"
        tiles = pair_tiles(tables, query, [low, high])
        strips.append(_strip(low, high, tiles, count(counted["pairs"], "pair")))
    return Sheet(
        "copies",
        "Pairs by similarity",
        "Some at random of each band, the one that would stand for both first (framed). Where pairs "
        "begin to be one picture is where the threshold belongs.",
        tuple(strip for strip in strips if strip.tiles),
        pairs=True,
    )


def pair_tiles(
    tables: duckdb.DuckDBPyConnection, query: str, parameters: list[float]
) -> tuple[Tile, ...]:
    """Return the tiles of a query of `pairs`, in its order: two of each pair, the better one first."""
    pairs = rows(tables, query, parameters)
    keys = sorted({pair[side] for pair in pairs for side in ("key", "better")})
    found = rows(tables, "SELECT * FROM images WHERE key IN (SELECT unnest(?::VARCHAR[]))", [keys])
    images = {row["key"]: row for row in found}
    tiles = []
    for pair in pairs:
        if pair["key"] in images and pair["better"] in images:
            tiles.append(copy_tile(images[pair["better"]], framed=True))
            tiles.append(copy_tile(images[pair["key"]], fact=rounded_down(pair["similarity"])))
    return tuple(tiles)


def _strip(low: float, high: float, tiles: tuple[Tile, ...], note: str) -> Strip:
    top = min(high, 1.0)
    return Strip(f"{low:.4f} to {top:.4f}", tiles, note, (low, high))


def _edges(
    tables: duckdb.DuckDBPyConnection, table: str, column: str, threshold: float | None
) -> list[tuple[float, float]]:
    """Return bands that cover all values, as even as a threshold as one of their borders allows."""
    query = f"SELECT min({column}) AS low, max({column}) AS high FROM {table}"
    [ends] = rows(tables, query)
    if ends["low"] is None:
        return []
    low, high = np.floor(ends["low"] * 1000) / 1000, np.ceil(ends["high"] * 1000 + 1e-3) / 1000
    parts = [np.linspace(low, high, 2 * BANDS + 1)]
    if threshold is not None and low < threshold < high:
        parts = [np.linspace(low, threshold, BANDS + 1), np.linspace(threshold, high, BANDS + 1)]
    edges = [(float(a), float(b)) for part in parts for a, b in pairwise(part)]
    return edges if len(edges) and high > low else []
