"""`lvd-curate calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from curate.cli.options import WorkFolder, executor_option, folder, make_plan, request_options

if TYPE_CHECKING:
    from curate.execution.session import ExecutorName


@click.command()
@request_options(work=WorkFolder)
@executor_option()
@click.option(
    "--save",
    is_flag=True,
    help="Keep the dedup threshold in the embedder's model folder (thresholds.json): runs with it then "
    "use it, where their crawl does not contradict it.",
)
@folder(
    "--out",
    help="Where the pictures go: dedup.png and retrieve.png, pairs of images just above and just "
    "below each proposed threshold.  [default: runs/calibrate/<crawl>-<seed>]",
)
def calibrate(save: bool, out: Path | None, executor: ExecutorName, **asked: Any) -> None:
    """Measure what the thresholds should be, and show what lies on both sides of them.

    For one crawl and seed: by how rare false copies are among crawled images, and by the seed
    images' similarities to one another. The last line is ready to be pasted behind `lvd-curate run`.

    \b
    lvd-curate calibrate --pipeline sample
    """
    from curate.calibration.measure import report
    from curate.calibration.stage import calibrate_dedup, calibrate_retrieve, find_sides
    from curate.calibration.stored import store, writable_path
    from curate.execution.session import open_runner, require_seen
    from curate.pipeline import embed_datasets
    from curate.plan import pinned
    from curate.report.both_sides import draw_sides
    from shared.embedders.embedder import resolve_device
    from shared.errors import LvdError
    from shared.progress import say
    from shared.storage.locks import scratch_folder
    from shared.storage.places import check_writable

    plan, default = make_plan(**asked)
    out = out or Path("runs") / "calibrate" / default.name
    check_writable(out, "--out")
    request, path = plan.request, None
    if len(request.seeds) > 1:
        named = ", ".join(seed.name for seed in request.seeds)
        raise LvdError(f"calibrate measures one seed at a time: say --seed with one of {named}")
    if save:
        used = request.embedders["dedup"]
        path = writable_path(used.name, used.settings)
    if request.seeds[0].dataset.settings.text:
        raise LvdError(f"seed {request.seeds[0].name} is text, of which no threshold is measured")
    plan = pinned(plan)
    require_seen(executor, plan.work, (part for data in plan.datasets for part in data.parts))
    with open_runner(plan.work, request.settings.engine, executor) as runner:
        datasets = embed_datasets(plan, runner)
        [seed] = datasets.seeds
        crawls = {"dedup": datasets.crawl, "retrieve": datasets.crawl_by_meaning}
        with runner.at_work("calibrate"):
            measured = {
                "dedup": calibrate_dedup(runner, plan, crawls["dedup"]),
                "retrieve": calibrate_retrieve(runner, plan, crawls["retrieve"], seed),
            }
            sides = {
                name: find_sides(runner, plan, name, crawl, seed, measured[name]["threshold"])
                for name, crawl in crawls.items()
            }
    click.echo(report(measured))
    if path is not None:
        store(path, resolve_device(plan.copies), measured["dedup"], request.crawl.name)
        say(f"kept for runs with this embedder, in {path}")
    thresholds = {name: found["threshold"] for name, found in measured.items()}
    with scratch_folder(plan.work / "scratch") as scratch:
        draw_sides(
            *(out, sides, thresholds, datasets.crawl, seed),
            *(request.settings.calibrate.seed, request.settings.embed.max_pixels, scratch),
        )
    say(f"look at the pairs on both sides of them, in {out}: dedup.png, retrieve.png")
