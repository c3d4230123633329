"""The files that are made of a part: their names, and the columns of its facts."""

from __future__ import annotations

import pyarrow as pa

FACTS, SCORES = "facts.parquet", "scores.parquet"
VECTORS, VALID = "vectors.npy", "valid.npy"
"""float16 [n, d], zeros where an image has none; bool [n], whether it has one."""
LENT = "lent.npy"
"""bool [n], of units with vectors that are lent: which of the images have none of their own there."""

ROW_GROUP = 1_024
"""Rows of a Parquet file that are read together, so that a few images cost no whole part."""

COLUMNS = pa.schema(
    [
        ("name", pa.string()),
        ("member", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("format", pa.string()),
        ("bytes", pa.int64()),
        ("offset", pa.int64()),
        ("problem", pa.string()),
        ("contrast", pa.float32()),
    ]
)
"""`name` is the key without what the part puts before it (`content.key_prefix`); `contrast` the
luminance's standard deviation. What looks take of pictures has files of its own (`filters.look`)."""
