"""Which images of a dataset an earlier result exported, where a run goes on from it.

Such an image stays: it ranks before all others, stands for itself and for its copies, and is kept
whatever else is better or was measured since. Where shards are written anew, it need not be there any
more, filters, lists and holdouts may drop it, and under another key it is known by its bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int8, Int64

from curate.filters.decisions import DECISIONS, OPEN
from shared.errors import LvdError

ANEW = np.iinfo(np.int64).max
"""The place of an image whose shard is written anew."""
EXPORTED = pa.schema([("key", pa.large_string()), ("sha256", pa.string()), ("place", pa.int64())])


@dataclass(frozen=True)
class Exported:
    """The exported images of one dataset; travels to the workers as a path."""

    out: str
    """The result, as errors call it."""
    file: Path
    """Parquet with the columns of `EXPORTED`; `place` counts through all shards of the result, or is
    `ANEW`."""
    digest: str
    """Stands for what the file says."""


Places = Int64[np.ndarray, "m 2"]
"""Numbers of images, ascending, each with its place in the shards of the result, or `ANEW`."""


def find_exported(
    exported: Exported | None,
    parts: Iterator[tuple[int, pa.Table]],
    decision: Int8[np.ndarray, " n"],
) -> Places:
    """Return where the exported images are among those of a dataset.

    `parts` yields the number of each part's first image, with its `key` and `sha256`; `decision` is
    what the facts decide. What is there no more, has other bytes, or would not be kept now is no exported
    image where its shard is written anew, and else raises LvdError.
    """
    if exported is None:
        return np.empty((0, 2), np.int64)
    known = pq.read_table(exported.file, schema=EXPORTED)
    place = known["place"].to_numpy()
    places, renamed = np.full((2, len(known)), -1, np.int64)
    for start, facts in parts:
        found = pc.index_in(known["key"], facts["key"].cast(pa.large_string()).combine_chunks())
        here = np.flatnonzero(found.is_valid().to_numpy())
        rows = found.fill_null(0).to_numpy()[here]
        own = facts["sha256"].combine_chunks().take(pa.array(rows))
        there = known["sha256"].combine_chunks().take(pa.array(here))
        same = pc.equal(own, there).fill_null(False).to_numpy(zero_copy_only=False)
        places[here[same]] = start + rows[same]
        if not (place == ANEW).any():
            continue
        by_bytes = pc.index_in(known["sha256"], facts["sha256"].combine_chunks())
        fresh = by_bytes.is_valid().to_numpy() & (renamed < 0)
        renamed[fresh] = start + by_bytes.fill_null(0).to_numpy()[fresh]
    places = np.where((places < 0) & (place == ANEW), renamed, places)
    gone = places < 0
    _require(
        exported, known, gone & (place != ANEW), "are gone from the crawl, or have other bytes now"
    )
    closed = np.zeros(len(known), bool)
    closed[~gone] = decision[places[~gone]] != OPEN
    if (wrong := closed & (place != ANEW)).any():
        name = DECISIONS[decision[places[np.argmax(wrong)]]]
        _require(exported, known, wrong, f"would not be kept now: the first is {name}")
    there = np.flatnonzero(~gone & ~closed)
    there = there[np.argsort(places[there])]
    return np.stack([places[there], place[there]], 1)


def _require(exported: Exported, known: pa.Table, wrong: np.ndarray, what: str) -> None:
    """Raise LvdError where some of the exported images are wrong."""
    if not wrong.any():
        return
    key = known["key"][int(np.argmax(wrong))].as_py()
    raise LvdError(
        f"{int(wrong.sum()):,} images that {exported.out} holds, as {key!r}, {what}: take them out "
        "with `lvd-curate remove` first (a list of keys; their bytes then stay out, whatever they are "
        "called), or curate anew into another OUT"
    )
