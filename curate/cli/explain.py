"""`lvd-curate explain`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from curate.cli.options import work_option
from shared.commands import LocalFolder
from shared.errors import LvdError


@click.command()
@click.argument("out", metavar="DIR", type=LocalFolder())
@click.argument("name", metavar="KEY")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@work_option("The --work of the run: of a copy, whose nearest seeds no report holds, it has them.")
def explain(out: Path, name: str, as_json: bool, work: Path) -> None:
    """Tell the life of one image.

    Its facts, its group of copies, its nearest seeds, the decision and why. KEY is that of the
    reports, the name inside its part, its URL, or its key in the shards. What no crawled image is
    called is looked for among the images of included seeds.

    \b
    lvd-curate explain runs/curate/sample 00000/i00073          a key of the reports
    lvd-curate explain runs/curate/sample 000000000             a key of the shards
    """
    from curate.report.explain import explain, life
    from shared.progress import warn

    def find_seeds(key: str) -> list[dict[str, Any]]:
        from curate.search.seeds import nearest_seeds

        try:
            return nearest_seeds(out, work.absolute(), key)
        except LvdError as error:
            warn(f"the nearest seeds of a copy are not told: {error}")
            return []

    if as_json:
        click.echo(json.dumps(life(out, name, find_seeds), indent=1, ensure_ascii=False))
    else:
        click.echo(explain(out, name, find_seeds), nl=False)
