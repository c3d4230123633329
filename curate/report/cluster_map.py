"""A map of the clusters of a crawl: a picture of each, near to those that look like it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from jaxtyping import Float

from curate.neighbours.clusters import CENTROIDS
from curate.report.contact_sheets import Tile
from curate.report.tables import rows

MOST, WIDE = 48, 8
"""Clusters on the map, the largest, and in a row of it."""


@dataclass(frozen=True)
class Place:
    """A cluster on the map."""

    row: int
    column: int
    cluster: int
    images: int
    kept: int
    tile: Tile


def cluster_map(tables: duckdb.DuckDBPyConnection, out: Path) -> list[Place]:
    """Return the places of the largest clusters, row by row; none without two centroids.

    The first two principal components of the centroids, each cluster in the cell of a grid that is
    nearest to it (the assignment of the least total distance). The picture is a kept image where
    there is one.
    """
    path = out / "clusters" / CENTROIDS
    if not path.exists():
        return []
    centroids = np.load(path, mmap_mode="r")
    found = rows(
        tables,
        """
        WITH largest AS (
            SELECT cluster, count(*) AS images, count(*) FILTER (decision = 'kept') AS kept
            FROM images WHERE cluster IS NOT NULL GROUP BY 1 ORDER BY images DESC, cluster LIMIT ?
        )
        SELECT images.key, images.output_shard, images.output_key, largest.*
        FROM images JOIN largest USING (cluster)
        QUALIFY row_number() OVER (
            PARTITION BY cluster ORDER BY decision = 'kept' DESC, md5(key), key
        ) = 1
        ORDER BY cluster
        """,
        [MOST],
    )
    there = [row for row in found if row["cluster"] < len(centroids)]
    # Removal leaves zeros in place of a centroid.
    there = [row for row in there if np.any(centroids[row["cluster"]])]
    if len(there) < 2:
        return []
    cells = _cells(np.array([centroids[row["cluster"]] for row in there], np.float64))
    placed = [_place(cell, row) for cell, row in zip(cells, there, strict=True)]
    return sorted(placed, key=lambda place: (place.row, place.column))


def _place(cell: tuple[int, int], row: dict[str, Any]) -> Place:
    tile = Tile(row["key"], f"cluster {row['cluster']}", "", row["output_shard"], row["output_key"])
    return Place(*cell, row["cluster"], row["images"], row["kept"], tile)


def _cells(points: Float[np.ndarray, "n d"]) -> list[tuple[int, int]]:
    from scipy.optimize import linear_sum_assignment
    from sklearn.decomposition import PCA

    flat = PCA(2, svd_solver="full").fit_transform(points)
    flat *= np.where(flat[np.abs(flat).argmax(0), [0, 1]] < 0, -1, 1)  # a sign is arbitrary
    spread = np.maximum(np.ptp(flat, axis=0), 1e-12)
    flat = (flat - flat.min(0)) / spread
    wide = min(WIDE, len(points))
    high = -(-len(points) // wide)
    cells = np.array([(row, column) for row in range(high) for column in range(wide)])
    at = np.stack([cells[:, 1] / max(1, wide - 1), cells[:, 0] / max(1, high - 1)], 1)
    distance = ((flat[:, None] - at[None]) ** 2).sum(2)
    _, chosen = linear_sum_assignment(np.round(distance, 9))
    return [(int(row), int(column)) for row, column in cells[chosen]]
