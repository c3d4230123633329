"""Curation, from a crawl and a seed to shards and reports: read this first."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from curate.calibration.stage import Thresholds, find_thresholds
from curate.calibration.thresholds import Threshold
from curate.catalogue.collection import Catalogued
from curate.dedup.false_copies import FalseCopies, estimate_false_copies
from curate.dedup.holdout import Held, find_held
from curate.dedup.stage import Deduplicated, dedup
from curate.embedding.stage import EmbeddedParts, catalogued, embed
from curate.execution.output import Output, versions
from curate.execution.runner import StageRunner
from curate.export import shards
from curate.neighbours.cluster import Clustered, cluster
from curate.plan import Plan, comparable
from curate.report import rows
from curate.report.rows import Decided
from curate.report.stage import draw, write_tables
from curate.retrieval.candidates import find_candidates
from curate.retrieval.nearest_seeds import Retrieved, retrieve
from curate.retrieval.question import Chosen, Question
from curate.retrieval.strategies import choose
from curate.selection.decide import Selected, decide
from curate.selection.problems import selection_problems
from curate.stage import Runner, Stage
from shared.errors import LvdError


@dataclass(frozen=True)
class Datasets:
    """What goes into a run, as the embedders see it: `copies` for copies, `meaning` for the seed."""

    embedded: list[EmbeddedParts]
    crawl: Catalogued
    crawl_by_meaning: Catalogued
    seed: Catalogued
    holdouts: list[Catalogued]


@dataclass(frozen=True)
class Results:
    """What the stages made."""

    datasets: Datasets
    thresholds: Thresholds
    clustered: Clustered
    copies: Deduplicated
    false_copies: FalseCopies
    held: Held
    retrieved: Retrieved
    chosen: Chosen
    selected: Selected


def curate(plan: Plan, output: Output, runner: StageRunner) -> bool:
    """Run the pipeline into `output`; return False when it stands there already.

    Raises LvdError, in one line, for whatever the user can mend.
    """
    started = time.monotonic()
    results = decide_all(plan, runner)
    settings = plan.request.settings
    address = Stage(
        "output",
        [shards.VERSION, rows.VERSION],
        [results.selected.address, results.datasets.seed.address, results.false_copies.address],
        [output.settings, [each.problems for each in results.datasets.embedded]],
    ).address
    if output.stands(address):
        return False
    output.begin(address)
    datasets = results.datasets
    shards.export(
        runner,
        output,
        datasets.crawl,
        datasets.seed.collection,
        results.selected,
        results.retrieved,
        settings.export,
        settings.embed.max_pixels,
    )
    with runner.at_work("report"):
        write_tables(runner, output, _decided(plan, results))
        output.write(_run(plan, results), _funnel(plan, results), address, list(runner.used))
        if settings.report.pictures:
            of = {"crawl": datasets.crawl, "seed": datasets.seed}
            drawn = {role: (data.collection, data.parts) for role, data in of.items()}
            draw(output.partial, drawn, runner.scratch)
    output.finish(runner.times, time.monotonic() - started)
    return True


def decide_all(plan: Plan, runner: Runner) -> Results:
    """Run the stages up to the decision about every image."""
    settings, threads = plan.request.settings, plan.request.settings.engine.threads
    datasets = embed_datasets(plan, runner)
    crawl, crawl_by_meaning, seed = datasets.crawl, datasets.crawl_by_meaning, datasets.seed
    thresholds = find_thresholds(runner, plan, crawl, crawl_by_meaning, seed)
    clustered = cluster(runner, crawl, settings.cluster, threads)
    copies = dedup(runner, crawl, clustered, thresholds.dedup.value, settings.dedup, threads)
    false_copies = estimate_false_copies(
        runner, crawl, copies, settings.estimate, settings.embed.max_pixels
    )
    held = find_held(runner, crawl, datasets.holdouts, thresholds.holdout.value, threads)
    retrieved = retrieve(
        *(runner, crawl_by_meaning, copies.groups, copies.address, seed),
        *(settings.report.top_k, threads),
    )
    with runner.at_work("select"):
        candidates = find_candidates(runner, crawl.collection, copies.groups, held, retrieved)
        question = Question(
            *(runner, crawl_by_meaning, seed, candidates),
            *(thresholds.retrieve.value, settings.cluster, threads),
        )
        chosen = choose(question, settings.retrieve)
        selected = decide(
            *(runner, crawl, copies.groups, held, candidates, chosen),
            *(settings.retrieve.max_images, settings.export.seed),
        )
    if chosen.threshold is not None and chosen.target is not None:
        thresholds = replace(thresholds, retrieve=Threshold(chosen.threshold, "target"))
    return Results(
        *(datasets, thresholds, clustered, copies, false_copies, held, retrieved, chosen, selected)
    )


def embed_datasets(plan: Plan, runner: Runner) -> Datasets:
    """Embed and catalogue crawl, seed and holdouts."""
    settings = plan.request.settings
    with runner.at_work("embed"):
        done = [
            embed(runner, data.role, data.name, data.parts, plan.embed_request(data))
            for data in plan.datasets
        ]
        crawl, seed, *holdouts = done
        judged = (settings.quality, settings.filters, plan.lists)
        datasets = Datasets(
            embedded=done,
            crawl=catalogued(runner, crawl, plan.copies, *judged),
            crawl_by_meaning=catalogued(runner, crawl, plan.meaning, *judged),
            seed=catalogued(runner, seed, plan.meaning),
            holdouts=[catalogued(runner, held, plan.copies) for held in holdouts],
        )
    if not len(datasets.crawl.collection):
        problems = crawl.problems
        raise LvdError(
            f"crawl {crawl.name}: its {len(plan.crawl.parts)} parts hold no image"
            + (f" ({problems[0]})" if problems else "")
        )
    if not len(datasets.seed.collection.usable):
        raise LvdError(
            f"seed {seed.name}: none of its {len(datasets.seed.collection)} images can be "
            "read, so nothing can be similar to it: name another seed dataset"
        )
    return datasets


def _decided(plan: Plan, results: Results) -> Decided:
    datasets, settings = results.datasets, plan.request.settings
    return Decided(
        crawl=datasets.crawl.collection,
        seed=datasets.seed.collection,
        holdouts=tuple((held.name, held.collection) for held in datasets.holdouts),
        assigned=results.clustered.assigned,
        groups=results.copies.groups,
        held=results.held.folders,
        retrieved=results.retrieved.folders,
        selected=results.selected.folder,
        quality=settings.quality,
        filters=tuple(settings.filters),
        lists=plan.lists,
        dedup_threshold=results.thresholds.dedup.value,
        max_images=settings.retrieve.max_images,
        strategy=settings.retrieve.strategy,
        misses=results.chosen.misses,
        shard_size=settings.export.shard_size,
    )


def _run(plan: Plan, results: Results) -> dict[str, Any]:
    request, datasets = plan.request, results.datasets
    named = {"crawl": request.crawl, "seed": request.seed}
    addresses = {"crawl": datasets.crawl.address, "seed": datasets.seed.address}
    return {
        "crawl": datasets.crawl.name,
        "seed": datasets.seed.name,
        "holdouts": [held.name for held in datasets.holdouts],
        "embedder": request.embedder_name,
        "revisions": {
            request.embedders[stage].name: each.revision
            for stage, each in plan.embedders.items()
            if each.revision
        },
        "settings": comparable(plan.request),
        "thresholds": results.thresholds.known(),
        "calibration": results.thresholds.calibrations,
        "datasets": {
            role: {
                "name": named[role].name,
                "settings": named[role].settings.model_dump(mode="json"),
                "content": addresses[role],
            }
            for role in named
        },
        "versions": versions(),
    }


def _funnel(plan: Plan, results: Results) -> dict[str, Any]:
    counts, embedded = results.copies.counts, results.datasets.embedded
    retrieve = plan.request.settings.retrieve
    return {
        "images": len(results.datasets.crawl.collection),
        "decisions": results.selected.decisions,
        "groups": {"count": counts["groups"], "members": counts["members"]},
        "dedup_recall": results.copies.completeness,
        "dedup_precision": results.false_copies.found,
        "thresholds": results.thresholds.known(),
        "retrieval": {"strategy": retrieve.strategy, "description": retrieve.describe()},
        "problems": [
            *(text for each in embedded for text in each.problems),
            *selection_problems(
                results.selected.decisions,
                results.thresholds.retrieve.value,
                results.chosen.target,
                retrieve.strategy,
            ),
        ],
        "ignored": embedded[0].ignored,
        "set_aside": [each.part for data in embedded for each in data.aside],
        "settings": comparable(plan.request),
        "versions": versions(),
    }
