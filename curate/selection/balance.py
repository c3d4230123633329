"""Stage balance: of what the seeds retrieve, so many images, evenly over what they show.

A reduce in one process: 2 d bytes for each retrieved image, and what `find_hierarchy` takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate.catalogue.collection import Catalogued, Collection
from curate.neighbours.hierarchy import Hierarchy
from curate.neighbours.search import use_threads
from curate.retrieval.answers import Answers
from curate.retrieval.candidates import load_exported
from curate.selection.evenness import measure_evenness
from curate.selection.sampling import BalanceSettings, balance_vectors
from curate.selection.wishes import Wish, addresses_of, gather_wishes, wishes_of
from curate.stage import Runner, Stage, Unit

VERSION = 1
CLUSTERS = pa.schema(
    [
        ("path", pa.list_(pa.int32())),
        ("images", pa.int64()),
        ("kept", pa.int64()),
        ("weight", pa.int64()),
    ]
)
"""Of `balance.parquet`, a row for each lowest cluster: the clusters that hold it from the top down to
itself, the images that were retrieved and are kept, and how often these are drawn in all."""


@dataclass(frozen=True)
class Balanced:
    """What balance takes, as it left it in `folder`; nothing is balanced with the defaults.

    By candidate in key order `weight.npy` int32, 0 where it is left out, and `cluster.npy` int32,
    its lowest cluster, -1 for what no seed retrieves; `balance.parquet`.
    """

    folder: Path | None = None
    told: dict[str, Any] | None = None
    """What the funnel says of it."""
    address: str = ""


def balance(
    runner: Runner,
    crawl: Catalogued,
    answers: Answers,
    max_images: int | None,
    settings: BalanceSettings,
    threads: int,
) -> Balanced:
    """Choose among what the seeds retrieve within all budgets, where there is a target.

    `crawl` is as the embedder for meaning sees it.
    """
    if settings.target is None:
        return Balanced()
    wanted, barred = answers.wanted, answers.barred
    stage = Stage(
        "balance",
        VERSION,
        [crawl.address, addresses_of(wanted), addresses_of(barred)],
        [max_images, settings.model_dump(), threads],
    )
    args = (
        *(crawl.collection, wishes_of(wanted), wishes_of(barred), max_images),
        *(settings.target, settings, threads),
    )
    [told] = runner.run(stage, choose, [Unit("all", args)], note="balance")
    return Balanced(runner.folder(stage) / "all", told, stage.address)


def choose(
    crawl: Collection,
    wanted: list[Wish],
    barred: list[Wish],
    max_images: int | None,
    target: int | float,
    settings: BalanceSettings,
    threads: int,
    *,
    out: Path,
) -> dict[str, Any]:
    """Write what `Balanced` says, and return the figures of head and tail before and after.

    What the run found exported, or a label keeps, is taken first and counts towards the target.
    """
    use_threads(threads)
    wishes = gather_wishes(wanted, barred, max_images)
    rows = np.flatnonzero(wishes.taken)
    weight, cluster = np.zeros(len(wishes.numbers), np.int32), np.full(len(wishes.numbers), -1)
    counts = pa.table([[] for _ in CLUSTERS], schema=CLUSTERS)
    if len(rows):
        vectors = crawl.vectors(wishes.numbers[rows])
        stays = load_exported(wanted[0].candidates)[rows]
        weight[rows], hierarchy = balance_vectors(vectors, target, settings, stays)
        cluster[rows] = hierarchy.parents[0]
        counts = _count(hierarchy, weight[rows])
    np.save(out / "weight.npy", weight)
    np.save(out / "cluster.npy", cluster.astype(np.int32))
    pq.write_table(counts, out / "balance.parquet", compression="zstd")
    return {"target": target, "repeats": settings.repeats, **describe_clusters(counts)}


def _count(hierarchy: Hierarchy, weight: np.ndarray) -> pa.Table:
    own, size = hierarchy.parents[0], len(hierarchy.counts()[0])
    return pa.table(
        [
            pa.array(hierarchy.paths().tolist(), pa.list_(pa.int32())),
            hierarchy.counts()[0],
            np.bincount(own[weight > 0], minlength=size),
            np.bincount(own, weight, size).astype(np.int64),
        ],
        schema=CLUSTERS,
    )


def describe_clusters(counts: pa.Table) -> dict[str, Any]:
    """Return of `balance.parquet` how many images there were, are kept and are drawn.

    `levels` has the figures of head and tail at each level, from the top down: `before`, and `after`
    as images are drawn.
    """
    images, kept, weight = (counts[name].to_numpy() for name in ("images", "kept", "weight"))
    levels = []
    for own in np.array(counts["path"].to_pylist(), np.int64).T:
        before, after = (np.bincount(own, each).astype(np.int64) for each in (images, weight))
        clusters = int((before > 0).sum())
        levels.append(
            {
                "clusters": clusters,
                "before": measure_evenness(before, clusters),
                "after": measure_evenness(after, clusters),
            }
        )
    return {
        "retrieved": int(images.sum()),
        "kept": int(kept.sum()),
        "drawn": int(weight.sum()),
        "levels": levels,
    }


def balance_problems(told: dict[str, Any] | None) -> list[str]:
    """Return a line where what balance draws is not what was asked for."""
    if told is None or isinstance(told["target"], float) or told["drawn"] >= told["target"]:
        return []
    return [
        f"balance.target asks for {told['target']:,} images, and {told['retrieved']:,} are "
        f"retrieved, to be drawn {told['repeats']:,} times at most: all of them are kept; lower the "
        "target, retrieve more, or let images repeat with --set balance.repeats=..."
    ]
