"""The command line of stage two: `lvd-train`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from shared.commands import Commands, LocalFolder, completion
from shared.pages.live import serve_option, serving
from train.evaluation.command import evaluate
from train.export.command import export
from train.report.command import report
from train.visualise.command import visualise


@click.group(cls=Commands, prog="lvd-train")
def main() -> None:
    """Train a vision transformer without labels on the shards of `lvd-curate`, and see what it knows.

    \b
    lvd-train run --recipe tiny --shards runs/curate/sample/shards --out runs/train/sample
    lvd-train status runs/train/sample                     how far is it? from another terminal
    lvd-train report runs/train/sample                     a page: what it learned, what looks wrong
    lvd-train visualise --model runs/train/sample --images runs/curate/sample/shards
    lvd-train export runs/train/sample --out runs/export/sample --size 96
    torchrun --nproc-per-node 8 -m train.launch run --recipe vitl14 --shards ... --out ...

    The first five work on what `lvd-curate run --pipeline sample --out runs/curate/sample` leaves.
    """


@main.command()
@click.option(
    "--recipe",
    "name",
    required=True,
    help="A recipe of the configuration. Those of a second stage read what they go on from in the "
    "environment: CONTINUE_FROM for ...-highres, TEACHER for ...-distilled.",
)
@click.option(
    "--shards",
    help="The images: a folder of shards or of images, a tar, a glob, a brace list, an fsspec URL. "
    "Labels are not needed and not read. A recipe with data.mix names them itself.",
)
@click.option(
    "--select",
    metavar="LIST",
    help="Only those images that a selection list names, as often as its weights say: the OUT of "
    "lvd-curate run --set export.format=list, or its selection.parquet. --shards is then where the "
    "crawl is now; without it, it is where it was when it was curated.",
)
@click.option("--out", required=True, type=LocalFolder(), help="Where the run's folder is.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=Path("pipelines.yaml"),
    show_default=True,
    help="The file with the recipes.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a setting of the recipe, such as batch_size=256, steps=1000, "
    "model.name=vit_base_patch16_224 or knn.every=500 (a wrong name lists the right ones). "
    "Repeatable.",
)
@click.option(
    "--resume",
    type=click.Choice(["auto", "never"]),
    default="auto",
    show_default=True,
    help="auto: go on from the newest whole checkpoint in OUT. never: begin anew; what is there is "
    "moved to OUT/earlier-N.",
)
@click.option(
    "--init",
    "start_from",
    metavar="MODEL",
    help="Start the backbone from a model folder (config.json + model.safetensors), bundled, "
    "bundled-copies, or timm:NAME.",
)
@click.option(
    "--profile",
    "profiled",
    metavar="FIRST:LAST",
    help="Record these steps, both included, in OUT/profile: a trace for Perfetto or chrome://tracing "
    "and, on a card, a snapshot for pytorch.org/memory_viz; each process its own.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the resolved recipe, parameters, tokens, FLOPs and memory, and do nothing.",
)
@serve_option()
def run(
    name: str,
    shards: str | None,
    select: str | None,
    out: Path,
    config: Path,
    overrides: tuple[str, ...],
    resume: str,
    start_from: str | None,
    profiled: str | None,
    dry_run: bool,
    serve: int | None,
) -> None:
    """Train a recipe on a folder of shards, on what a list selects of a crawl, or on a mixture.

    OUT gets model/ (the teacher: loadable by timm, and by lvd-curate --embedder), checkpoints/,
    metrics.jsonl, tensorboard/ and run.json. A run that was killed goes on where it stopped:
    start the same command again. Several processes: start it with torchrun.

    \b
    lvd-train run --recipe tiny --shards runs/curate/sample/shards --out runs/train/sample
    lvd-train run --recipe tiny --shards runs/curate/sample/shards --out runs/train/more \\
        --set steps=400 --set epochs=80 --dry-run
    """
    from shared.storage.files import reraise_disk_full
    from train.monitoring.live import live_page
    from train.monitoring.profiled_steps import parse_steps
    from train.recipe import read_recipe
    from train.recipe_tree import describe_origin

    steps = None if profiled is None else parse_steps(profiled)
    first = os.environ.get("RANK", "0") == "0"
    live = click.get_current_context().with_resource(serving(serve if first else None))
    if live is not None:
        live.show = live_page(out)
    recipe = read_recipe(config, name, overrides)
    recipe.check(int(os.environ.get("WORLD_SIZE", 1)))  # before torch, which takes seconds
    recipe.check_sources(shards, select)
    if not dry_run and first:
        _check_places(out, shards)
    if dry_run:
        from train.preview import preview

        click.echo(preview(recipe, name, shards, select))
        return
    from train.loop import train
    from train.monitoring.status import safe_after_stop

    try:
        with reraise_disk_full(out):
            train(
                recipe,
                shards,
                out,
                select=select,
                resume=resume,
                start_from=start_from,
                profiled=steps,
                origin=describe_origin(config, name, overrides),
            )
    except KeyboardInterrupt as stopped:
        raise KeyboardInterrupt(safe_after_stop(out)) from stopped


def _check_places(out: Path, shards: str | None) -> None:
    """Refuse what cannot be written, and images that are not there, before torch is imported."""
    from shared.datasets.dataset import DatasetSettings, list_parts
    from shared.storage.places import check_writable
    from shared.storage.remote import is_remote

    check_writable(out, "--out")
    if shards is not None and not is_remote(shards) and not Path(shards).expanduser().exists():
        list_parts("--shards", DatasetSettings(path=shards))  # it says what is wrong with a pattern


@main.command()
@click.argument("out", metavar="OUT", type=LocalFolder())
def status(out: Path) -> None:
    """Say how far a training is, from another terminal.

    Steps done and in all, rate, time left, the last loss and scores; or that it is finished, or was
    cut off. What it tells is the last line of OUT/metrics.jsonl.

    \b
    lvd-train status runs/train/sample
    """
    from train.monitoring.status import status

    click.echo(status(out))


main.add_section("Train", run, status)
main.add_section("See what it knows", report, evaluate, visualise)
main.add_section("Take it away", export)
main.add_command(completion)
