"""What passes between the steps of the pipeline: the datasets of a run, and what its stages made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from curate.calibration.stage import Thresholds
from curate.catalogue.collection import Catalogued
from curate.dedup.chains import Dropped
from curate.dedup.false_copies import FalseCopies
from curate.dedup.overlap import Overlap
from curate.dedup.stage import Deduplicated
from curate.embedding.stage import EmbeddedParts
from curate.neighbours.cluster import Clustered
from curate.plan import Plan
from curate.retrieval.answers import Answers
from curate.selection.balance import Balanced
from curate.selection.decide import Selected
from curate.selection.include import Included
from curate.selection.top_up import TopUp
from shared.storage.files import fingerprint


@dataclass(frozen=True)
class Datasets:
    """What goes into a run, as the embedders see it: `copies` for copies, `meaning` for the seeds."""

    embedded: list[EmbeddedParts]
    crawl: Catalogued
    crawl_by_meaning: Catalogued
    seeds: list[Catalogued]
    """In the order of the request, negative ones too."""
    included: list[Catalogued]
    """Seeds whose own images go into the shards, as the embedder for copies sees them."""
    holdouts: list[Catalogued]
    held: list[Catalogued]
    """What `top_up` adds to, as the embedder for meaning sees it; none, or one."""

    def inputs(self, plan: Plan) -> str:
        """Return what stands for all that goes into a run but its settings."""
        return inputs_of(plan, self.embedded)

    @property
    def included_by_meaning(self) -> list[Catalogued]:
        """The included seeds as the embedder for meaning sees them."""
        by_name = {seed.name: seed for seed in self.seeds}
        return [by_name[seed.name] for seed in self.included]


def inputs_of(plan: Plan, embedded: Sequence[EmbeddedParts]) -> str:
    """Return what stands for all that goes into a run but its settings."""
    parts = [
        [data.role, data.name, [part.name for part in data.parts], data.contents]
        for data in embedded
    ]
    texts = [sorted(data.texts) for data in plan.datasets]
    lists = sorted({each.content for each in plan.lists})
    labels = [plan.labels.content] if plan.labels else []
    heads = {name: source.about for name, source in plan.sources.items()}
    named = [plan.request.crawl, *(each.dataset for each in plan.request.seeds)]
    named += [*plan.request.holdouts, *([plan.request.held] if plan.request.held else [])]
    settings = [each.settings for each in named]
    notes = [[each.licence, each.source, each.homepage] for each in settings]
    return fingerprint([parts, texts, lists, heads, notes, *labels])


@dataclass(frozen=True)
class Results:
    """What the stages made."""

    datasets: Datasets
    thresholds: Thresholds
    clustered: Clustered
    copies: Deduplicated
    false_copies: FalseCopies
    dropped: Dropped
    overlaps: list[Overlap]
    included: Included
    answers: Answers
    balanced: Balanced
    topped_up: TopUp | None
    selected: Selected
