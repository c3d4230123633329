"""A training run from its folder to its model: read this first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import click

from shared.errors import LvdError
from shared.progress import say
from train.data.copied_ahead import copied_ahead
from train.data.crops import Views
from train.data.index import SampleIndex
from train.data.loader import Batch, make_loader, reduced_side
from train.data.masks import batch_masks
from train.data.mixture import Mixture
from train.data.order import Order
from train.data.resident import ResidentImages, read_resident
from train.data.sources import make_order, open_index
from train.distributed.heartbeat import first_does
from train.distributed.parallelise import autocast
from train.distributed.ranks import Ranks, barrier, process_group
from train.distributed.signals import StopRequest
from train.distributed.watchdog import SHARE, Watchdog
from train.monitoring.profile import record_steps
from train.monitoring.profiled_steps import check_steps
from train.monitoring.summary import summary
from train.monitoring.watch import Watch
from train.persistence.checkpoints import newest, save, step_of
from train.persistence.run_folder import RunFolder
from train.recipe import Recipe
from train.rescue import cut_off, rescue
from train.snapshot import restore, snapshot, write_model
from train.step import optimiser_step, to_device
from train.system import System, build_system

ENDLESS = 2**31
"""Steps: more than any teacher's anchors take."""


def train(
    recipe: Recipe,
    shards: str | None,
    out: Path,
    *,
    select: str | None = None,
    resume: str = "auto",
    start_from: str | None = None,
    profiled: range | None = None,
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Train `recipe` on the images of `shards`, in every process that torchrun started.

    `origin` says in `run.json` what the recipe is called, and what it changes of its parent.
    With `select`, a selection list, on those that it names; without both, on what the recipe mixes.
    Goes on from the newest whole checkpoint below `out`; asked to stop by SIGTERM or SIGUSR1, it
    saves and returns. Of the `profiled` steps it leaves a trace in OUT/profile. Raises LvdError, in
    one line, for settings that do not fit.
    """
    folder = RunFolder(out)
    with (
        process_group(recipe.parallel.device, recipe.parallel.timeout) as ranks,
        folder.locked() if ranks.first else nullcontext(),
        StopRequest() as stop,
    ):
        recipe.micro_batch(ranks.world)
        index = _index(recipe, shards, select, folder)
        order = make_order(recipe, index)
        schedules = recipe.schedules(order.batches_per_epoch)
        steps = schedules.total_steps
        if resume == "auto":
            folder.refuse_foreign(recipe, index.fingerprint)
            if folder.finished == steps:
                _say(ranks, f"{out} is complete after {steps:,} steps: nothing to do")
                return
        checkpoint = newest(folder.checkpoints) if resume == "auto" else None
        there = max(step_of(checkpoint) if checkpoint else 0, folder.finished)
        if resume == "auto" and there > steps:
            raise LvdError(
                f"--out {out} holds a run that has taken {there:,} steps, more than these {steps:,}: "
                "ask for as many or more, name another --out, or say --resume never to begin anew "
                "(what is there is kept)"
            )
        system = build_system(recipe, ranks, start_from, fresh=checkpoint is None)
        watch = Watch(system, folder, index, steps)
        resident = _resident(system, index) if recipe.data.resident else None
        if ranks.first:
            if resume == "never":
                folder.set_aside()
            folder.begin(recipe, index.fingerprint, steps, origin)
            if checkpoint is None:
                _say_origin(system)
        barrier()
        begun = restore(system, watch.counts, checkpoint) if checkpoint else 0
        check_steps(profiled, begun, steps)
        load = partial(_load, system, index, order, resident)
        if checkpoint is None:
            _take_anchors(system, load)
        batches = copied_ahead(load(range(begun, steps)), ranks.device)
        batches = record_steps(batches, begun, profiled, folder.profile, ranks)
        limit = SHARE * recipe.parallel.timeout
        with watch.following(begun), Watchdog(limit, folder.out, ranks.rank) as watchdog:
            done = begun
            try:
                for step, micro in enumerate(watch.waiting(batches), begun):
                    values = schedules.at(step)
                    on_device = [to_device(batch, ranks.device) for batch in micro]
                    counts = {"asked": stop.asked, "broken": sum(len(b.broken) for b in micro)}
                    report = optimiser_step(system, on_device, values, step, counts)
                    done = step + 1
                    watch.record(step, micro, values, report)
                    watchdog.beat()
                    if watch.asked or done == steps or done % recipe.checkpoints.every == 0:
                        watch.settle()
                        state = snapshot(system, done, watch.counts)
                        save(folder.checkpoints, done, state, recipe.checkpoints.keep, ranks)
                        write_model(system, folder.model)
                    watch.score(done)
                    watchdog.beat()
                    if watch.asked and done < steps:
                        _say(
                            ranks,
                            f"stopped after step {done:,}: the same command goes on from there",
                        )
                        return
            except RuntimeError as error:
                if not cut_off(error):
                    raise
                keep = recipe.checkpoints.keep
                raise rescue(system, done, watch.counts, folder.checkpoints, keep) from error
        if ranks.first:
            folder.finish(steps)
            click.echo(summary(folder), nl=False)


def _index(
    recipe: Recipe, shards: str | None, select: str | None, folder: RunFolder
) -> SampleIndex:
    """Return the index of the images; the first process makes it, the others wait and read."""

    def opened() -> SampleIndex:
        return open_index(recipe, shards, select, folder.index)

    return first_does("index", opened) or opened()


def _say(ranks: Ranks, text: str) -> None:
    if ranks.first:
        say(text)


def _resident(system: System, index: SampleIndex) -> ResidentImages:
    """Return all images, decoded, on this process's device."""
    recipe = system.recipe
    return read_resident(
        index,
        reduced_side(recipe.data, Views(recipe.crops, recipe.seed)),
        workers=recipe.data.workers,
        prefetch=recipe.data.prefetch,
        ranks=system.ranks,
    )


def _load(
    system: System,
    index: SampleIndex,
    order: Order | Mixture,
    resident: ResidentImages | None,
    steps: range,
) -> Iterator[list[Batch]]:
    """Return for each step the micro-batches of this process."""
    recipe, ranks = system.recipe, system.ranks
    masks = None
    if recipe.masks is not None:
        masks = partial(
            batch_masks,
            grid=system.grid,
            group_size=recipe.group_size,
            seed=recipe.seed,
            settings=recipe.masks,
        )
    batches = make_loader(
        index,
        order,
        Views(recipe.crops, recipe.seed),
        masks,
        settings=recipe.data,
        ranks=(ranks.rank, ranks.world),
        accumulate=recipe.accumulate,
        start_step=steps.start,
        stop_step=steps.stop,
        patches=system.patches,
        pin_memory=ranks.device.type == "cuda",
        resident=resident,
    )
    return map(list, zip(*[batches] * recipe.accumulate, strict=True))


def _say_origin(system: System) -> None:
    """Say what a second stage goes on from, and who teaches."""
    recipe = system.recipe
    if recipe.continue_from is not None:
        rows, columns = system.grid
        say(f"goes on from {recipe.continue_from}, with {rows} x {columns} patches")
    if recipe.distillation is not None and system.frozen_teacher is not None:
        targets = "anchors" if system.frozen_teacher.has_anchors else "its own heads"
        say(f"teacher {recipe.distillation.teacher}, frozen; {targets} set the targets")


def _take_anchors(system: System, load: Callable[[range], Iterator[list[Batch]]]) -> None:
    """Give a frozen teacher without heads the anchors that it needs, from the first views."""
    teacher, ranks = system.frozen_teacher, system.ranks
    if teacher is None or not teacher.has_anchors:
        return
    batches = load(range(ENDLESS))
    views = (to_device(batch, ranks.device).global_views for step in batches for batch in step)
    with autocast(system.precision, ranks.device):
        teacher.take_anchors(views, system.recipe.seed, ranks)
