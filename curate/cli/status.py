"""`lvd-curate status`."""

from __future__ import annotations

from pathlib import Path

import click

from shared.commands import LocalFolder


@click.command()
@click.argument("folder", metavar="OUT|WORK", type=LocalFolder())
def status(folder: Path) -> None:
    """Say how far a run is, from another terminal.

    Of the run that writes OUT, or of all that use WORK: stage, done and total, rate, time left,
    failures so far. Of a training, `lvd-train status` says it.

    \b
    lvd-curate status runs/curate/sample
    lvd-curate status runs/work
    """
    from curate.execution.status import status

    click.echo(status(folder))
