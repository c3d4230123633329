"""`lvd-curate explain`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from shared.commands import LocalFolder


@click.command()
@click.argument("out", metavar="DIR", type=LocalFolder())
@click.argument("key")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def explain(out: Path, key: str, as_json: bool) -> None:
    """Tell the life of one image.

    Its facts, its group of copies, its nearest seeds, the decision and why.
    """
    from curate.report.explain import explain, life

    if as_json:
        click.echo(json.dumps(life(out, key), indent=1, ensure_ascii=False))
    else:
        click.echo(explain(out, key), nl=False)
