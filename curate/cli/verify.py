"""`lvd-curate verify`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from shared.commands import LocalFolder


@click.command()
@click.argument("folder", metavar="OUT|WORK", type=LocalFolder())
@click.option(
    "--discard", is_flag=True, help="Of a WORK: remove the damaged units; a run makes them again."
)
def verify(folder: Path, discard: bool) -> None:
    """Compare all files with the hashes that were taken when they were written.

    Finds a flipped bit, a missing and a foreign file, and says what to do about each. The exit
    status is 1 where anything is wrong.

    \b
    lvd-curate verify runs/curate/sample
    lvd-curate verify runs/work --discard
    """
    from curate.execution.verify import verify

    checked, problems = verify(folder, discard=discard)
    for problem in problems:
        click.echo(problem)
    click.echo(f"{checked:,} files looked at, {len(problems):,} problems")
    if problems:
        sys.exit(1)
