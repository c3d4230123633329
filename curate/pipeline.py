"""Curation, from a crawl and its seeds to shards and reports: read this first."""

from __future__ import annotations

import time
from dataclasses import replace

from curate.calibration.stage import Thresholds, find_thresholds
from curate.catalogue.collection import Catalogued
from curate.catalogue.write import Judged
from curate.dedup.bar import Bar
from curate.dedup.chains import Dropped, follow_copies
from curate.dedup.false_copies import estimate_false_copies
from curate.dedup.hash_first import embed_by_hash
from curate.dedup.holdout import find_copies
from curate.dedup.overlap import Overlap, find_overlaps
from curate.dedup.stage import Deduplicated, dedup
from curate.embedding.predict import compile_predictors, predict
from curate.embedding.stage import EmbeddedParts, catalogued, embed
from curate.embedding.text import embed_text
from curate.execution.output import Output
from curate.execution.runner import StageRunner
from curate.export import embeddings, selection_list, shards
from curate.export.bounds import ShardBounds, bound_shards
from curate.export.embeddings import export_embeddings
from curate.increment import read_before
from curate.neighbours.cluster import Clustered, cluster
from curate.plan import Plan
from curate.record import count_funnel, describe_run
from curate.report import datasheet, groups, pairs, rows, seed_images
from curate.report.datasheet import write_datasheet
from curate.report.pairs import Pool
from curate.report.relevance import Relevance
from curate.report.rows import Decided
from curate.report.stage import draw, write_pairs, write_tables
from curate.results import Datasets, Results, inputs_of
from curate.retrieval.answers import ask_seeds
from curate.retrieval.nearest_seeds import retrieve
from curate.selection.balance import balance
from curate.selection.decide import decide
from curate.selection.include import include
from curate.selection.top_up import top_up
from curate.stage import Runner, Stage
from shared.errors import LvdError

_EXPORT_VERSIONS = {"shards": shards.VERSION, "list": selection_list.VERSION}


