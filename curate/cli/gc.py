"""`lvd-curate gc`."""

from __future__ import annotations

from pathlib import Path

import click

from curate.cli.options import work_option
from shared.commands import LocalFolder


@click.command()
@click.argument("keep", metavar="OUT...", nargs=-1, required=True, type=LocalFolder())
@work_option("The folder to clear out.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed.")
def gc(keep: tuple[Path, ...], work: Path, dry_run: bool) -> None:
    """Remove from WORK what none of the given finished runs needs.

    A later run makes again what it lacks. While a run is at work nothing is removed.

    \b
    lvd-curate gc runs/curate/sample --dry-run
    """
    from curate.execution.gc import collect

    for line in collect(work.absolute(), keep, dry_run=dry_run):
        click.echo(line)
