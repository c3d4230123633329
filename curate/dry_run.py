"""What a run is going to do, in words: the plan, what is cached or to be fetched, the space it takes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from curate.calibration.thresholds import (
    Threshold,
    is_number,
    known_threshold_of_seed,
    known_thresholds,
)
from curate.catalogue.content import recall
from curate.dedup.hash_first import known_lenders
from curate.dedup.hashes import METHODS
from curate.embedding.stage import is_embedded
from curate.plan import Plan, written
from curate.request import Seed
from shared.embedders.embedder import at_commit, find_on_hub
from shared.embedders.hub import HubFile, HubUnreachableError
from shared.embedders.settings import EmbedderSettings, from_hub
from shared.progress import size
from shared.storage.commits import committed
from shared.storage.places import parent_of

BYTES_PER_IMAGE = 100_000
"""Of a typical crawl; used to guess the number of images before they are counted."""
WORK_PER_IMAGE = 6_000
"""Facts, and three copies of a 768-dimensional float16 vector."""


def describe(plan: Plan, out: Path, place: str = "") -> str:
    """Return what a run would do: the plan, its parts, what is cached or to be fetched, the space.

    `place` is what `out` is called, if something else. Nothing is fetched. Raises LvdError where a
    hub says that it does not have a model.
    """
    request, settings = plan.request, plan.request.settings
    lines = [f"pipeline   {request.pipeline}"]
    lines += [
        f"embedder   {each.name} ({each.settings.device}, {each.settings.precision})"
        for each in {each.name: each for each in request.embedders.values()}.values()
    ]
    models = {request.embedders[role].name: each for role, each in plan.embedders.items()}
    found = {name: _look_up(each) for name, each in models.items() if from_hub(each)}
    lines += [f"hub        {name}: {_whence(each)}" for name, each in found.items()]
    commits = {name: each.commit for name, each in found.items() if isinstance(each, HubFile)}
    plan = _at_commits(plan, commits)
    # of what the hub cannot tell now nothing was ever downloaded, so nothing is embedded with it
    is_pinned = commits.keys() == found.keys()
    missing, lends = 0, settings.embed.once == "hash"
    known = None
    if lends and is_pinned:
        known = known_lenders(
            *(plan.crawl.name, plan.crawl.parts, plan.embed_request(plan.crawl)),
            *(settings.dedup, plan.judged_by_facts),
        )
    for dataset in plan.datasets:
        if dataset.texts:
            lines.append(f"{dataset.role:<9}  {dataset.name}: {len(dataset.texts):,} captions")
            continue
        asked = plan.embed_request(dataset) if is_pinned else None
        if lends and dataset is plan.crawl:
            asked = known and known[0]
        todo = [part for part in dataset.parts if asked is None or not is_embedded(asked, part)]
        nbytes = sum(part.nbytes for part in dataset.parts)
        missing += sum(part.nbytes for part in todo)
        lines.append(
            f"{dataset.role:<9}  {dataset.name}: {len(dataset.parts):,} {dataset.parts[0].format} "
            f"parts, {size(nbytes)}; {len(dataset.parts) - len(todo):,} embedded, {len(todo):,} to do"
        )
    if settings.dedup.hash != "none" and lends:
        after = ", after a pass that decodes all parts"
        if known is not None:
            after = f": {known[1]['lent']:,} of {known[1]['images']:,} images are not embedded"
        lines.append(f"embed      once for each {METHODS[settings.dedup.hash].title}{after}")
    lines += [
        f"list       {each.name}: {each.entries:,} of kind {each.kind}" for each in plan.lists
    ]
    thresholds = known_thresholds(settings, plan.embedders)
    kept = plan.before.keep_dedup(thresholds.get("dedup")) if plan.before else None
    thresholds |= {"dedup": kept} if kept else {}
    value = _inclusive(thresholds.get("dedup"))
    if kept is None and "dedup" in thresholds and thresholds["dedup"].source == "embedder":
        value += ", unless this crawl contradicts it"
    lines.append(f"dedup      threshold {value}")
    for seed in request.seeds:
        name = f" {seed.name}:" if len(request.seeds) > 1 else ""
        images = _count_readable(seed, plan) if is_pinned else None
        lines.append(f"retrieve  {name} {_describe_seed(seed, images, plan)}")
    if (target := settings.balance.target) is not None:
        much = f"{target:,} images" if isinstance(target, int) else f"{target} of what is retrieved"
        lines.append(f"balance    {much}, over clusters ({settings.balance.levels})")
    if (target := settings.top_up.target) is not None:
        much = f"{target:,} images" if isinstance(target, int) else f"{target} of what is retrieved"
        beside = f", beside {request.held.name}" if request.held else ""
        lines.append(f"top-up     {much}{beside}")
    work = missing // BYTES_PER_IMAGE * WORK_PER_IMAGE + 2**20
    shards = sum(part.nbytes for dataset in written(plan) for part in dataset.parts)
    copies = [(out, shards, "needed for shards, at most about")]
    for folder, need, what in (
        (plan.work, work, "needed for facts and vectors, about"),
        *(copies if settings.export.format == "shards" else []),
    ):
        free = shutil.disk_usage(parent_of(folder)).free
        lines.append(f"space      {folder}: {what} {size(need)}; {size(free)} free")
    lines.append(f"output     {place or out}" + (" (exists)" if out.exists() else ""))
    return "\n".join(lines)


def _describe_seed(seed: Seed, images: int | None, plan: Plan) -> str:
    """Return by which strategy a seed retrieves; `images` are its readable ones, if counted yet."""
    settings = seed.settings if images is None else seed.settings.resolve(images)
    threshold = known_threshold_of_seed(settings, plan.meaning)
    if threshold is None and plan.before and (found := plan.before.calibration_of(seed.name)):
        threshold = Threshold(found["threshold"], "kept")
    own = "; its own images are included" if settings.include else ""
    if settings.strategy != "threshold":
        has_floor = is_number(settings.threshold)
        floor = f"; floor: cosine {_inclusive(threshold)}" if has_floor else ""
        return f"{settings.strategy}: {settings.describe()}{floor}{own}"
    value = _inclusive(threshold)
    if settings.target is not None:
        value = f"that of target {settings.target}: solved for in the run"
    return f"{'negative: ' if settings.negative else ''}threshold {value}{own}"


def _inclusive(threshold: Threshold | None) -> str:
    """Return what a threshold is; None: it is not known yet."""
    if threshold is None:
        return "auto: measured in the run"
    kept = ", kept from the earlier result" if threshold.source == "kept" else ""
    apart = threshold.of_drawn > threshold.value
    drawn = f", of two drawn pictures {threshold.of_drawn}" if apart else ""
    return f"{threshold.value}{drawn} (inclusive{kept})"


def _count_readable(seed: Seed, plan: Plan) -> int | None:
    """Return how many images of a seed can be read; None where some are not embedded yet."""
    [dataset] = [x for x in plan.datasets if (x.role, x.name) == ("seed", seed.name)]
    asked, count = plan.embed_request(dataset), len(dataset.texts)
    for part in dataset.parts:
        content = recall(plan.work, part)
        stats = committed(asked.facts / content) if content else None
        if stats is None:
            return None
        count += stats["images"] - stats["corrupt"]
    return count


def _look_up(embedder: EmbedderSettings) -> HubFile | HubUnreachableError:
    try:
        return find_on_hub(embedder)
    except HubUnreachableError as error:
        return error


def _at_commits(plan: Plan, commits: Mapping[str, str]) -> Plan:
    """Return the plan with the embedders of these names pinned to their commits."""
    embedders = dict(plan.embedders)
    for role, named in plan.request.embedders.items():
        if named.name in commits:
            embedders[role] = at_commit(embedders[role], commits[named.name])
    return replace(plan, embedders=embedders)


def _whence(file: HubFile | HubUnreachableError) -> str:
    """Return where a hub's file is: in the cache, or how much there is to fetch."""
    if isinstance(file, HubUnreachableError):
        return str(file)
    if file.path:
        how = "in the cache already"
    else:
        how = f"{size(file.nbytes)} to fetch" if file.nbytes is not None else "to fetch"
    return f"{file.name} of {file.repository} at {file.commit[:12]}, {how}"
