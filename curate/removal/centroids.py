"""Takes the centroids out of a result that may be, or tell of, the vector of an image.

The centroid of a cluster is that of its images which k-means saw: of one alone, its very vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate.increment import CLUSTERS
from curate.neighbours.clusters import CENTROIDS
from curate.removal.gone import Gone
from curate.report.tables import image_files


def drop_centroids(out: Path, new: Path, gone: Sequence[Gone]) -> Iterator[str]:
    """Write zeros in place of the centroids of all clusters that lose an image; yield the file's name.

    The others keep their numbers, which the tables give; a run that goes on from the result does
    without those that are gone.
    """
    path = out / CLUSTERS / CENTROIDS
    clusters = _clusters_of(out, gone)
    if not clusters or not path.exists():
        return
    centroids = np.load(path)
    centroids[sorted(clusters)] = 0
    place = new / path.relative_to(out)
    place.parent.mkdir(parents=True, exist_ok=True)
    np.save(place, centroids)
    yield path.relative_to(out).as_posix()


def _clusters_of(out: Path, gone: Sequence[Gone]) -> set[int]:
    """Return the clusters that images of these are in."""
    found: set[int] = set()
    for name, start, path in image_files(out):
        if name == "images":
            cluster = pq.read_table(path, columns=["cluster"])["cluster"]
            rows = [each.row - start for each in gone if each.table == name]
            here = [row for row in rows if 0 <= row < len(cluster)]
            inside = cluster.take(pa.array(here, pa.int64()))
            found.update(inside.drop_null().to_pylist())
    return found
