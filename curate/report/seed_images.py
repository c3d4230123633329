"""Stage report, the table of the images of included seeds: what became of each, and where it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate.catalogue.collection import Collection
from curate.export.bounds import ShardBounds
from curate.filters.decisions import CODE, DECISIONS
from curate.filters.judge import judge
from curate.filters.lists import CompiledList
from curate.report.schemas import IMAGES
from curate.report.tables import SEED_IMAGES
from curate.selection.include import Included
from curate.stage import Unit

VERSION = 1
NAME = SEED_IMAGES
FACTS = ("key", "part", "member", "url", "sha256", "width", "height", "format", "bytes")
OUTPUTS = ("decision", "reason", "output_shard", "output_key")
SCHEMA = pa.schema([("seed", pa.string()), *(IMAGES.field(name) for name in (*FACTS, *OUTPUTS))])


def units_of_seeds(
    included: Included, selected: Path, bounds: ShardBounds, lists: tuple[CompiledList, ...]
) -> list[Unit]:
    """Return the units that write the table, in the order of seed and key; `lists` judged them."""
    return [
        Unit(
            f"seed-{place:05d}-{block:05d}",
            (
                *(seed.name, seed.collection, folder, selected / f"position-{place + 1}.npy"),
                *(bounds, lists, start, stop),
            ),
            stop - start,
        )
        for place, (seed, folder) in enumerate(zip(included.seeds, included.folders, strict=True))
        for block, (start, stop) in enumerate(seed.collection.blocks())
    ]


def table(
    name: str,
    seed: Collection,
    included: Path,
    positions: Path,
    bounds: ShardBounds,
    lists: tuple[CompiledList, ...],
    start: int,
    stop: int,
    *,
    out: Path,
) -> dict:
    """Write `seed_images.parquet` of a block of a seed in key order."""
    numbers = np.array(seed.order[start:stop])
    facts = seed.facts(numbers)
    decision = np.load(included / "decision.npy", mmap_mode="r")[numbers]
    outputs = bounds.outputs(np.load(positions, mmap_mode="r")[numbers])
    _, reasons = judge(facts, None, facts["valid"].to_numpy(), None, lists=lists)
    for row, code in enumerate(decision.tolist()):
        if code == CODE["duplicate"]:
            reasons[row] = "the same bytes as an image of an included seed that comes first"
        elif code == CODE["holdout"]:
            reasons[row] = "a copy of a holdout image"
    values = {
        "seed": [name] * len(numbers),
        **{column: facts[column] for column in FACTS},
        "decision": [DECISIONS[code] for code in decision],
        "reason": reasons,
        "output_shard": [shard for shard, _ in outputs],
        "output_key": [key for _, key in outputs],
    }
    written = pa.table([values[column] for column in SCHEMA.names], schema=SCHEMA)
    pq.write_table(written, out / f"{NAME}.parquet", compression="zstd")
    return {"images": len(numbers)}
