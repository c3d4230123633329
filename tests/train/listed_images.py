"""A selection list of the images of small shards."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP = 12


def rows_of(shards: Path) -> list[dict]:
    """Return a list's row for each image of a folder of tars, tar after tar."""
    rows = []
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    data = tar.extractfile(member).read()
                    rows.append(
                        {
                            "key": f"{path.stem}/{member.name[:-4]}",
                            "part": str(path),
                            "offset": member.offset_data,
                            "size": member.size,
                            "sha256": hashlib.sha256(data).hexdigest(),
                        }
                    )
    return rows


def write_list(path: Path, rows: list[dict]) -> Path:
    names = dict.fromkeys(name for row in rows for name in row)
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    pq.write_table(table, path, row_group_size=ROW_GROUP)
    return path
