"""`lvd-curate loop`."""

from __future__ import annotations

from typing import Any

import click

from curate.cli.options import executor_option, folder, request_options


@click.command()
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="May grow: a loop that is complete goes on.",
)
@folder(
    "--out",
    help="Where the rounds go; by default runs/loop/<pipeline>, or <crawl>-<seed> of those given.",
)
@request_options("sample", "--curate-set")
@executor_option()
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
@folder(
    "--truth",
    help="A CSV (part, member, kind) of the crawl, for the table alone; the built-in sample brings "
    "its own.",
)
@click.option(
    "--knn-train", metavar="PATH", help="Labelled images, for the table alone: those that vote."
)
@click.option(
    "--knn-test", metavar="PATH", help="Labelled images, for the table alone: those that are named."
)
def loop(overrides: tuple[str, ...], **asked: Any) -> None:
    """Curate, train on what was kept, curate with that model, and so on.

    Each round is `lvd-curate run` and `lvd-train run` on its shards; the new model judges meaning in
    the next one, and what finds copies stays. A loop that was killed goes on where it stopped: run
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
