"""`lvd-curate export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from curate.cli.options import folder, work_option
from shared.commands import LocalFolder

if TYPE_CHECKING:
    from curate.viewers.export import Format


@click.command()
@click.argument("out", metavar="OUT", type=LocalFolder())
@folder("--to", "target", metavar="DIR", required=True, help="A folder that is not there yet.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["fiftyone", "lightly", "csv"]),
    required=True,
    help="fiftyone: a dataset that FiftyOne imports. lightly: images and a script that loads them into "
    "LightlyStudio. csv: images and a table.",
)
@click.option(
    "--decision",
    "decisions",
    multiple=True,
    metavar="NAME",
    help="Only images of which this became, such as kept. Repeatable; by default all that may be shown: "
    "not corrupt and unsafe ones.",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=10_000,
    show_default=True,
    help="Images at most; drawn at random where there are more.",
)
@click.option(
    "--vectors",
    is_flag=True,
    help="With the vectors by which OUT judged meaning, for maps and search (fiftyone and lightly).",
)
@work_option("The --work of the run: it knows where the images are, and holds the vectors.")
def export(
    out: Path,
    target: Path,
    kind: Format,
    decisions: tuple[str, ...],
    limit: int,
    vectors: bool,
    work: Path,
) -> None:
    """Export images, with what became of each and why, for FiftyOne, LightlyStudio or anything else.

    DIR holds copies of the images, and their decision, reason, similarity, nearest seed and group of
    copies. The extras fiftyone and lightly install what opens it; writing it needs neither.

    \b
    lvd-curate export runs/curate/sample --format fiftyone --to runs/sample-fiftyone --vectors
    lvd-curate export runs/curate/sample --format lightly --to runs/sample-studio --decision kept
    lvd-curate export runs/curate/sample --format csv --to runs/sample-csv --limit 100
    """
    from curate.viewers.export import export
    from curate.viewers.images import SHOWN
    from shared.errors import LvdError, nearest

    if unknown := set(decisions) - set(SHOWN):
        name = min(unknown)
        raise LvdError(
            f"--decision {name}: no decision whose images are shown{nearest(name, SHOWN)}: there are "
            f"{', '.join(SHOWN)}"
        )
    if vectors and kind == "csv":
        raise LvdError("--vectors: not for --format csv: say fiftyone or lightly")
    for line in export(out, target, kind, work.absolute(), decisions or SHOWN, limit, vectors):
        click.echo(line)
