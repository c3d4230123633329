"""What a run is asked for: a pipeline's settings, and the datasets and embedders that it names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from curate.retrieval.settings import SeedSettings, settings_of_seed
from curate.settings import PipelineSettings, PipelinesFile, with_bundled
from shared.config import (
    apply_overrides,
    expand,
    load_yaml,
    require_expanded,
    source_of,
    validate,
)
from shared.datasets.dataset import DatasetSettings
from shared.embedders.embedder import settings_for_folder
from shared.embedders.settings import DEFAULTS, EmbedderSettings
from shared.errors import LvdError, nearest

Settings = TypeVar("Settings", DatasetSettings, EmbedderSettings)


@dataclass(frozen=True)
class Named(Generic[Settings]):
    """A dataset or an embedder with the name or path that it was asked for by."""

    name: str
    settings: Settings
    variables: str = ""
    """Environment variables that its declared path is made of."""
    source: str = ""
    """The override of this call that says where it is."""


@dataclass(frozen=True)
class Seed:
    """A seed dataset, and what it retrieves."""

    dataset: Named[DatasetSettings]
    settings: SeedSettings
    said_at: str
    """The section of the pipeline that its settings stand in: `retrieve` or `seeds.NAME`."""

    @property
    def name(self) -> str:
        """The name or path of the dataset."""
        return self.dataset.name


@dataclass(frozen=True)
class Configuration:
    """A configuration file: what stands in it, and what the overrides of this call make of it."""

    path: Path
    file: dict[str, Any]
    """Without the overrides, its variables replaced."""
    overrides: tuple[str, ...]
    """With their whole keys."""
    whole: PipelinesFile
    options: tuple[str, ...]
    """The `--embedder` and `--set` that made the settings, as words of a command."""


@dataclass(frozen=True)
class Request:
    """Everything that a run is asked for, validated."""

    pipeline: str
    settings: PipelineSettings
    embedders: dict[str, Named[EmbedderSettings]]
    """`dedup`, for copies (holdouts' too), `retrieve`, for meaning, and `filters.NAME` for a filter
    by a model."""
    crawl: Named[DatasetSettings]
    seeds: tuple[Seed, ...]
    """In the order of their names, negative ones too."""
    holdouts: tuple[Named[DatasetSettings], ...]
    held: Named[DatasetSettings] | None
    """What `top_up` adds to."""
    configuration: Configuration

    @property
    def embedder_name(self) -> str:
        """The name of the embedder for copies and meaning, or of both."""
        return " and ".join(dict.fromkeys(self.embedders[role].name for role in DEFAULTS))

    @property
    def wanted(self) -> tuple[str, ...]:
        """The names of the seeds whose like is wanted: all but the negative ones."""
        return tuple(seed.name for seed in self.seeds if not seed.settings.negative)

    @property
    def included(self) -> tuple[str, ...]:
        """The names of the seeds whose own images go into the shards too."""
        return tuple(seed.name for seed in self.seeds if seed.settings.include)


def read_request(
    config: Path | None,
    pipeline: str,
    *,
    embedder: str | None,
    crawl: str | None,
    seeds: Sequence[str],
    holdouts: Sequence[str],
    overrides: Sequence[str],
    settings: Mapping[str, Any] | None = None,
    options: Sequence[str] = (),
) -> Request:
    """Read and check the configuration of a run; LvdError, in one line, for all that is wrong.

    With `settings` these are the pipeline's, whatever the file has, and `options` are those that made
    them. Without `config` it is `pipelines.yaml` of this folder, where there is one. An override
    counts for the pipeline unless it begins with `datasets.`, `embedders.` or `pipelines.`.
    """
    config, file = _read_file(config)
    pipelines = file.get("pipelines")
    known = pipelines if isinstance(pipelines, dict) else {}
    if settings is not None:
        known = {**known, pipeline: dict(settings)}
        file["pipelines"] = known
    if pipeline not in known:
        raise LvdError(
            f"no pipeline {pipeline!r} in {config}{nearest(pipeline, known)}: "
            f"it has {', '.join(sorted(known)) or 'none'}"
        )
    absolute = [
        text
        if re.match(r"(datasets|embedders|pipelines)\.", text)
        else f"pipelines.{pipeline}.{text}"
        for text in overrides
    ]
    with _as_typed(pipeline, overrides):
        tree = apply_overrides(file, absolute)
        whole = validate(PipelinesFile, expand(tree), file=config, overrides=absolute)
        names = Names(config, pipeline, whole, tree, absolute)
        validated = whole.pipelines[pipeline]
        embedders = {name: names.embedder(name, embedder) for name in DEFAULTS}
        embedders |= names.of_filters(embedders)
        for name, entry in validated.lists.items():
            require_expanded(entry.path, f"pipelines.{pipeline}.lists.{name}.path", config)
        return Request(
            pipeline=pipeline,
            settings=validated,
            seeds=names.seeds(seeds, embedders["retrieve"]),
            crawl=names.dataset("crawl", crawl or validated.crawl),
            embedders=embedders,
            holdouts=tuple(
                names.dataset("holdouts", name) for name in holdouts or validated.holdouts
            ),
            held=names.held(),
            configuration=Configuration(
                config,
                expand(file),
                tuple(absolute),
                whole,
                (*options, *_words(embedder, overrides)),
            ),
        )


def _read_file(config: Path | None) -> tuple[Path, dict[str, Any]]:
    """Return the path of a configuration, and what stands in it with what is built in."""
    path = config or Path("pipelines.yaml")
    return path, with_bundled(load_yaml(path) if config or path.exists() else {})


def _words(embedder: str | None, overrides: Sequence[str]) -> Iterator[str]:
    if embedder is not None:
        yield from ("--embedder", embedder)
    for text in overrides:
        yield from ("--set", text)


def read_names(config: Path | None) -> Names:
    """Read and check a configuration, to look up datasets and embedders without a pipeline.

    None is `pipelines.yaml` of this folder, where there is one: paths need none.
    """
    path, file = _read_file(config)
    return Names(path, "", validate(PipelinesFile, expand(file), file=path), file, ())


@contextmanager
def _as_typed(pipeline: str, overrides: Sequence[str]) -> Iterator[None]:
    """Let errors speak of overrides as they were typed."""
    try:
        yield
    except LvdError as error:
        said = str(error)
        for text in overrides:
            said = said.replace(f"pipelines.{pipeline}.{text}", text)
        raise LvdError(said) from error


@dataclass(frozen=True)
class Names:
    """Looks up names of datasets and embedders, and those of a pipeline."""

    config: Path
    pipeline: str
    whole: PipelinesFile
    tree: dict[str, Any]
    overrides: Sequence[str]

    def embedder(self, stage: str, asked: str | None) -> Named[EmbedderSettings]:
        """Return the embedder of `dedup` or `retrieve`.

        What this call says counts more than the file, and what either says of the stage more than
        what it says of both.
        """
        name, source = self._named_for(stage, asked)
        found = self.find_embedder(name, source)
        if found.settings.task == "classify":
            raise LvdError(
                f"{source and source + ': '}embedder {name} classifies, and {stage} needs vectors: "
                "name one without a task"
            )
        return found

    def of_filters(
        self, by_role: Mapping[str, Named[EmbedderSettings]]
    ) -> dict[str, Named[EmbedderSettings]]:
        """Return, as `filters.NAME`, the embedder of each filter by a model: of a role, or its own."""
        found = {}
        for entry in self.whole.pipelines[self.pipeline].filters:
            if entry.asks is None:
                continue
            place = f"filters.{entry.name}"
            model, task = entry.asks.model, "classify" if entry.classifier else "embed"
            found[place] = by_role.get(model) or self.find_embedder(model, place, task)
            try:
                entry.asks.require(found[place].settings)
            except ValueError as error:
                raise LvdError(f"{place}: embedder {model} {error}") from None
        return found

    def find_embedder(
        self, name: str, source: str = "", task: str = "embed"
    ) -> Named[EmbedderSettings]:
        """Return the embedder of that name, or of the model folder that it is, for that task."""
        known = self.whole.embedders
        if name in known:
            return Named(name, known[name])
        if "/" in name or Path(name).is_dir():
            settings = settings_for_folder(Path(name))
            return Named(name, settings.model_copy(update={"task": task}))
        raise LvdError(
            f"{source and source + ': '}no embedder {name!r} in {self.config}{nearest(name, known)}: "
            f"it has {', '.join(sorted(known)) or 'none'}; or name a model folder"
        )

    def _named_for(self, stage: str, asked: str | None) -> tuple[str, str]:
        """Return the name of a stage's embedder, and the --set that says it."""
        settings = self.whole.pipelines[self.pipeline]
        own, both = getattr(settings, stage).embedder, settings.embedder
        set_own, set_both = self._source(f"{stage}.embedder"), self._source("embedder")
        said = (
            (set_own and own, set_own),
            (asked, ""),
            (set_both and both, set_both),
            (own, ""),
            (both, ""),
        )
        return next(((name, by) for name, by in said if name), (DEFAULTS[stage], ""))

    def dataset(self, role: str, name: str | None) -> Named[DatasetSettings]:
        """Return the dataset of that name, or the path that it is."""
        if not name:
            raise LvdError(
                f"pipelines.{self.pipeline}.{role} in {self.config} names no dataset: say "
                f"--{role} NAME or PATH"
            )
        known = self.whole.datasets
        if name in known:
            settings, key = known[name], f"datasets.{name}.path"
            if settings.text and role != "seed":
                raise LvdError(f"dataset {name} is text, which can be a seed only, not a {role}")
            source = source_of(key, self.overrides)
            for path in [settings.path] if isinstance(settings.path, str) else settings.path:
                require_expanded(path, key, source or self.config)
            written = str(self.tree["datasets"][name].get("path"))
            variables = ", ".join(sorted(set(re.findall(r"\$\{(\w+)", written))))
            return Named(name, settings, variables, source)
        if "/" in name or Path(name).exists() or any(sign in name for sign in "*?[{"):
            return Named(name, DatasetSettings(path=name))
        source = self._source(role)
        there = f"the file has {', '.join(sorted(known)) or 'none'}"
        raise LvdError(
            f"{source and source + ': '}no dataset {name!r} in {self.config}{nearest(name, known)}, "
            f"and no such path: {there if self.config.exists() else 'the file is not there'}"
        )

    def held(self) -> Named[DatasetSettings] | None:
        """Return what `top_up` adds to, if to anything."""
        name = self.whole.pipelines[self.pipeline].top_up.held
        return None if name is None else self.dataset("top_up.held", name)

    def seeds(self, asked: Sequence[str], embedder: Named[EmbedderSettings]) -> tuple[Seed, ...]:
        """Return the seeds of the call, else those of the pipeline, each with its settings.

        `embedder` is the one for meaning.
        """
        settings = self.whole.pipelines[self.pipeline]
        names = asked or ([settings.seed] if settings.seed else list(settings.seeds))
        seeds = sorted(map(self._seed, names or [""]), key=lambda seed: seed.name)
        known: dict[str, str] = {}
        for seed in seeds:
            _check_text(seed, embedder)
            path = repr([seed.dataset.settings.path, sorted(seed.dataset.settings.text)])
            if path in known:
                both = " and ".join(dict.fromkeys((known[path], seed.name)))
                raise LvdError(f"seed {both}: the same data twice: name each dataset once")
            known[path] = seed.name
        if all(seed.settings.negative for seed in seeds):
            raise LvdError(
                f"{', '.join(known.values())}: negative seeds only, so nothing is wanted: name a "
                "seed whose like is to be kept, with --seed NAME or PATH"
            )
        if all(seed.settings.takes_nothing for seed in seeds):
            raise LvdError(
                f"{', '.join(known.values())}: strategy none retrieves nothing, and no seed's own images "
                "are included: name a strategy, or say include: true"
            )
        return tuple(seeds)

    def _seed(self, name: str) -> Seed:
        settings = self.whole.pipelines[self.pipeline]
        said_at = f"seeds.{name}" if name in settings.seeds else "retrieve"
        own = settings.seeds.get(name) or SeedSettings()
        return Seed(
            self.dataset("seed", name),
            validate(
                SeedSettings,
                settings_of_seed(settings.retrieve, own),
                file=self.config,
                at=f"pipelines.{self.pipeline}.{said_at}",
                overrides=self.overrides,
            ),
            said_at,
        )

    def _source(self, key: str) -> str:
        return source_of(f"pipelines.{self.pipeline}.{key}", self.overrides)


def _check_text(seed: Seed, embedder: Named[EmbedderSettings]) -> None:
    """Refuse what cannot be done with a seed of captions."""
    settings = seed.settings
    if not seed.dataset.settings.text:
        return
    if embedder.settings.kind != "open_clip":
        raise LvdError(
            f"seed {seed.name} is text, which embedder {embedder.name} of kind "
            f"{embedder.settings.kind} has no tower for: name one of kind open_clip, with --set "
            "retrieve.embedder=NAME"
        )
    if settings.include:
        raise LvdError(f"seed {seed.name} is text, so there is no image to include")
    is_measured = settings.threshold == "auto" or (
        settings.threshold is None and embedder.settings.thresholds.retrieve in (None, "auto")
    )
    if settings.strategy == "threshold" and settings.target is None and is_measured:
        raise LvdError(
            f"seed {seed.name} is text, of which no threshold can be measured: say a number, with "
            f"--set {seed.said_at}.threshold=..., or {seed.said_at}.target=..."
        )
