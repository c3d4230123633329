"""What a run is going to do, known before anything heavy is imported: datasets, parts, space."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from curate.catalogue.content import place_of
from curate.catalogue.exported import Exported
from curate.catalogue.labels import CompiledLabels, compile_labels
from curate.catalogue.write import Judged
from curate.dedup.hashes import METHODS
from curate.embedding.predict import Predictor
from curate.embedding.request import EmbedRequest
from curate.export.hook import load_hook
from curate.export.selection_list import require_direct
from curate.filters import luminance
from curate.filters.lists import CompiledList, compile_lists
from curate.filters.pdq import require_pdqhash
from curate.filters.phash import require_imagehash
from curate.filters.quality import needs_measures
from curate.filters.scores import FilterSettings, Source
from curate.increment import Before
from curate.request import Named, Request
from curate.retrieval.settings import OF_NEGATIVE
from curate.sample.make import make_sample
from curate.settings import PipelineSettings
from shared.datasets.dataset import DatasetSettings, Part, list_parts
from shared.embedders.embedder import identity, resolve, resolve_identity
from shared.embedders.settings import EmbedderSettings
from shared.errors import LvdError
from shared.progress import warn
from shared.storage.files import fingerprint
from shared.storage.locks import scratch_folder

BUILT_IN = "builtin:"
PARTIAL = ".partial"
"""What a result is called, behind its name, while it is built."""


@dataclass(frozen=True)
class Dataset:
    """A dataset in its role, with its parts in key order."""

    role: str
    name: str
    parts: list[Part]
    texts: tuple[str, ...] = ()
    """The captions that a seed without parts consists of."""


@dataclass(frozen=True)
class Plan:
    """A request whose datasets, lists and heads were found, with its `embedders` by what they serve."""

    request: Request
    embedders: dict[str, EmbedderSettings]
    datasets: list[Dataset]
    work: Path
    lists: tuple[CompiledList, ...] = ()
    sources: Mapping[str, Source] = field(default_factory=dict)
    """What makes the scores of filters by a model, by their names."""
    labels: CompiledLabels | None = None
    """What a person has said of images; what is to be dropped is among the `lists`."""
    before: Before | None = None
    """The finished result that the run adds to."""

    @property
    def crawl(self) -> Dataset:
        """The crawl: always the first dataset; seeds follow in the order of the request, then holdouts,
        then what is held."""
        return self.datasets[0]

    @property
    def copies(self) -> EmbedderSettings:
        """The embedder that finds copies, in the crawl and of holdouts."""
        return self.embedders["dedup"]

    @property
    def meaning(self) -> EmbedderSettings:
        """The embedder that judges similarity to the seed."""
        return self.embedders["retrieve"]

    @property
    def stays(self) -> Mapping[str | None, Exported]:
        """The images that stay: of the result that the run adds to, or by labels.

        By the name of the included seed that they are of; None: of the crawl.
        """
        if self.before is not None:
            return self.before.exported
        kept = self.labels.kept if self.labels else None
        return {} if kept is None else {None: kept}

    @property
    def removed(self) -> tuple[CompiledList, ...]:
        """What was taken out of the result that the run adds to: in no dataset it is kept."""
        return self.before.removed if self.before else ()

    @property
    def removed_of_seeds(self) -> tuple[CompiledList, ...]:
        """Those of them that images of included seeds are judged by: these have no hash."""
        return tuple(each for each in self.removed if each.kind != "pdq")

    def embed_request(self, dataset: Dataset) -> EmbedRequest:
        """Return what is asked of each part of a dataset: by role, which embedders, which scores,
        what is taken of pictures."""
        asked = [each.embedder for each in self.predictors]
        by_role = {"seed": [self.meaning], "holdout": [self.copies], "held": [self.meaning]}
        wanted = by_role.get(dataset.role, [self.copies, self.meaning, *asked])
        if is_included(dataset, self.request):
            wanted = [self.meaning, self.copies]
        distinct: dict[str, EmbedderSettings] = {}
        for each in wanted:
            distinct.setdefault(fingerprint(identity(each)), each)
        settings = self.request.settings
        filters = settings.filters if dataset.role == "crawl" else []
        return EmbedRequest(
            work=self.work,
            settings=settings.embed,
            embedders=tuple(distinct.values()),
            columns=tuple(sorted({entry.column for entry in filters if entry.column is not None})),
            threads=settings.engine.threads,
            looks=self._looks if dataset.role == "crawl" else (),
        )

    @property
    def judged(self) -> Judged:
        """What the crawl's images are judged by."""
        return self._judged(self.request.settings.filters)

    @property
    def judged_by_facts(self) -> Judged:
        """What of it asks for no vectors."""
        filters = self.request.settings.filters
        return self._judged([each for each in filters if each.asks is None])

    def _judged(self, filters: list[FilterSettings]) -> Judged:
        lists = (*self.lists, *self.removed)
        quality = self.request.settings.quality
        return Judged(quality, filters, lists, self.stays.get(None), self.labels)

    @property
    def predictors(self) -> list[Predictor]:
        """What scores the crawl's vectors for filters by a model."""
        return [
            Predictor(name, self.embedders[f"filters.{name}"], source)
            for name, source in self.sources.items()
        ]

    @property
    def _looks(self) -> tuple[str, ...]:
        measured = ["measures"] if needs_measures(self.request.settings.quality) else []
        lists = (*self.lists, *self.removed)
        hashed = ["pdq"] if any(each.kind == "pdq" for each in lists) else []
        method = self.request.settings.dedup.hash
        compared = [] if method == "none" else [METHODS[method].look]
        return (*measured, *hashed, *compared, luminance.LOOK.name)


