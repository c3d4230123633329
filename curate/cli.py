"""The command line of stage one: `lvd-curate`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import click

from shared.commands import Commands

EMBEDDER = "An embedder of the configuration, bundled (the project's own), or a model folder (config.json + model.safetensors)."
DATASET = "a dataset of the configuration, or a path: a folder of images or tars, a tar, a glob, a brace list, a Parquet file, an fsspec URL."


@click.group(cls=Commands, prog="lvd-curate")
def main() -> None:
    """Curate a crawl: embed, de-duplicate, keep what is similar to a seed, write shards.

    \b
    lvd-curate demo                                      all of it, on a made-up crawl
    lvd-curate run --crawl 'crawl/*.tar' --seed my_seed --out runs/mine
    lvd-curate explain runs/mine 00000/000000017         why is this image in, or out?
    lvd-curate loop --rounds 2                           curate, train, curate with that model
    """


@main.command()
@click.option(
    "--out-root",
    "root",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Gets curate/sample, train/sample, look/sample; work/ and demo/ for what they need.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=Path("pipelines.yaml"),
    show_default=True,
    help="The file with the pipeline `sample` and the recipe `tiny`.",
)
@click.option("--steps", type=click.IntRange(1), help="Of the training; by default the recipe's.")
def demo(root: Path, config: Path, steps: int | None) -> None:
    """Show all of it in a minute or two, on a made-up crawl.

    Curate the built-in sample with the bundled model, train a small model on what was kept, draw
    what both see, and say what happened. Nothing is downloaded. What is there already is used again.
    """
    from curate.demo.demo import demo

    click.echo(demo(root, config, steps), nl=False)


def _request_options(pipeline: str = "default", settings: str = "--set") -> Callable:
    """Return the decorator with the options of whatever curates."""
    options = [
        click.option("--pipeline", default=pipeline, show_default=True, help="A pipeline of the configuration."),
        click.option("--embedder", help=EMBEDDER),
        click.option("--crawl", help=f"The crawl: {DATASET}"),
        click.option("--seed", help=f"The seed: {DATASET}"),
        click.option("--holdout", "holdouts", multiple=True, help="An evaluation set whose copies must not be kept. Repeatable."),
        click.option("--config", type=click.Path(path_type=Path), default=Path("pipelines.yaml"), show_default=True, help="Datasets, embedders and pipelines."),
        click.option(settings, "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting of the pipeline, such as dedup.threshold=0.9, export.shard_size=5000 or engine.workers=4 (a wrong name lists the right ones). Repeatable."),
        click.option("--work", type=click.Path(path_type=Path), default=Path("runs/work"), show_default=True, help="Where all runs keep what can be used again."),
    ]  # fmt: skip
    return lambda function: reduce(lambda made, option: option(made), reversed(options), function)


def _plan(pipeline: str, config: Path, work: Path, **asked: Any):
    from curate.plan import make_plan, writable
    from curate.settings import read_request

    request = read_request(config, pipeline, **asked)
    writable(work, "--work")
    return make_plan(request, work.absolute())


@main.command()
@_request_options()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Where the result goes; by default runs/curate/<crawl>-<seed>.",
)
@click.option(
    "--dry-run", is_flag=True, help="Say what would be done, and the disk space it needs."
)
@click.option(
    "--replace", is_flag=True, help="Swap an OUT that holds other settings, whole, at the end."
)
@click.option(
    "--retry", type=click.Choice(["corrupt"]), help="Read the parts that held corrupt images again."
)
def run(out: Path | None, dry_run: bool, replace: bool, retry: str | None, **asked: Any) -> None:
    """Run a pipeline: from a crawl and a seed to shards and reports.

    What an earlier run left in --work is used again, whoever started it; a run that was killed
    goes on where it stopped.
    """
    from curate.calibration.pairing import wrong_pairings
    from curate.execution.output import Output, name_latest
    from curate.pipeline import comparable
    from curate.plan import default_out, describe, forget_corrupt, writable
    from shared.progress import say, warn
    from shared.storage import disk_full_is_said

    plan = _plan(**asked)
    out = out or default_out(plan.request)
    writable(out, "--out")
    output = Output(out.absolute(), comparable(plan), replace)
    for line in wrong_pairings(plan.request):
        warn(line)
    if dry_run:
        click.echo(describe(plan, out))
        return
    with disk_full_is_said(out), output.locked():
        if retry:
            say(f"reading {forget_corrupt(plan):,} parts with corrupt images again")
        from curate.pipeline import curate
        from curate.report.summary import summary

        made = curate(plan, output)
        name_latest(out)
        if not made:
            say(f"{out} is complete and up to date: nothing to do")
        else:
            click.echo(summary(out, colour=sys.stdout.isatty()), nl=False)


@main.command()
@_request_options()
@click.option(
    "--save",
    is_flag=True,
    help="Keep them in the embedder's model folder (thresholds.json): runs with it then use them.",
)
def calibrate(save: bool, **asked: Any) -> None:
    """Measure what the thresholds should be.

    For one embedder, crawl and seed, by edited copies of crawled images and by the seed images'
    similarities to one another. The last line is ready to be pasted behind `lvd-curate run`.
    """
    from curate.calibration.measure import report
    from curate.calibration.stored import store, writable_path
    from curate.execution.engine import Engine
    from curate.stages import Run
    from shared.progress import say

    plan = _plan(**asked)
    request = plan.request
    path = writable_path(request.embedder.name, request.embedder.settings) if save else None
    with Engine(plan.work, plan.request.settings.engine) as engine:
        stages = Run(plan, engine)
        stages.embed()
        with engine.stage("calibrate"):
            measured = {name: stages.calibration(name) for name in ("dedup", "retrieve")}
    click.echo(report(measured))
    if path is not None:
        store(path, plan.embedder, measured, request.crawl.name, request.seed.name)
        say(f"kept for runs with this embedder, in {path}")


@main.command()
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="May grow: a loop that is complete goes on.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Where the rounds go; by default runs/loop/<pipeline>, or <crawl>-<seed> of those given.",
)
@_request_options("sample", "--curate-set")
@click.option(
    "--recipe", default="tiny", show_default=True, help="A training recipe of the configuration."
)
@click.option(
    "--train-set",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a setting of the recipe, such as steps=1000. Repeatable.",
)
@click.option(
    "--nproc",
    "processes",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Processes that train, by torchrun: one for each GPU.",
)
@click.option(
    "--truth",
    type=click.Path(path_type=Path),
    help="A CSV (part, member, kind) of the crawl, for the table alone; the built-in sample brings its own.",
)
@click.option(
    "--knn-train", metavar="PATH", help="Labelled images, for the table alone: those that vote."
)
@click.option(
    "--knn-test", metavar="PATH", help="Labelled images, for the table alone: those that are named."
)
def loop(overrides: tuple[str, ...], **asked: Any) -> None:
    """Curate, train on what was kept, curate with that model, and so on.

    Each round is `lvd-curate run`, `lvd-train run` on its shards and `lvd-curate calibrate --save` of
    the new model, which curates the next one. A loop that was killed goes on where it stopped: run
    the same command again.

    \b
    lvd-curate loop --rounds 2                           the built-in sample, in minutes
    lvd-curate loop --rounds 3 --crawl 'crawl/*.tar' --seed my_seed --recipe vits16-few-gpus \\
        --nproc 4 --out runs/loop/mine --knn-train labelled/train --knn-test labelled/test
    \b
    OUT gets table.txt, table.json, table.parquet and round-1, round-2, ...: in each of them curate/
    and train/, as the commands leave them, and a log of each step.
    """
    from curate.loop.loop import loop
    from curate.loop.request import loop_request

    click.echo(loop(loop_request(curate_set=overrides, **asked)), nl=False)


@main.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=Path("runs/work"),
    show_default=True,
    help="The --work of the run: it knows where the images are.",
)
def report(folder: Path, work: Path) -> None:
    """Print the summary of a finished run, and draw its pictures again."""
    from curate.pipeline import redraw
    from curate.report.summary import summary

    redraw(folder, work.absolute())
    click.echo(summary(folder, colour=sys.stdout.isatty()), nl=False)


@main.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("key")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def explain(folder: Path, key: str, as_json: bool) -> None:
    """Tell the life of one image.

    Its facts, its group of copies, its nearest seeds, the decision and why.
    """
    from curate.report.explain import explain, life

    if as_json:
        click.echo(json.dumps(life(folder, key), indent=1, ensure_ascii=False))
    else:
        click.echo(explain(folder, key), nl=False)


@main.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def status(folder: Path) -> None:
    """Say how far the run in DIR is: finished, going on, or cut off."""
    from curate.execution.status import status

    click.echo(status(folder))


if __name__ == "__main__":
    main()
