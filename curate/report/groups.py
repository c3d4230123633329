"""The table of the groups of copies: how large they are, and how far they reach."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate.catalogue.collection import Collection
from curate.dedup.shape import SHAPE

NAME = "groups"
VERSION = 3
GROUPS = pa.schema(
    [
        ("group", pa.int64()),
        ("representative", pa.string()),
        ("size", pa.int64()),
        ("contents", pa.int64()),
        ("diameter", pa.float32()),
        ("lowest_similarity", pa.float32()),
        ("chain", pa.bool_()),
        ("sampled", pa.bool_()),
        ("method", pa.string()),
        ("lent", pa.int64()),
    ]
)
"""`contents` counts distinct ones; `diameter` is 1 minus the lowest cosine of any two members, and
`lowest_similarity` the lowest with the representative; of a `chain`, two members do not reach the
threshold; where `sampled`, some of the members were not compared with one another.
`lent` counts images whose vector is another's: they are as near to all as that one."""


def table(
    crawl: Collection, shape: Path, threshold: float, method: str, *, out: Path
) -> dict[str, int]:
    """Write `groups.parquet` of what one unit of `measure_groups` left in `shape`."""
    with np.load(shape / SHAPE) as found:
        arrays = {name: found[name] for name in found.files}
    methods = np.where(arrays["contents"] == 1, "exact", method)
    values = {
        "group": crawl.place[arrays["representative"]],
        "representative": crawl.keys(arrays["representative"]),
        "diameter": 1 - arrays["lowest"],
        "lowest_similarity": arrays["to_representative"],
        "chain": arrays["lowest"] < np.float32(threshold),
        "method": methods.tolist(),
        **{name: arrays[name] for name in ("size", "contents", "sampled", "lent")},
    }
    made = pa.table([pa.array(values[field.name], field.type) for field in GROUPS], schema=GROUPS)
    pq.write_table(made, out / f"{NAME}.parquet", compression="zstd")
    return {"groups": len(made)}


def no_groups(*, out: Path) -> dict[str, int]:
    """Write a `groups.parquet` without rows: of a crawl without copies."""
    pq.write_table(GROUPS.empty_table(), out / f"{NAME}.parquet", compression="zstd")
    return {"groups": 0}
