"""The command `lvd-train report`."""

from __future__ import annotations

from pathlib import Path

import click

from shared.commands import LocalFolder


@click.command()
@click.argument("out", metavar="OUT", type=LocalFolder())
def report(out: Path) -> None:
    """Write a training's page, OUT/report.html, and print where it is.

    A verdict first: how far it is, what it learned, what looks wrong and what to try. Then losses,
    schedules, signs of collapse, scores and throughput as curves, what the teacher saw over time,
    and the recipe. The page needs no network; a run at work goes on meanwhile.

    \b
    lvd-train report runs/train/sample
    """
    from train.report.page import write_page

    click.echo(write_page(out))
