"""The stages of a run: what each is addressed by, which units it has, and where they leave things.

An address is the fingerprint of a stage's settings and version and of the addresses before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from curate.calibration import measure as calibration
from curate.calibration.thresholds import Threshold, known_thresholds
from curate.catalogue.collection import VERSION as CATALOGUE_VERSION
from curate.catalogue.collection import Collection, catalogue
from curate.catalogue.originals import save_parts
from curate.dedup import groups, holdout
from curate.dedup import near as dedup
from curate.embedding.embed import embed_part, load_embedder, unit_name
from curate.execution.engine import Engine, Unit
from curate.execution.output import Output
from curate.export import shards as export
from curate.neighbours import cluster
from curate.neighbours.cluster import Clusters
from curate.neighbours.search import gpus_wanted
from curate.plan import Dataset, Plan, embed_folder, score_columns
from curate.report import rows
from curate.retrieval import threshold as retrieve
from curate.selection import decide as select
from shared.errors import LvdError
from shared.progress import warn
from shared.storage import fingerprint

MOST_PASSES = 1_000
FEW = 100


@dataclass(frozen=True)
class Embedded:
    """A dataset whose images are embedded and numbered; `address` stands for its content."""

    name: str
    parts: list
    collection: Collection
    address: str
    problems: list[str]


@dataclass
class Run:
    """One run of the pipeline; every method is a stage, and leaves what later ones read."""

    plan: Plan
    engine: Engine
    thresholds: dict[str, Threshold] = field(default_factory=dict)
    calibrations: dict[str, dict] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.settings = self.plan.request.settings
        self.work = self.plan.work
        self.threads = self.settings.engine.threads
        self.search_gpus = gpus_wanted(self.plan.embedder.device)

    # embed ----------------------------------------------------------------------------------

    def embed(self) -> None:
        """Embed what is not embedded yet of all datasets, and number their images by key."""
        with self.engine.stage("embed"):
            done = [self._embed_parts(dataset) for dataset in self.plan.datasets]
            self.crawl, self.seed, *self.holdouts = [
                self._catalogue(*each) for each in zip(self.plan.datasets, done, strict=True)
            ]
        if not len(self.crawl.collection):
            raise LvdError(
                f"crawl {self.crawl.name}: its {len(self.crawl.parts)} parts hold no image"
                + (f" ({self.crawl.problems[0]})" if self.crawl.problems else "")
            )
        if not len(self.seed.collection.usable):
            raise LvdError(
                f"seed {self.seed.name}: none of its {len(self.seed.collection)} images can be "
                "read, so nothing can be similar to it: name another seed dataset"
            )

    def _embed_parts(self, dataset: Dataset) -> list[dict]:
        settings, embedder = self.settings, self.plan.embedder
        columns = score_columns(self.plan, dataset)
        units = [
            Unit(
                unit_name(part),
                (part, settings.embed, embedder, columns, self.threads),
                weight=part.nbytes,
            )
            for part in dataset.parts
        ]
        return self.engine.run(
            embed_folder(self.plan, dataset),
            embed_part,
            units,
            setup=load_embedder,
            setup_args=(embedder, self.threads),
            gpus=int(embedder.device == "cuda"),
        )

    def _catalogue(self, dataset: Dataset, done: list[dict]) -> Embedded:
        settings, folder = self.settings, embed_folder(self.plan, dataset)
        parts = [(part, folder / unit_name(part)) for part in dataset.parts]
        quality = settings.quality if dataset.role == "crawl" else None
        filters = settings.filters if dataset.role == "crawl" else []
        address = self._address(
            "catalogue",
            CATALOGUE_VERSION,
            [[part.name, stats["digest"]] for part, stats in zip(dataset.parts, done, strict=True)],
            quality and quality.model_dump(),
            [entry.model_dump() for entry in filters],
        )
        home = self._home("catalogue", address)
        self.engine.run(home, catalogue, [Unit("all", (parts, self.work, quality, filters))])
        problems = [
            f"{dataset.name}: {part.name}: {problem}"
            for part, stats in zip(dataset.parts, done, strict=True)
            for problem in stats["problems"]
        ]
        return Embedded(dataset.name, dataset.parts, Collection(home / "all"), address, problems)

    # thresholds -----------------------------------------------------------------------------

    def calibrate(self) -> None:
        """Give `dedup`, `retrieve` and `holdout` their thresholds: set, declared, or measured."""
        self.thresholds = known_thresholds(self.settings, self.plan.embedder)
        if unknown := sorted({"dedup", "retrieve"} - set(self.thresholds)):
            with self.engine.stage("calibrate"):
                for name in unknown:
                    self.calibrations[name] = self.calibration(name)
                    value = self.calibrations[name]["threshold"]
                    self.thresholds[name] = Threshold(value, "calibrated")
        if not self.calibrations.get("dedup", {"separates": True})["separates"]:
            warn(
                f"embedder {self.plan.request.embedder.name} does not tell edited copies from "
                "other images: trust no group of copies but the exact ones"
            )
        if unknown and (few := len(self.crawl.collection.usable)) < FEW:
            warn(f"thresholds were calibrated on {few} images only: look at the pictures")
        if self.holdouts:
            self.thresholds.setdefault("holdout", self.thresholds["dedup"])

    def calibration(self, name: str) -> dict:
        """Return the calibration of `dedup` (from the crawl alone) or `retrieve`, as measured."""
        settings = self.settings.calibrate
        datasets = [self.crawl] if name == "dedup" else [self.crawl, self.seed]
        addresses = [dataset.address for dataset in datasets]
        address = self._address("calibrate", calibration.VERSION, addresses, settings.model_dump())
        return calibration.measure(
            self.engine,
            self._home("calibrate", address),
            (self.plan.embedder, self.threads),
            [dataset.collection for dataset in datasets],
            self._parts_file(datasets[-1]),
            self.settings.embed.max_pixels,
            settings,
        )

    # cluster --------------------------------------------------------------------------------

    def cluster(self) -> None:
        """Find centroids, give every vector its cluster, lay clusters side by side."""
        crawl = self.crawl.collection
        self._clustered = self._address(
            "cluster",
            cluster.VERSION,
            self.crawl.address,
            self.settings.cluster.model_dump(),
            self.threads,
        )
        home = self._home("cluster", self._clustered)
        with self.engine.stage("cluster"):
            self.engine.run(
                home,
                cluster.centroids,
                [Unit("centroids", (crawl, self.settings.cluster, self.threads))],
                note="k-means",
            )
            units = [
                Unit(
                    f"assign-{start:012d}",
                    (crawl, home / "centroids", start, stop, self.threads),
                    stop - start,
                )
                for start, stop in crawl.blocks()
            ]
            self.engine.run(home, cluster.assign, units, note="assigned")
            self.assigned = [home / unit.name for unit in units]
            ranges = cluster.buckets(self.assigned)
            folders = [home / f"members-{first:08d}" for first, _ in ranges]
            held = self.engine.run(
                home,
                cluster.members,
                [
                    Unit(folder.name, (home / "centroids", self.assigned, first, last))
                    for folder, (first, last) in zip(folders, ranges, strict=True)
                ],
            )
        self.clusters = Clusters(home / "centroids", tuple(folders), tuple(ranges))
        self._cluster_sizes = [stats["images"] for stats in held]

    # dedup ----------------------------------------------------------------------------------

    def dedup(self) -> None:
        """Group copies: search inside clusters, pass after pass until every image is decided."""
        crawl, settings = self.crawl.collection, self.settings.dedup
        threshold = self.thresholds["dedup"].value
        asked = {**settings.model_dump(), "threshold": threshold}
        self._deduped = self._address(
            "dedup", [dedup.VERSION, groups.VERSION], self._clustered, asked
        )
        home = self._home("dedup", self._deduped)
        with self.engine.stage("dedup"):
            self.engine.run(
                home,
                dedup.sanity,
                [Unit("sanity", (crawl, threshold, settings))],
                note="sanity check",
            )
            before, number = None, 0
            for number in range(MOST_PASSES):
                result = self._dedup_pass(home, number, before, threshold)
                before = home / f"groups-{number}"
                if not result["undecided"]:
                    break
            else:
                raise LvdError(
                    f"dedup: {result['undecided']} images undecided: raise edges_per_image"
                )
            self.groups, self.group_counts = before, result
            [self.recall] = self.engine.run(
                home,
                dedup.recall,
                [Unit("recall", (crawl, self.clusters, threshold, settings, self.threads))],
                note="measuring recall",
            )

    def _dedup_pass(self, home: Path, number: int, before: Path | None, threshold: float) -> dict:
        crawl, settings = self.crawl.collection, self.settings.dedup
        units = [
            Unit(
                f"search-{number}-{first:08d}",
                (crawl, self.clusters, first, last, threshold, settings, before, self.threads),
                images,
            )
            for (first, last), images in zip(self.clusters.ranges, self._cluster_sizes, strict=True)
        ]
        self.engine.run(home, dedup.search, units, note=f"pass {number + 1}" if number else "")
        searched = [home / unit.name for unit in units]
        args = (crawl, searched, settings.groups, settings.edges_per_image, before)
        [result] = self.engine.run(home, groups.group, [Unit(f"groups-{number}", args)])
        return result

    # holdout and retrieve -------------------------------------------------------------------

    def holdout(self) -> None:
        """Find the crawled images that are copies of evaluation images."""
        self.held, self._held = [], None
        if not self.holdouts:
            return
        crawl, threshold = self.crawl.collection, self.thresholds["holdout"].value
        self._held = self._address(
            "holdout",
            holdout.VERSION,
            [self.crawl.address, *[[held.name, held.address] for held in self.holdouts]],
            threshold,
            self.threads,
        )
        home = self._home("holdout", self._held)
        sets = [held.collection for held in self.holdouts]
        units = [
            Unit(f"{start:012d}", (crawl, sets, start, stop, threshold, self.threads), stop - start)
            for start, stop in crawl.blocks()
        ]
        with self.engine.stage("holdout"):
            self.engine.run(home, holdout.search, units, gpus=self.search_gpus)
        self.held = [home / unit.name for unit in units]

    def retrieve(self) -> None:
        """Find the nearest seed images of every image that stands for its group."""
        crawl, k = self.crawl.collection, self.settings.report.top_k
        self._retrieved = self._address(
            "retrieve", retrieve.VERSION, [self._deduped, self.seed.address], k, self.threads
        )
        home = self._home("retrieve", self._retrieved)
        units = [
            Unit(
                f"{start:012d}",
                (crawl, self.groups, self.seed.collection, start, stop, k, self.threads),
                stop - start,
            )
            for start, stop in crawl.blocks()
        ]
        with self.engine.stage("retrieve"):
            self.engine.run(home, retrieve.search, units, gpus=self.search_gpus)
        self.retrieved = [home / unit.name for unit in units]

    def select(self) -> None:
        """Decide about every image, and deal the kept ones to shards."""
        settings = self.settings
        threshold = self.thresholds["retrieve"].value
        self.address = self._address(
            "select",
            select.VERSION,
            [self._retrieved, self._held],
            threshold,
            settings.retrieve.model_dump(exclude={"threshold"}),
            settings.export.seed,
        )
        home = self._home("select", self.address)
        args = (
            self.crawl.collection,
            self.groups,
            self.held,
            self.retrieved,
            threshold,
            settings.retrieve,
            settings.export.seed,
        )
        with self.engine.stage("select"):
            [result] = self.engine.run(home, select.select, [Unit("all", args)])
        self.selected, self.decisions = home / "all", result["decisions"]

    # export and report ----------------------------------------------------------------------

    def export(self, output: Output) -> None:
        """Write the kept images as shards below `output`."""
        crawl, size = self.crawl.collection, self.settings.export.shard_size
        source = export.Source(
            crawl=crawl,
            parts=self._parts_file(self.crawl),
            selected=self.selected,
            retrieved=tuple(self.retrieved),
            seed=self.seed.collection,
            spills={},
        )
        with self.engine.stage("export"):
            kept = self.decisions["kept"]
            spilled = [
                (index, part)
                for index, part in enumerate(self.crawl.parts)
                if kept and export.needs_spill(part)
            ]
            units = [Unit(f"spill-{index:08d}", (source, index, part)) for index, part in spilled]
            self.engine.run(output.spill, export.spill, units, scratch=output.scratch)
            source.spills.update(
                {
                    index: output.spill / unit.name
                    for (index, _), unit in zip(spilled, units, strict=True)
                }
            )
            shards = [
                Unit(
                    export.shard_name(shard),
                    (source, shard, self.settings.export),
                    min(size, kept - shard * size),
                )
                for shard in range(-(-kept // size))
            ]
            self.engine.run(
                output.shards, export.export_shard, shards, scratch=output.scratch, flat=True
            )

    def report(self, output: Output) -> None:
        """Write the tables below `output`."""
        settings = self.settings
        decided = rows.Decided(
            crawl=self.crawl.collection,
            seed=self.seed.collection,
            holdouts=tuple((held.name, held.collection) for held in self.holdouts),
            assigned=tuple(self.assigned),
            groups=self.groups,
            held=tuple(self.held),
            retrieved=tuple(self.retrieved),
            selected=self.selected,
            quality=settings.quality,
            filters=tuple(settings.filters),
            dedup_threshold=self.thresholds["dedup"].value,
            retrieve_threshold=self.thresholds["retrieve"].value,
            max_images=settings.retrieve.max_images,
            strategy=settings.retrieve.strategy,
            shard_size=settings.export.shard_size,
        )
        units = [
            Unit(f"{block:05d}", (decided, block, start, stop), stop - start)
            for block, (start, stop) in enumerate(self.crawl.collection.blocks())
        ]
        self.engine.run(output.tables, rows.tables, units, scratch=output.scratch)
        output.lay_tables([output.tables / unit.name for unit in units])

    # addresses ------------------------------------------------------------------------------

    def _address(self, stage: str, version: object, inputs: object, *settings: object) -> str:
        return fingerprint([stage, version, inputs, *settings])

    def _home(self, stage: str, address: str) -> Path:
        return self.work / stage / address

    def _parts_file(self, dataset: Embedded) -> Path:
        path = self.engine.scratch / f"parts-{dataset.address}.json"
        return path if path.exists() else save_parts(dataset.parts, path)
