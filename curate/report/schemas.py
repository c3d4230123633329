"""What columns the tables of images, of their nearest seeds and of their groups have."""

from __future__ import annotations

import pyarrow as pa

from curate.filters.looks import LOOKS

LOOKED = [field for look in LOOKS.values() if look.reported for field in look.columns]
"""What looks take of pictures; null where a run does not ask for it."""
IMAGES = pa.schema(
    [
        ("key", pa.string()),
        ("part", pa.string()),
        ("member", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("format", pa.string()),
        ("bytes", pa.int64()),
        ("decision", pa.string()),
        ("reason", pa.string()),
        ("cluster", pa.int32()),
        ("group", pa.int64()),
        ("duplicate_of", pa.string()),
        ("duplicate_similarity", pa.float32()),
        ("nearest_seed", pa.string()),
        ("seed_similarity", pa.float32()),
        ("seeds", pa.list_(pa.string())),
        ("weight", pa.int32()),
        ("balance_cluster", pa.int32()),
        ("top_up_similarity", pa.float32()),
        ("output_shard", pa.string()),
        ("output_key", pa.string()),
        ("lent", pa.bool_()),
        ("scores", pa.map_(pa.string(), pa.float64())),
        *LOOKED,
    ]
)
FROM_FACTS = IMAGES.names[: IMAGES.names.index("decision")]
BEHIND_JUDGEMENT = IMAGES.names[
    IMAGES.names.index("cluster") : IMAGES.names.index("output_key") + 1
]
"""What is null of an image that is decided about before any other is looked at."""
RETRIEVAL = pa.schema(
    [
        ("key", pa.string()),
        ("rank", pa.int16()),
        ("seed_key", pa.string()),
        ("similarity", pa.float32()),
        ("strategy", pa.string()),
        ("seed", pa.string()),
    ]
)
DUPLICATES = pa.schema(
    [
        ("group", pa.int64()),
        ("key", pa.string()),
        ("representative", pa.bool_()),
        ("similarity", pa.float32()),
        ("method", pa.string()),
    ]
)
TABLES = {"images": IMAGES, "retrieval": RETRIEVAL, "duplicates": DUPLICATES}
