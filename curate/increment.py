"""A finished result that a run goes on from: what it holds, and what its images were decided by.

The rule of `lvd-curate update`, of `run` on a grown crawl and of `run --since`: what the result
exported stays and stands for its copies, thresholds that were measured for it and its centroids are
kept, and new images are judged beside the old ones. An update adds shards to the result and has its
settings. A run writes all shards anew, and one since another result has settings of its own, so
that it leaves out what these do not admit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.calibration.thresholds import Threshold
from curate.catalogue.exported import ANEW, EXPORTED, Exported
from curate.catalogue.labels import CompiledLabels
from curate.export.bounds import Written
from curate.filters.lists import CompiledList, KindName, ListSettings, compile_lists
from curate.filters.pdq import require_pdqhash
from curate.neighbours.cluster import Centroids, ClusterSettings
from curate.neighbours.clusters import CENTROIDS
from curate.report.tables import SEED_IMAGES, image_files
from shared.datasets.folders import describe_folder
from shared.embedders.embedder import identity
from shared.embedders.settings import EmbedderSettings
from shared.errors import LvdError
from shared.storage.files import digest_file, fingerprint, read_json
from shared.storage.stores import publish

if TYPE_CHECKING:
    from curate.settings import PipelineSettings

CLUSTERS = "clusters"
"""The folder of a result with the centroids of its clusters."""
REMOVED = "removed.parquet"
"""The report of what `lvd-curate remove` took out."""
OUTPUTS = ["output_shard", "output_key"]
_READ = (
    *("reports/images.parquet", f"reports/{SEED_IMAGES}.parquet", f"reports/{REMOVED}"),
    *("reports/funnel.json", f"{CLUSTERS}/{CENTROIDS}"),
)


@dataclass(frozen=True)
class Before:
    """A finished result, as a run that goes on from it needs it."""

    out: Path
    name: str
    """What errors call it: `out`, or the URL that it was fetched from."""
    run: dict[str, Any]
    """Its `run.json`."""
    exported: dict[str | None, Exported]
    """By the name of the included seed that the images are of; None: of the crawl."""
    images: int
    """How many it exported."""
    labelled: int
    """How many others are labelled to be kept as well."""
    written: Written | None
    """What its shards hold, where the run adds to them; None where it writes all anew."""
    centroids: Centroids | None
    """None where all of them were taken out with images."""
    removed: tuple[CompiledList, ...] = ()
    """What `lvd-curate remove` took out of it, as a list; none where nothing was."""

    @property
    def inputs(self) -> str:
        """What stands for everything that went into it."""
        return str(self.run["inputs"])

    def is_at(self, out: Path) -> bool:
        """Tell whether it lies there."""
        return out.exists() and out.samefile(self.out)

    @property
    def calibrations(self) -> dict[str, dict[str, Any]]:
        """How its thresholds were measured."""
        measured: dict[str, dict[str, Any]] = self.run["calibration"]
        return measured

    @property
    def copies(self) -> dict[str, Any]:
        """What its `run.json` says of where its copies are, if anything and if the run adds to it."""
        is_known = self.written is not None and "copies" in self.run
        return {"copies": self.run["copies"]} if is_known else {}

    def require_models(self, embedders: Mapping[str, EmbedderSettings]) -> None:
        """Raise LvdError where one of these has not the weights that judged the images before."""
        for role, embedder in embedders.items():
            about = self.run["embedders"].get(role)
            if about and fingerprint(identity(embedder)) != fingerprint(about["identity"]):
                raise LvdError(
                    f"embedder {about['name']} is another model than when {self.name} was made, whose "
                    "images and thresholds are judged by that: name the old one again, or curate "
                    "anew into another OUT with `lvd-curate run`"
                )

    def removals(self, file: str) -> dict[str, Any]:
        """Return what one of its JSON files says of `lvd-curate remove`, if anything."""
        said = read_json(self.out / file)
        return {"removed": said["removed"]} if "removed" in said else {}

    def keep_dedup(self, known: Threshold | None) -> Threshold | None:
        """Return the threshold of dedup that it used, where it was asked for the same.

        `known` is the one that is known without measuring. A number of the pipeline is used if it is
        the same; what was measured, or belongs to the embedder, is kept unless the pipeline says a
        number now, or did then.
        """
        found = self.run["thresholds"]["dedup"]
        now = known.value if known is not None and known.source == "pipeline" else None
        if now != (found["value"] if found["source"] == "pipeline" else None):
            return None
        source = "kept" if found["source"] == "calibrated" else found["source"]
        return Threshold(found["value"], source, found.get("drawn"))

    def calibration_of(self, seed: str) -> dict[str, Any] | None:
        """Return how the threshold of the seed of this name was measured, if it was."""
        is_alone = list(self.run["settings"]["seeds"]) == [seed]
        return self.calibrations.get("retrieve" if is_alone else f"seeds.{seed}")

    def keep_centroids(self, settings: ClusterSettings) -> Centroids | None:
        """Return its centroids, unless they were found by other settings than these."""
        asked = settings.model_dump(mode="json", exclude={"drift"})
        return self.centroids if asked == self.run["settings"]["cluster"] else None


def refuse_labels(settings: PipelineSettings) -> None:
    """Raise LvdError for labels, which may drop what is in shards that are only added to."""
    if settings.labels is not None:
        raise LvdError(
            f"labels {settings.labels}: what is labelled may be dropped from shards that are there: say "
            "`lvd-curate run` into OUT, which keeps what is exported, too, and writes all shards anew"
        )


def read_before(
    out: Path,
    work: Path,
    scratch: Path,
    *,
    adds: bool,
    labels: CompiledLabels | None = None,
    name: str = "",
) -> Before:
    """Read a finished result, and lay what workers need of it below `scratch`, its list in `work`.

    Where these are copies of a store, it is given there to other machines.

    With `adds` its shards are added to, and have to be there; else what `labels` keep stays beside
    what it exported. A reduce that holds the keys and hashes of what was exported. `name` is what
    errors call the result, if something else than `out`. Raises LvdError where `out` is no result, or
    one that no run can go on from.
    """
    name = name or str(out)
    run = read_run(out, name)
    kept = pa.concat_tables(_exported(out))
    places = [pc.cast(kept[name], pa.int64()) for name in OUTPUTS]
    kept = kept.take(np.lexsort([column.to_numpy() for column in reversed(places)]))
    own = np.arange(len(kept)) if adds else np.full(len(kept), ANEW)
    kept = kept.append_column("place", pa.array(own, pa.int64()))
    if adds and run["settings"]["export"]["format"] == "shards":
        _require_shards(out, pc.unique(kept["output_shard"]).to_pylist())
    images = len(kept)
    if not adds:
        kept = _add_labelled(kept, labels)
    exported = {}
    for number, seed in enumerate(pc.unique(kept["seed"]).to_pylist()):
        mine = pc.equal(kept["seed"], seed) if seed is not None else pc.is_null(kept["seed"])
        file = scratch / f"exported-{number}.parquet"
        pq.write_table(kept.filter(mine).select(EXPORTED.names).cast(EXPORTED), file)
        publish(file)
        exported[seed] = Exported(name, file, digest_file(file))
    written = None
    if adds:
        outputs = scratch / "outputs.parquet"
        pq.write_table(kept.select(OUTPUTS), outputs)
        written = Written(outputs, len(kept), run["shards"])
    fitted = run["clusters"]
    found = np.load(out / CLUSTERS / CENTROIDS)
    found = found[found.any(1)]  # without those that `lvd-curate remove` took out
    file = scratch / CENTROIDS
    np.save(file, found)
    publish(file)
    centroids = Centroids(file, digest_file(file), fitted["images"], fitted["distance"])
    removed = _list_removed(out, work, scratch)
    known = centroids if len(found) else None
    labelled = len(kept) - images
    return Before(out, name, run, exported, images, labelled, written, known, removed)


def _add_labelled(kept: pa.Table, labels: CompiledLabels | None) -> pa.Table:
    """Return images of a result, and of those of the crawl that are labelled to be kept the others."""
    if labels is None or labels.kept is None:
        return kept
    own = kept.filter(pc.is_null(kept["seed"]))["sha256"]
    asked = pq.read_table(labels.kept.file, schema=EXPORTED)
    others = asked.filter(pc.invert(pc.is_in(asked["sha256"], own.combine_chunks())))
    return pa.concat_tables([kept, others], promote_options="permissive")


def _list_removed(out: Path, work: Path, scratch: Path) -> tuple[CompiledList, ...]:
    path = out / "reports" / REMOVED
    if not path.exists():
        return ()
    kinds: list[KindName] = ["sha256"]
    known = pq.read_table(path)
    if "pdq" in known.column_names and known["pdq"].null_count < len(known):
        require_pdqhash()
        kinds.append("pdq")
    settings = [ListSettings(kind=kind, path=str(path), column=kind) for kind in kinds]
    return tuple(x for each in settings for x in compile_lists({"removed": each}, work, scratch))


def files_read(names: Iterable[str]) -> list[str]:
    """Return which of the files of a result a run reads, beside `run.json`, that writes all shards anew."""
    return sorted(name for name in names if "/".join(name.split("/")[:2]) in _READ)


def read_run(out: Path, name: str = "") -> dict[str, Any]:
    """Return the `run.json` of a result; LvdError, which calls it `name`, where no run can go on from it."""
    name = name or str(out)
    path = out / "run.json"
    if not path.exists():
        raise LvdError(f"{name} is no finished run: name the --out of one")
    run: dict[str, Any] = read_json(path)
    if "recipe" in run:
        raise LvdError(f"{name} is {describe_folder(out)}")
    if not {"inputs", "clusters", "shards"} <= run.keys() or "drift" not in run["clusters"]:
        raise LvdError(f"{name} was made by an earlier version: curate anew, with --replace")
    return run


def _require_shards(out: Path, names: Sequence[str]) -> None:
    paths = (out / "shards" / f"{name}.tar" for name in names)
    if gone := [path for path in paths if not path.exists()]:
        raise LvdError(f"{gone[0]} is not there: see `lvd-curate verify {out}`")


def _exported(out: Path) -> Iterator[pa.Table]:
    """Yield the kept images of a result, with the seed that they are of, or null."""
    for name, _, path in image_files(out):
        own = ["seed"] if name == SEED_IMAGES else []
        table = pq.read_table(path, columns=["key", "sha256", "decision", *OUTPUTS, *own])
        table = table.filter(pc.equal(table["decision"], "kept")).drop_columns("decision")
        yield table if own else table.append_column("seed", pa.nulls(len(table), pa.string()))
