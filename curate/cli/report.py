"""`lvd-curate report`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from curate.cli.options import work_option
from shared.commands import LocalFolder


@click.command()
@click.argument("out", metavar="DIR", type=LocalFolder())
@work_option("The --work of the run: it knows where the images are.")
def report(out: Path, work: Path) -> None:
    """Print the summary of a finished run, and draw its pictures again.

    Where the crawl, the seed or --work is not there any more, the page stays as it is.

    \b
    lvd-curate report runs/curate/sample
    """
    from curate.execution.output import note_hashes
    from curate.redraw import picture_files, redraw
    from curate.report.summary import summary

    redraw(out, work.absolute(), keep=True)
    note_hashes(out, picture_files(out))
    click.echo(summary(out, colour=sys.stdout.isatty()), nl=False)