def curate(plan: Plan, output: Output, runner: StageRunner) -> bool:
    """Run the pipeline into `output`; return False when it stands there already.

    Raises LvdError, in one line, for whatever the user can mend.
    """
    started, settings = time.monotonic(), plan.request.settings
    with runner.at_work("embed"):
        embedded = embed_parts(plan, runner)
        if output.is_up_to_date(plan.before, inputs_of(plan, embedded)):
            return False
        if plan.before is None and output.has_grown(plan.crawl.name, embedded[0].images):
            plan = go_on(plan, output, runner)
            lends = settings.embed.once == "hash"  # what was exported lends
            embedded = embed_parts(plan, runner) if plan.removed or lends else embedded
        before, datasets = plan.before, catalogue_datasets(plan, runner, embedded)
    results = decide_all(plan, runner, datasets)
    seeds = [seed.address for seed in datasets.seeds]
    address = Stage(
        "output",
        [
            *(_EXPORT_VERSIONS[settings.export.format], embeddings.VERSION),
            *(rows.VERSION, groups.VERSION, seed_images.VERSION, datasheet.VERSION, pairs.VERSION),
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
        listed = write_pairs(runner, output, _pool(plan, results))
        told = describe_run(plan, results, bounds, output.settings)
        counted = {**count_funnel(plan, results, output.settings), "dedup_pairs": listed}
        output.write(told, counted, address, list(runner.used))
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
    bar = Bar(thresholds.dedup.value, thresholds.dedup.of_drawn)
    how = bar, settings.dedup, max_pixels, threads
    copies = dedup(runner, crawl, clustered, *how, datasets.embedded[0].fitted)
    false_copies = estimate_false_copies(runner, crawl, copies, settings.estimate, max_pixels)
    dropped, overlaps = apply_holdouts(plan, runner, datasets, thresholds, clustered, copies)
    included = include(
        *(runner, crawl, datasets.included, dropped, thresholds.dedup.value, threads)
    )
    top_k = settings.report.top_k
    retrieved = retrieve(
        *(runner, by_meaning, copies.groups, copies.address, seeds, top_k, threads),
        settings.retrieve.index,
    )
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
    """Find what the holdouts drop of crawl and included seeds, and what they share with the seeds."""
    exported, holdouts = [datasets.crawl, *datasets.included], datasets.holdouts
    threads = plan.request.settings.engine.threads
    if not holdouts:
        return Dropped(), []
    with runner.at_work("holdout"):
        held = [
            find_copies(runner, each, holdouts, thresholds.holdout.value, threads)
            for each in exported
        ]
        return (
            follow_copies(
                *(runner, exported, clustered, held, copies, thresholds.dedup.value, threads)
            ),
            find_overlaps(runner, _wanted_images(plan, datasets.seeds), holdouts),
        )


def go_on(plan: Plan, output: Output, runner: StageRunner) -> Plan:
    """Return the plan with the result in the place of `output` as what the run goes on from."""
    output.fetch()
    before = read_before(
        output.out,
        plan.work,
        runner.scratch,
        adds=False,
        labels=plan.labels,
        name=output.name,
    )
    before.require_models(plan.embedders)
    output.go_on_from(before)
    return replace(plan, before=before)


def embed_datasets(plan: Plan, runner: Runner) -> Datasets:
    """Embed and catalogue crawl, seeds and holdouts."""
    with runner.at_work("embed"):
        return catalogue_datasets(plan, runner, embed_parts(plan, runner))


def embed_parts(plan: Plan, runner: Runner) -> list[EmbeddedParts]:
    """Embed crawl, seeds and holdouts, and what is held, where all that scores them is there."""
    settings = plan.request.settings
    compile_predictors(runner, plan.predictors, settings.engine.threads)
    crawl, lends = plan.crawl, settings.embed.once == "hash"
    asked = (crawl.name, crawl.parts, plan.embed_request(crawl))
    first = embed_by_hash(runner, *asked, settings.dedup, plan.judged_by_facts) if lends else None
    return [
        first or embed(runner, crawl.role, *asked),
        *(
            embed(runner, data.role, data.name, data.parts, plan.embed_request(data))
            for data in plan.datasets[1:]
            if not data.texts
        ),
    ]


def catalogue_datasets(plan: Plan, runner: Runner, done: list[EmbeddedParts]) -> Datasets:
    """Catalogue what is embedded."""
    settings = plan.request.settings
    predictors = compile_predictors(runner, plan.predictors, settings.engine.threads)
    crawl = predict(runner, done[0], predictors)
    datasets = Datasets(
        embedded=done,
        crawl=catalogued(runner, crawl, plan.copies, plan.judged),
        crawl_by_meaning=catalogued(runner, crawl, plan.meaning, plan.judged),
        seeds=_catalogued_seeds(plan, runner, done),
        included=[
            catalogued(
                runner,
                x,
                plan.copies,
                Judged(lists=plan.removed_of_seeds, exported=plan.stays.get(x.name)),
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


def _pool(plan: Plan, results: Results) -> Pool:
    copies, settings = results.copies, plan.request.settings
    return Pool(
        collection=results.datasets.crawl.collection,
        clusters=results.clustered.clusters,
        ranks=copies.ranks,
        groups=copies.groups,
        covered=copies.hashed.stands.parent if copies.hashed else None,
        selected=results.selected.folder,
        bar=copies.bar,
        settings=settings.dedup,
        per_image=settings.report.pairs,
        threads=settings.engine.threads,
        relevance=_relevance(plan, results),
    )


def _relevance(plan: Plan, results: Results) -> Relevance | None:
    """Return what keeps an image; None where more than thresholds of seeds decides about it."""
    settings, answers = plan.request.settings, results.answers
    by_threshold = all(
        each.settings.strategy == "threshold"
        and each.settings.max_images is None
        and each.chosen.target is None
        and each.retrieved.recall is None  # a large seed, which is searched in clusters
        for each in answers.wanted
    )
    others = (
        *(answers.barred, results.datasets.holdouts, results.datasets.included),
        *(plan.before, plan.labels, settings.retrieve.max_images, results.topped_up),
        results.balanced.folder,
    )
    if not by_threshold or any(others):
        return None
    seeds = tuple((each.retrieved.seed, each.threshold.value) for each in answers.wanted)
    return Relevance(results.datasets.crawl_by_meaning.collection, seeds)