def make_plan(request: Request, work: Path, out: Path | None = None) -> Plan:
    """Find all parts of all datasets, not in `work` nor `out`, and compile all lists in `work`.

    Raises LvdError, in a second, where a dataset has no images, where a list has a wrong entry or a
    head's file is none, and where there is no such hook, or no package for a hash.
    """
    own = [work, *([out, out.with_name(out.name + PARTIAL)] if out else [])]

    if request.settings.dedup.hash == "phash":
        require_imagehash()

    def find(role: str, named: Named[DatasetSettings]) -> Dataset:
        return Dataset(role, named.name, parts_of(named, work, own), tuple(named.settings.text))

    if request.settings.export.hook:
        load_hook(request.settings.export.hook)
    seeds = [find("seed", seed.dataset) for seed in request.seeds]
    crawl = find("crawl", request.crawl)
    holdouts = [find("holdout", holdout) for holdout in request.holdouts]
    held = [find("held", request.held)] if request.held else []
    labels = _compile_labels(request, work)
    _warn_of_shared_parts([seed for seed in seeds if seed.name in request.wanted], holdouts)
    return Plan(
        request=request,
        embedders={name: resolve(each.settings) for name, each in request.embedders.items()},
        datasets=[crawl, *seeds, *holdouts, *held],
        work=work,
        lists=(*_compile_lists(request, work), *_dropped(labels)),
        labels=labels,
        sources={
            each.name: each.asks.load(f"filters.{each.name}")
            for each in request.settings.filters
            if each.asks is not None
        },
    )


def _warn_of_shared_parts(seeds: Sequence[Dataset], holdouts: Sequence[Dataset]) -> None:
    """Warn, before anything is embedded, of holdouts whose files are those of seeds too."""
    for held in holdouts:
        places = {place_of(part) for part in held.parts}
        for seed in seeds:
            if shared := places & {place_of(part) for part in seed.parts}:
                warn(
                    f"holdout {held.name}: {len(shared):,} of its {len(places):,} parts are parts of "
                    f"seed {seed.name} too: what is like them is looked for, and their copies are "
                    "dropped; name a seed without them, such as the training split alone"
                )


def _compile_lists(request: Request, work: Path) -> tuple[CompiledList, ...]:
    lists = request.settings.lists
    if not lists:
        return ()
    if any(each.kind == "pdq" for each in lists.values()):
        require_pdqhash()
    with scratch_folder(work / "scratch") as scratch:
        return compile_lists(lists, work, scratch)


def _compile_labels(request: Request, work: Path) -> CompiledLabels | None:
    if request.settings.labels is None:
        return None
    with scratch_folder(work / "scratch") as scratch:
        return compile_labels(Path(request.settings.labels), work, scratch)


def _dropped(labels: CompiledLabels | None) -> list[CompiledList]:
    return [labels.dropped] if labels is not None and labels.dropped is not None else []


def pinned(plan: Plan) -> Plan:
    """Return the plan with the models of hubs pinned to the revision that is there now.

    Raises LvdError where a hub that has to say cannot be reached.
    """
    embedders = {name: resolve_identity(each) for name, each in plan.embedders.items()}
    return replace(plan, embedders=embedders)


