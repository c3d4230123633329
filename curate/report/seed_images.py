"""Stage report, the table of the images of included seeds: what became of each, and where it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate.dedup.several import Several
from curate.filters.decisions import CODE, DECISIONS
from curate.filters.judge import judge
from curate.report.hits import describe_chain, find_chains
from curate.report.rows import Decided
from curate.report.schemas import IMAGES
from curate.report.tables import SEED_IMAGES
from curate.stage import Unit

VERSION = 2
NAME = SEED_IMAGES
FACTS = ("key", "part", "member", "url", "sha256", "width", "height", "format", "bytes")
OUTPUTS = ("decision", "reason", "output_shard", "output_key")
SCHEMA = pa.schema([("seed", pa.string()), *(IMAGES.field(name) for name in (*FACTS, *OUTPUTS))])


def units_of_seeds(decided: Decided) -> list[Unit]:
    """Return the units that write the table, in the order of seed and key."""
    return [
        Unit(f"seed-{place:05d}-{block:05d}", (decided, place, start, stop), stop - start)
        for place, seed in enumerate(decided.included.seeds)
        for block, (start, stop) in enumerate(seed.collection.blocks())
    ]


def table(decided: Decided, place: int, start: int, stop: int, *, out: Path) -> dict[str, Any]:
    """Write `seed_images.parquet` of a block of the seed at `place` in key order."""
    included, behind = decided.included, place + 1
    name, seed = decided.exported[behind]
    numbers = np.array(seed.order[start:stop])
    facts = seed.facts(numbers)
    decision = np.load(included.folders[place] / "decision.npy", mmap_mode="r")[numbers]
    positions = np.load(decided.selected / f"position-{behind}.npy", mmap_mode="r")[numbers]
    shards, keys = decided.bounds.outputs(positions)
    _, reasons = judge(facts, None, facts["valid"].to_numpy(), None, lists=decided.removed)
    chains = find_chains(decided.dropped, decided.holdouts, numbers, behind)
    first = int(Several(tuple(data for _, data in decided.exported)).starts[behind])
    for row, code in enumerate(decision.tolist()):
        if code == CODE["duplicate"]:
            reasons[row] = "the same bytes as an image of an included seed that comes first"
        elif code == CODE["holdout"]:
            number = int(numbers[row])
            reasons[row] = describe_chain(chains[number], first + number, decided.exported)
    values = {
        "seed": [name] * len(numbers),
        **{column: facts[column] for column in FACTS},
        "decision": [DECISIONS[code] for code in decision],
        "reason": reasons,
        "output_shard": shards,
        "output_key": keys,
    }
    written = pa.table([values[column] for column in SCHEMA.names], schema=SCHEMA)
    pq.write_table(written, out / f"{NAME}.parquet", compression="zstd")
    return {"images": len(numbers)}
