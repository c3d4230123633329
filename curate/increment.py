"""A finished result that a run adds to: what it holds, and what its images were decided by.

`lvd-curate update` keeps all of that: the exported images stay, thresholds and centroids are those of
the result, and new images are judged beside the old ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.calibration.thresholds import Threshold
from curate.catalogue.exported import EXPORTED, Exported
from curate.export.bounds import Written
from curate.filters.lists import CompiledList, ListSettings, compile_lists
from curate.neighbours.cluster import CENTROIDS, Centroids
from curate.report.tables import SEED_IMAGES, image_files
from shared.embedders import EmbedderSettings, identity
from shared.errors import LvdError
from shared.storage import digest_file, fingerprint, read_json

CLUSTERS = "clusters"
"""The folder of a result with the centroids of its clusters."""
REMOVED = "removed.parquet"
"""The report of what `lvd-curate remove` took out."""
OUTPUTS = ["output_shard", "output_key"]


@dataclass(frozen=True)
class Before:
    """A finished result, as a run that adds to it needs it."""

    out: Path
    run: dict[str, Any]
    """Its `run.json`."""
    exported: dict[str | None, Exported]
    """By the name of the included seed that the images are of; None: of the crawl."""
    written: Written
    """What its shards hold."""
    centroids: Centroids
    removed: tuple[CompiledList, ...] = ()
    """What `lvd-curate remove` took out of it, as a list; none where nothing was."""

    @property
    def inputs(self) -> str:
        """What stands for everything that went into it."""
        return str(self.run["inputs"])

    @property
    def calibrations(self) -> dict[str, dict[str, Any]]:
        """How its thresholds were measured."""
        measured: dict[str, dict[str, Any]] = self.run["calibration"]
        return measured

    @property
    def copies(self) -> dict[str, Any]:
        """What its `run.json` says of where its copies are, if anything."""
        return {"copies": self.run["copies"]} if "copies" in self.run else {}

    def require_models(self, embedders: Mapping[str, EmbedderSettings]) -> None:
        """Raise LvdError where one of these has not the weights that judged the images before."""
        for role, embedder in embedders.items():
            about = self.run["embedders"][role]
            if fingerprint(identity(embedder)) != fingerprint(about["identity"]):
                raise LvdError(
                    f"embedder {about['name']} is another model than when {self.out} was made, whose "
                    "images and thresholds are judged by that: name the old one again, or curate "
                    "anew into another OUT with `lvd-curate run`"
                )

    def removals(self, file: str) -> dict[str, Any]:
        """Return what one of its JSON files says of `lvd-curate remove`, if anything."""
        said = read_json(self.out / file)
        return {"removed": said["removed"]} if "removed" in said else {}

    def threshold(self, name: str) -> Threshold:
        """Return the threshold of `dedup`, or that of `holdout`, which it used."""
        found = self.run["thresholds"].get(name) or self.run["thresholds"]["dedup"]
        return Threshold(
            found["value"], "kept" if found["source"] == "calibrated" else found["source"]
        )


def read_before(out: Path, work: Path, scratch: Path) -> Before:
    """Read a finished result, and lay what workers need of it below `scratch`, its list in `work`.

    A reduce that holds the keys and hashes of what was exported. Raises LvdError where `out` is no
    result, or one that nothing can be added to.
    """
    run = read_run(out)
    kept = pa.concat_tables(_exported(out))
    places = [pc.cast(kept[name], pa.int64()) for name in OUTPUTS]
    kept = kept.take(np.lexsort([column.to_numpy() for column in reversed(places)]))
    kept = kept.append_column("place", pa.array(np.arange(len(kept)), pa.int64()))
    is_list = run["settings"]["export"]["format"] == "list"
    gone = (
        []
        if is_list
        else [x for x in pc.unique(kept["output_shard"]).to_pylist() if not _shard(out, x).exists()]
    )
    if gone:
        raise LvdError(f"{_shard(out, gone[0])} is not there: see `lvd-curate verify {out}`")
    exported = {}
    for number, seed in enumerate(pc.unique(kept["seed"]).to_pylist()):
        mine = pc.equal(kept["seed"], seed) if seed is not None else pc.is_null(kept["seed"])
        file = scratch / f"exported-{number}.parquet"
        pq.write_table(kept.filter(mine).select(EXPORTED.names).cast(EXPORTED), file)
        exported[seed] = Exported(str(out), file, digest_file(file))
    outputs = scratch / "outputs.parquet"
    pq.write_table(kept.select(OUTPUTS), outputs)
    fitted = run["clusters"]
    centroids = Centroids(
        out / CLUSTERS,
        digest_file(out / CLUSTERS / CENTROIDS),
        fitted["images"],
        fitted["distance"],
    )
    written = Written(outputs, len(kept), run["shards"])
    removed = _list_removed(out, work, scratch)
    return Before(out, run, exported, written, centroids, removed)


def _list_removed(out: Path, work: Path, scratch: Path) -> tuple[CompiledList, ...]:
    path = out / "reports" / REMOVED
    if not path.exists():
        return ()
    settings = ListSettings(kind="sha256", path=str(path), column="sha256")
    return compile_lists({"removed": settings}, work, scratch)


def read_run(out: Path) -> dict[str, Any]:
    """Return the `run.json` of a result; LvdError where nothing can be added to it."""
    path = out / "run.json"
    if not path.exists():
        raise LvdError(f"{out} is no finished run: name the --out of one")
    run: dict[str, Any] = read_json(path)
    if not {"inputs", "clusters", "shards"} <= run.keys():
        raise LvdError(f"{out} was made by an earlier version: curate anew, with --replace")
    return run


def _shard(out: Path, name: str) -> Path:
    return out / "shards" / f"{name}.tar"


def _exported(out: Path) -> Iterator[pa.Table]:
    """Yield the kept images of a result, with the seed that they are of, or null."""
    for name, _, path in image_files(out):
        own = ["seed"] if name == SEED_IMAGES else []
        table = pq.read_table(path, columns=["key", "sha256", "decision", *OUTPUTS, *own])
        table = table.filter(pc.equal(table["decision"], "kept")).drop_columns("decision")
        yield table if own else table.append_column("seed", pa.nulls(len(table), pa.string()))