def comparable(request: Request) -> dict[str, Any]:
    """Return the settings that decide the result: those that an OUT is compared by."""
    embedders = {
        name: {
            "name": each.name,
            **resolve(each.settings).model_dump(mode="json", exclude={"device", "batch_size"}),
        }
        for name, each in request.embedders.items()
    }
    return {
        "pipeline": request.pipeline,
        "crawl": request.crawl.name,
        "holdouts": [held.name for held in request.holdouts],
        "embedders": embedders,
        **request.settings.model_dump(
            mode="json",
            exclude={
                **dict.fromkeys(("crawl", "seed", "seeds", "holdouts", "embedder"), True),
                **{
                    "engine": {"workers", "patience", "copy_bytes"},
                    "embed": {"decode_threads", *_once_if_exact(request)},
                },
                **{"dedup": {"embedder"}, "retrieve": {"embedder"}, "export": {"also"}},
                **{"cluster": {"drift"}},
            },
        ),
        "seeds": {seed.name: seed.settings.model_dump(mode="json") for seed in request.seeds},
    }


def _once_if_exact(request: Request) -> set[str]:
    """Return the setting that lends vectors, where it changes no result."""
    return set() if request.settings.embed.once == "hash" else {"once"}


def options_of(request: Request) -> list[str]:
    """Return the `--embedder` and `--set` of a run as words, but for what `comparable` leaves out."""
    said = request.configuration.options
    pairs = zip(said[::2], said[1::2], strict=True)
    aside = (
        *("engine.workers", "engine.patience", "engine.copy_bytes"),
        *("embed.decode_threads", "export.also", "cluster.drift"),
    )
    return [word for pair in pairs if not pair[1].startswith(aside) for word in pair]


def pipeline_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pipeline that a result was made by, from its `run.json`."""
    settings = run["settings"]
    known = {name: settings[name] for name in PipelineSettings.model_fields if name in settings}
    named = {
        stage: {**known.get(stage, {}), "embedder": settings["embedders"][stage]["name"]}
        for stage in ("dedup", "retrieve")
    }
    export = {**known["export"], "also": run.get("copies", [])}
    cluster = {**known["cluster"], "drift": run["clusters"]["drift"]}
    seeds = {
        name: {key: said[key] for key in OF_NEGATIVE} if said["negative"] else said
        for name, said in known["seeds"].items()
    }
    return {**known, **named, "cluster": cluster, "export": export, "seeds": seeds}


def seed_roles(request: Request) -> list[str]:
    """Return what `run.json` calls the seeds: `seed`, or with several `seed NAME`."""
    names = [seed.name for seed in request.seeds]
    return ["seed"] if len(names) == 1 else [f"seed {name}" for name in names]


def parts_of(named: Named[DatasetSettings], work: Path, exclude: Sequence[Path] = ()) -> list[Part]:
    """Return the parts of a dataset in the order of their keys; the built-in sample is made.

    One of text has none.

    Folders in `exclude` that lie below the dataset's are no part of it.
    """
    settings = named.settings
    if settings.text:
        return []
    if isinstance(settings.path, str) and settings.path.startswith(BUILT_IN):
        make_sample(work / "sample")
        path = work / "sample" / settings.path.removeprefix(BUILT_IN)
        settings = DatasetSettings(**{**settings.model_dump(), "path": str(path)})
    try:
        parts = list_parts(named.name, settings, exclude=exclude)
    except LvdError as error:
        if named.source:
            written = "the dataset's `path` in pipelines.yaml"
            raise LvdError(str(error).replace(written, named.source)) from error
        if not named.variables:
            raise
        raise LvdError(f"{error}, or set {named.variables} to where it is") from error
    return sorted(parts, key=lambda part: part.name + "/")


def default_out(request: Request) -> Path:
    """Return `runs/curate/<crawl>-<seed>`; of more than two seeds the first two are named."""
    names = [label(name) for name in request.wanted]
    more = [f"{len(names) - 2}-more"] if len(names) > 2 else []
    return Path("runs") / "curate" / "-".join([label(request.crawl.name), *names[:2], *more])


def label(name: str) -> str:
    """Return what a dataset's name or path is called in the name of a folder."""
    path = name.rstrip("/").split("/")[-1]
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", path).strip("._") or "dataset"


def check_export(plan: Plan) -> None:
    """Raise LvdError, before anything is computed, where the images cannot go out as asked for."""
    if plan.request.settings.export.format == "list":
        for dataset in written(plan):
            require_direct(dataset.name, dataset.parts)


def written(plan: Plan) -> list[Dataset]:
    """Return the datasets of which images go out: the crawl, and seeds that are included."""
    return [x for x in plan.datasets if x is plan.crawl or is_included(x, plan.request)]


def is_included(dataset: Dataset, request: Request) -> bool:
    """Tell whether a dataset's own images go out."""
    return dataset.role == "seed" and dataset.name in request.included
