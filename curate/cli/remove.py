"""`lvd-curate remove`."""

from __future__ import annotations

from pathlib import Path

import click

from curate.cli.options import work_option
from shared.commands import LocalFolder


@click.command()
@click.argument("out", metavar="OUT", type=LocalFolder())
@click.option("--list", "path", required=True, help="The list: a path or an fsspec URL.")
@click.option(
    "--kind",
    type=click.Choice(["sha256", "pdq", "url", "domain", "key"]),
    default="sha256",
    show_default=True,
    help="What its entries are.",
)
@click.option("--distance", type=int, help="Of pdq, bits that may differ [default: 31].")
@click.option("--column", help="Of a .csv or .parquet, the column of the entries.")
@click.option(
    "--near",
    is_flag=True,
    help="Take out near copies of them by PDQ, too, and keep their hashes, so that none comes back.",
)
@click.option("--name", help="What the reports call it; by default the name of its file.")
@work_option("The --work of the run.")
@click.option("--no-work", is_flag=True, help="The --work of the run is gone.")
@click.option("--dry-run", is_flag=True, help="Say what would be taken out.")
def remove(
    out: Path,
    path: str,
    kind: str,
    distance: int | None,
    column: str | None,
    near: bool,
    name: str | None,
    work: Path,
    no_work: bool,
    dry_run: bool,
) -> None:
    """Take the images of a list out of a finished result.

    With them go images of the same bytes, and the copies that they stood for: nothing takes their
    place. Shards that hold them are written anew, what stays keeps its key, and the reports say
    `unsafe`. Vectors of them go from WORK with the units that hold them, and from OUT the centroids
    of their clusters. The crawl is not touched, and a new run takes them in again unless its pipeline
    has the list in `lists`. `lvd-curate update` and `run --since` know them again by their bytes, and
    with --near, which needs a run with a list of kind pdq in its `lists` (an empty one will do), their
    near copies; without it these are new images.

    \b
    lvd-curate query runs/curate/sample --format csv --to runs/optout.csv \\
        "select key from images where decision = 'kept' order by key limit 2"
    lvd-curate remove runs/curate/sample --list runs/optout.csv --column key --kind key --dry-run
    """
    from curate.filters.lists import ListSettings
    from curate.removal.remove import remove
    from shared.config import validate

    asked = {"kind": kind, "path": path, "column": column, "distance": distance}
    settings = validate(ListSettings, asked, file="--list")
    place = None if no_work else work.absolute()
    name = name or Path(path).stem
    for line in remove(out.absolute(), name, settings, place, near=near, dry_run=dry_run):
        click.echo(line)
