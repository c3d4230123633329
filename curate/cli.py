"""The command line of stage one: `lvd-curate`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from shared.commands import Commands

EMBEDDER = "An embedder of the configuration, or a model folder (config.json + model.safetensors)."
DATASET = "a dataset of the configuration, or a path: a folder of images or tars, a tar, a glob, a brace list, a Parquet file, an fsspec URL."


@click.group(
    cls=Commands, prog="lvd-curate", context_settings={"help_option_names": ["-h", "--help"]}
)
def main() -> None:
    """Curate a crawl: embed, de-duplicate, keep what is similar to a seed, write shards.

    \b
    lvd-curate run --pipeline sample                     the built-in sample
    lvd-curate run --crawl 'crawl/*.tar' --seed my_seed --embedder descriptor --out runs/mine
    lvd-curate explain runs/mine 00000/000000017         why is this image in, or out?
    """


def _request_options(function: Callable) -> Callable:
    for option in reversed(
        [
            click.option("--pipeline", default="default", show_default=True, help="A pipeline of the configuration."),
            click.option("--embedder", help=EMBEDDER),
            click.option("--crawl", help=f"The crawl: {DATASET}"),
            click.option("--seed", help=f"The seed: {DATASET}"),
            click.option("--holdout", "holdouts", multiple=True, help="An evaluation set whose copies must not be kept. Repeatable."),
            click.option("--config", type=click.Path(path_type=Path), default=Path("pipelines.yaml"), show_default=True, help="Datasets, embedders and pipelines."),
            click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting of the pipeline, such as dedup.threshold=0.9, export.shard_size=5000 or engine.workers=4 (a wrong name lists the right ones). Repeatable."),
            click.option("--work", type=click.Path(path_type=Path), default=Path("runs/work"), show_default=True, help="Where all runs keep what can be used again."),
        ]
    ):  # fmt: skip
        function = option(function)
    return function


def _plan(pipeline: str, config: Path, work: Path, **asked: Any):
    from curate.plan import make_plan, writable
    from curate.settings import read_request

    request = read_request(config, pipeline, **asked)
    writable(work, "--work")
    return make_plan(request, work.absolute())


@main.command()
@_request_options
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
    from curate.output import Output, name_latest
    from curate.pipeline import comparable
    from curate.plan import default_out, describe, forget_corrupt, writable
    from shared.progress import say
    from shared.storage import disk_full_is_said

    plan = _plan(**asked)
    out = out or default_out(plan.request)
    writable(out, "--out")
    output = Output(out.absolute(), comparable(plan), replace)
    if dry_run:
        click.echo(describe(plan, out))
        return
    with disk_full_is_said(out), output.locked():
        if retry:
            say(f"reading {forget_corrupt(plan):,} parts with corrupt images again")
        from curate.pipeline import curate
        from curate.summary import summary

        made = curate(plan, output)
        name_latest(out)
        if not made:
            say(f"{out} is complete and up to date: nothing to do")
        else:
            click.echo(summary(out, colour=sys.stdout.isatty()), nl=False)


@main.command()
@_request_options
def calibrate(**asked: Any) -> None:
    """Measure what the thresholds should be.

    For one embedder, crawl and seed, by edited copies of crawled images and by the seed images'
    similarities to one another. The last line is ready to be pasted behind `lvd-curate run`.
    """
    from curate.calibration import report
    from curate.engine import Engine
    from curate.stages import Run

    plan = _plan(**asked)
    with Engine(plan.work, plan.request.settings.engine) as engine:
        stages = Run(plan, engine)
        stages.embed()
        with engine.stage("calibrate"):
            measured = {name: stages.calibration(name) for name in ("dedup", "retrieve")}
    click.echo(report(measured))


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
    from curate.summary import summary

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
    from curate.explain import explain, life

    if as_json:
        click.echo(json.dumps(life(folder, key), indent=1, ensure_ascii=False))
    else:
        click.echo(explain(folder, key), nl=False)


@main.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def status(folder: Path) -> None:
    """Say how far the run in DIR is: finished, going on, or cut off."""
    from curate.status import status

    click.echo(status(folder))


if __name__ == "__main__":
    main()
