"""Curation, from a crawl and its seeds to shards and reports: read this first."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from curate.calibration.stage import Thresholds, find_thresholds
from curate.catalogue.collection import Catalogued
from curate.dedup.chains import Dropped, follow_copies
from curate.dedup.false_copies import FalseCopies, estimate_false_copies
from curate.dedup.holdout import find_copies
from curate.dedup.looks import LOOK_COUNTS
from curate.dedup.overlap import Overlap, find_overlaps
from curate.dedup.stage import Deduplicated, dedup
from curate.embedding.predict import compile_predictors, predict
from curate.embedding.stage import EmbeddedParts, catalogued, embed
from curate.embedding.text import embed_text
from curate.execution.output import Output, versions
from curate.execution.runner import StageRunner
from curate.export import embeddings, selection_list, shards
from curate.export.bounds import ShardBounds, bound_shards
from curate.export.embeddings import export_embeddings
from curate.neighbours.cluster import Clustered, cluster
from curate.plan import Plan, seed_roles
from curate.report import datasheet, groups, rows, seed_images
from curate.report.datasheet import write_datasheet
from curate.report.rows import Decided
from curate.report.seeds import describe_seeds
from curate.report.stage import draw, write_tables
from curate.retrieval.answers import Answers, ask_seeds
from curate.retrieval.nearest_seeds import retrieve
from curate.selection.balance import Balanced, balance, balance_problems
from curate.selection.decide import Selected, decide
from curate.selection.include import Included, include
from curate.selection.problems import barred_problems, selection_problems
from curate.selection.top_up import TopUp, top_up, top_up_problems
from curate.stage import Runner, Stage
from shared.embedders import identity
from shared.errors import LvdError
from shared.progress import say
from shared.storage import fingerprint

_EXPORT_VERSIONS = {"shards": shards.VERSION, "list": selection_list.VERSION}


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
        parts = [
            [data.role, data.name, [part.name for part in data.parts], data.contents]
            for data in self.embedded
        ]
        texts = [sorted(data.texts) for data in plan.datasets]
        lists = sorted({each.content for each in plan.lists})
        heads = {name: source.about for name, source in plan.sources.items()}
        named = [plan.request.crawl, *(each.dataset for each in plan.request.seeds)]
        named += [*plan.request.holdouts, *([plan.request.held] if plan.request.held else [])]
        settings = [each.settings for each in named]
        notes = [[each.licence, each.source, each.homepage] for each in settings]
        return fingerprint([parts, texts, lists, heads, notes])

    @property
    def included_by_meaning(self) -> list[Catalogued]:
        """The included seeds as the embedder for meaning sees them."""
        by_name = {seed.name: seed for seed in self.seeds}
        return [by_name[seed.name] for seed in self.included]


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


def curate(plan: Plan, output: Output, runner: StageRunner) -> bool:
    """Run the pipeline into `output`; return False when it stands there already.

    Raises LvdError, in one line, for whatever the user can mend.
    """
    started = time.monotonic()
    datasets, before = embed_datasets(plan, runner), plan.before
    if before is not None and output.is_up_to_date(before, datasets.inputs(plan)):
        return False
    if before is None and (
        line := output.describe_growth(datasets.crawl.name, len(datasets.crawl.collection))
    ):
        say(line)
    results = decide_all(plan, runner, datasets)
    settings = plan.request.settings
    seeds = [seed.address for seed in datasets.seeds]
    address = Stage(
        "output",
        [
            *(_EXPORT_VERSIONS[settings.export.format], embeddings.VERSION),
            *(rows.VERSION, groups.VERSION, seed_images.VERSION, datasheet.VERSION),
        ],
        [results.selected.address, seeds, results.false_copies.address],
        [output.settings, datasets.inputs(plan), [each.problems for each in datasets.embedded]],
    ).address
    if output.stands(address):
        return False
    output.begin(address, adding=before is not None and before.written is not None)
    if before is not None:
        output.keep(before)
    output.lay_centroids(results.clustered.clusters.centers)
    bounds = export(plan, output, runner, results)
    with runner.at_work("report"):
        write_tables(runner, output, _decided(plan, results, bounds))
        output.write(
            *(
                _run(plan, results, bounds, output.settings),
                _funnel(plan, results, output.settings),
            ),
            *(address, list(runner.used)),
        )
        write_datasheet(output.partial)
        if settings.report.pictures:
            draw(output.partial, datasets.crawl, datasets.seeds, runner.scratch)
    output.finish(runner.times, time.monotonic() - started)
    return True


def export(plan: Plan, output: Output, runner: StageRunner, results: Results) -> ShardBounds:
    """Write the kept images, or a list of them; return which of them each shard holds."""
    settings, datasets, selected = plan.request.settings, results.datasets, results.selected
    sources = [datasets.crawl, *datasets.included]
    with runner.at_work("export"):
        bounds = bound_shards(
            runner.scratch / "bounds.npy",
            [each.collection for each in sources],
            selected.folder,
            selected.exported,
            settings.export.shard_size,
            settings.export.shard_bytes,
            plan.before.written if plan.before else None,
        )
        if settings.export.format == "list":
            selection_list.export_list(runner, output, sources, selected, bounds)
        else:
            shards.export_shards(
                *(runner, output, sources, selected, bounds, results.answers.nearest),
                *(settings.export, settings.embed.max_pixels),
            )
    if settings.export.embeddings:
        with runner.at_work("embeddings"):
            by_meaning = [datasets.crawl_by_meaning, *datasets.included_by_meaning]
            collections = [each.collection for each in by_meaning]
            export_embeddings(runner, output, collections, selected.folder, bounds)
    return bounds


def decide_all(plan: Plan, runner: Runner, datasets: Datasets) -> Results:
    """Run the stages up to the decision about every image."""
    settings, threads = plan.request.settings, plan.request.settings.engine.threads
    before = plan.before.keep_centroids(settings.cluster) if plan.before else None
    crawl, by_meaning, seeds = datasets.crawl, datasets.crawl_by_meaning, datasets.seeds
    thresholds = find_thresholds(runner, plan, crawl, by_meaning, seeds)
    clustered = cluster(runner, crawl, settings.cluster, threads, before)
    max_pixels = settings.embed.max_pixels
    copies = dedup(
        *(runner, crawl, clustered, thresholds.dedup.value, settings.dedup, max_pixels, threads)
    )
    false_copies = estimate_false_copies(runner, crawl, copies, settings.estimate, max_pixels)
    dropped, overlaps = apply_holdouts(plan, runner, datasets, thresholds, clustered, copies)
    included = include(
        *(runner, crawl, datasets.included, datasets.holdouts),
        *(thresholds.dedup.value, thresholds.holdout.value, threads),
    )
    top_k = settings.report.top_k
    retrieved = retrieve(runner, by_meaning, copies.groups, copies.address, seeds, top_k, threads)
    with runner.at_work("select"):
        answers = ask_seeds(
            runner,
            by_meaning,
            seeds,
            retrieved,
            [seed.settings for seed in plan.request.seeds],
            thresholds.seeds,
            *(copies.groups, dropped, included.copies, settings.cluster, top_k, threads),
        )
        most, order = settings.retrieve.max_images, settings.export.seed
        balanced = balance(runner, by_meaning, answers, most, settings.balance, threads)
        known = [*datasets.held, *datasets.included_by_meaning]
        topped_up = top_up(runner, by_meaning, known, answers, most, settings.top_up, threads)
        selected = decide(
            *(runner, crawl, copies.groups, dropped, answers, included, most),
            *(balanced, topped_up, order),
        )
    return Results(
        *(datasets, thresholds, clustered, copies, false_copies, dropped, overlaps),
        *(included, answers, balanced, topped_up, selected),
    )


def apply_holdouts(
    plan: Plan,
    runner: Runner,
    datasets: Datasets,
    thresholds: Thresholds,
    clustered: Clustered,
    copies: Deduplicated,
) -> tuple[Dropped, list[Overlap]]:
    """Find what the holdouts drop of the crawl, and what they share with the seeds."""
    crawl, holdouts = datasets.crawl, datasets.holdouts
    threads = plan.request.settings.engine.threads
    if not holdouts:
        return Dropped(), []
    with runner.at_work("holdout"):
        held = find_copies(runner, crawl, holdouts, thresholds.holdout.value, threads)
        return (
            follow_copies(
                *(runner, crawl, clustered, held, copies, thresholds.dedup.value, threads)
            ),
            find_overlaps(runner, _wanted_images(plan, datasets.seeds), holdouts),
        )


def embed_datasets(plan: Plan, runner: Runner) -> Datasets:
    """Embed and catalogue crawl, seeds and holdouts."""
    settings = plan.request.settings
    with runner.at_work("embed"):
        predictors = compile_predictors(runner, plan.predictors, settings.engine.threads)
        done = [
            embed(runner, data.role, data.name, data.parts, plan.embed_request(data))
            for data in plan.datasets
            if not data.texts
        ]
        crawl = predict(runner, done[0], predictors)
        exported = plan.before.exported if plan.before else {}
        lists = (*plan.lists, *plan.removed)
        judged = (settings.quality, settings.filters, lists, exported.get(None))
        datasets = Datasets(
            embedded=done,
            crawl=catalogued(runner, crawl, plan.copies, *judged),
            crawl_by_meaning=catalogued(runner, crawl, plan.meaning, *judged),
            seeds=_catalogued_seeds(plan, runner, done),
            included=[
                catalogued(
                    runner,
                    x,
                    plan.copies,
                    lists=plan.removed_of_seeds,
                    exported=exported.get(x.name),
                )
                for x in done
                if x.role == "seed" and x.name in plan.request.included
            ],
            holdouts=[catalogued(runner, x, plan.copies) for x in done if x.role == "holdout"],
            held=[catalogued(runner, x, plan.meaning) for x in done if x.role == "held"],
        )
    if not len(datasets.crawl.collection):
        problems = crawl.problems
        raise LvdError(
            f"crawl {crawl.name}: its {len(plan.crawl.parts)} parts hold no image"
            + (f" ({problems[0]})" if problems else "")
        )
    for seed in datasets.seeds:
        if not len(seed.collection.usable):
            raise LvdError(
                f"seed {seed.name}: none of its {len(seed.collection)} images can be read, so "
                "nothing can be similar to it: name another seed dataset"
            )
    return datasets


def _catalogued_seeds(
    plan: Plan, runner: Runner, embedded: list[EmbeddedParts]
) -> list[Catalogued]:
    """Return the seeds, of images or of captions, in the order of the request."""
    threads = plan.request.settings.engine.threads
    images = {each.name: each for each in embedded if each.role == "seed"}
    return [
        embed_text(runner, data.name, data.texts, plan.meaning, threads)
        if data.texts
        else catalogued(runner, images[data.name], plan.meaning)
        for data in plan.datasets
        if data.role == "seed"
    ]


def _wanted_images(plan: Plan, seeds: list[Catalogued]) -> list[Catalogued]:
    """Return the seeds of images whose like is wanted."""
    return [seed for seed in seeds if seed.parts and seed.name in plan.request.wanted]


def _decided(plan: Plan, results: Results, bounds: ShardBounds) -> Decided:
    datasets, settings = results.datasets, plan.request.settings
    return Decided(
        crawl=datasets.crawl.collection,
        answers=results.answers,
        holdouts=tuple((held.name, held.collection) for held in datasets.holdouts),
        assigned=results.clustered.assigned,
        groups=results.copies.groups,
        grouping=settings.dedup.groups,
        shapes=results.copies.shapes,
        dropped=results.dropped.folder,
        included=results.included,
        selected=results.selected.folder,
        quality=settings.quality,
        filters=tuple(settings.filters),
        lists=(*plan.lists, *plan.removed),
        removed=plan.removed_of_seeds,
        dedup_threshold=results.thresholds.dedup.value,
        max_images=settings.retrieve.max_images,
        bounds=bounds,
        balanced=results.balanced.folder,
        hashed=results.copies.hashed,
        looked=results.copies.looked,
        topped_up=results.topped_up,
    )


def _run(
    plan: Plan, results: Results, bounds: ShardBounds, settings: Mapping[str, Any]
) -> dict[str, Any]:
    request, datasets = plan.request, results.datasets
    held = [request.held] if request.held else []
    return {
        "crawl": datasets.crawl.name,
        "seed": ", ".join(request.wanted),
        "holdouts": [held.name for held in datasets.holdouts],
        "embedder": request.embedder_name,
        "revisions": {
            request.embedders[stage].name: each.revision
            for stage, each in plan.embedders.items()
            if each.revision
        },
        "embedders": {
            stage: {"name": request.embedders[stage].name, "identity": identity(each)}
            for stage, each in plan.embedders.items()
        },
        "settings": settings,
        "inputs": datasets.inputs(plan),
        "clusters": {**results.clustered.fitted, "drift": request.settings.cluster.drift},
        "shards": bounds.taken,
        "thresholds": _thresholds(results),
        "calibration": results.thresholds.calibrations,
        "datasets": {
            role: {
                "name": named.name,
                "settings": named.settings.model_dump(mode="json"),
                "content": data.address,
                "images": len(data.collection),
            }
            for role, named, data in zip(
                [
                    *("crawl", *seed_roles(request)),
                    *(f"holdout {x.name}" for x in request.holdouts),
                    *("held" for _ in held),
                ],
                [request.crawl, *(x.dataset for x in request.seeds), *request.holdouts, *held],
                [datasets.crawl, *datasets.seeds, *datasets.holdouts, *datasets.held],
                strict=True,
            )
        },
        "versions": versions(),
        **(plan.before.copies if plan.before else {}),
        **(plan.before.removals("run.json") if plan.before else {}),
    }


def _funnel(plan: Plan, results: Results, settings: Mapping[str, Any]) -> dict[str, Any]:
    counts, embedded = results.copies.counts, results.datasets.embedded
    selected, balanced = results.selected, results.balanced
    hashed, looked = results.copies.hashed, results.copies.looked
    topped_up = results.topped_up.told if results.topped_up else None
    return {
        "images": len(results.datasets.crawl.collection),
        "decisions": selected.decisions,
        "groups": {
            "count": counts["groups"],
            "members": counts["members"],
            "chains": counts["chains"],
        },
        "dedup_hash": hashed and {"method": hashed.name, **hashed.counts},
        "dedup_looks": looked and {name: looked.counts[name] for name in LOOK_COUNTS},
        "dedup_recall": results.copies.completeness,
        "dedup_precision": results.false_copies.found,
        "thresholds": _thresholds(results),
        "seeds": describe_seeds(results.answers, selected, results.included),
        "balance": balanced.told,
        "top_up": topped_up,
        "problems": [
            *(text for each in embedded for text in each.problems),
            *([hashed.problem] if hashed and hashed.problem else []),
            *(each.problem for each in results.overlaps if each.problem),
            *_selection_problems(plan, results),
            *balance_problems(balanced.told),
            *top_up_problems(topped_up),
            *_since_problems(plan, selected),
        ],
        "ignored": embedded[0].ignored,
        "set_aside": [each.part for data in embedded for each in data.aside],
        "settings": settings,
        "versions": versions(),
        **(plan.before.removals("reports/funnel.json") if plan.before else {}),
    }


def _since_problems(plan: Plan, selected: Selected) -> list[str]:
    """Return a line where not all stays that an earlier result exported."""
    if plan.before is None or selected.stayed == plan.before.images:
        return []
    return [
        f"{plan.before.images - selected.stayed:,} of the {plan.before.images:,} images that the earlier "
        "result exported are not kept: they are gone from the crawl, have other bytes, or a filter, a "
        "list or a holdout of this run drops them"
    ]


def _thresholds(results: Results) -> dict[str, dict[str, Any]]:
    return results.thresholds.known([each.threshold for each in results.answers.wanted])


def _selection_problems(plan: Plan, results: Results) -> list[str]:
    sections = {seed.name: seed.said_at for seed in plan.request.seeds}
    decisions, answers = results.selected.decisions, results.answers
    barred = barred_problems(
        max((counts["found"] for counts in results.selected.wanted), default=0),
        decisions["kept"] + decisions["over_budget"],
        [answer.name for answer in answers.barred],
    )
    return barred + [
        line
        for answer, counts in zip(results.answers.wanted, results.selected.wanted, strict=True)
        for line in selection_problems(
            *(counts["found"], answer.candidates.count, answer.threshold.value),
            *(answer.chosen.target, answer.settings.strategy, sections[answer.name]),
        )
    ]
