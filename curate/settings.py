"""The curation half of pipelines.yaml: what may stand there."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from curate.calibration.measure import CalibrateSettings
from curate.dedup.false_copies import EstimateSettings
from curate.dedup.holdout import HoldoutSettings
from curate.dedup.near import DedupSettings
from curate.embedding.request import EmbedSettings
from curate.export.shards import ExportSettings
from curate.filters.lists import ListSettings
from curate.filters.quality import QualitySettings
from curate.filters.scores import FilterSettings
from curate.neighbours.cluster import ClusterSettings
from curate.report.settings import ReportSettings
from curate.retrieval.settings import RetrieveSettings, SeedSettings
from curate.selection.sampling import BalanceSettings
from curate.selection.top_up import TopUpSettings
from curate.stage import EngineSettings
from shared.datasets.dataset import DatasetSettings
from shared.embedders.settings import BUNDLED, DESCRIPTOR, EmbedderSettings, bundled_settings


class PipelineSettings(BaseModel):
    """One curation pipeline: which datasets, which embedder, and each stage's settings."""

    model_config = ConfigDict(extra="forbid")

    crawl: str | None = None
    seed: str | None = None
    seeds: dict[str, SeedSettings | None] = Field(default_factory=dict)
    """In place of `seed`: several datasets, each with what it has of its own beside `retrieve`."""
    holdouts: list[str] = Field(default_factory=list)
    embedder: str | None = None
    """Finds copies and judges meaning, unless `dedup.embedder` or `retrieve.embedder` does. Where
    nobody names one, `bundled-copies` finds copies and `bundled` judges meaning."""
    embed: EmbedSettings = Field(default_factory=EmbedSettings)
    quality: QualitySettings = Field(default_factory=QualitySettings)
    filters: list[FilterSettings] = Field(default_factory=list)
    lists: dict[str, ListSettings] = Field(default_factory=dict)
    """Known-bad images and opt-outs, by names that the reasons give."""
    labels: str | None = None
    """What a person said of images of an earlier result, which this run keeps to: a file that `lvd-curate
    label` wrote."""
    calibrate: CalibrateSettings = Field(default_factory=CalibrateSettings)
    cluster: ClusterSettings = Field(default_factory=ClusterSettings)
    dedup: DedupSettings = Field(default_factory=DedupSettings)
    estimate: EstimateSettings = Field(default_factory=EstimateSettings)
    holdout: HoldoutSettings = Field(default_factory=HoldoutSettings)
    retrieve: RetrieveSettings = Field(default_factory=RetrieveSettings)
    balance: BalanceSettings = Field(default_factory=BalanceSettings)
    top_up: TopUpSettings = Field(default_factory=TopUpSettings)
    export: ExportSettings = Field(default_factory=ExportSettings)
    report: ReportSettings = Field(default_factory=ReportSettings)
    engine: EngineSettings = Field(default_factory=EngineSettings)

    @model_validator(mode="after")
    def _names_its_filters_once(self) -> PipelineSettings:
        own = [each.score for each in self.filters if each.asks is not None]
        columns = {each.score for each in self.filters if each.asks is None}
        if len({*own, *columns}) < len(own) + len(columns):
            raise ValueError("two filters by a model have one name, or one has that of a column")
        return self

    @model_validator(mode="after")
    def _names_its_seeds_once(self) -> PipelineSettings:
        if self.seed and self.seeds:
            raise ValueError(
                "seed and seeds exclude each other: name all datasets under seeds, with "
                "--set seed=null where the pipeline names a seed, or say --seed NAME"
            )
        return self

    @model_validator(mode="after")
    def _names_the_hash_of_what_is_embedded_once(self) -> PipelineSettings:
        if self.embed.once == "hash" and self.dedup.hash == "none":
            raise ValueError(
                "embed.once=hash: dedup.hash names no hash: set it to pca or phash, or embed.once to "
                "false"
            )
        return self

    @model_validator(mode="after")
    def _draws_in_one_way(self) -> PipelineSettings:
        if self.balance.target is not None and self.top_up.target is not None:
            raise ValueError(
                "balance.target and top_up.target exclude each other: set one of them to null"
            )
        return self


class PipelinesFile(BaseModel):
    """The whole of pipelines.yaml."""

    model_config = ConfigDict(extra="forbid")

    datasets: dict[str, DatasetSettings] = Field(default_factory=dict)
    embedders: dict[str, EmbedderSettings] = Field(default_factory=dict)
    pipelines: dict[str, PipelineSettings] = Field(default_factory=dict)
    recipes: Any = None
    """Stage two's section: `lvd-train` checks it."""


def with_bundled(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration's tree with the embedders that need no entry, unless it has one."""
    declared = tree.get("embedders") or {}
    if not isinstance(declared, dict):
        return tree
    built_in = {name: bundled_settings(name).model_dump(exclude_defaults=True) for name in BUNDLED}
    built_in[DESCRIPTOR] = {"kind": DESCRIPTOR}
    return {**tree, "embedders": {**built_in, **declared}}
