"""`lvd-curate demo`."""

from __future__ import annotations

from pathlib import Path

import click

from curate.cli.options import folder


@click.command()
@folder(
    "--out-root",
    "root",
    default=Path("runs"),
    show_default=True,
    help="Gets curate/sample, train/sample, look/sample; work/ and demo/ for what they need.",
)
@folder(
    "--config",
    default=Path("pipelines.yaml"),
    show_default=True,
    help="The file with the pipeline `sample` and the recipe `tiny`.",
)
@click.option("--steps", type=click.IntRange(1), help="Of the training; by default the recipe's.")
def demo(root: Path, config: Path, steps: int | None) -> None:
    """Show all of it in a minute or two, on a made-up crawl.

    Curate the built-in sample with what needs no download, train a small model on what was kept,
    draw what it and the bundled one see, and say what happened. What is there already is used again.

    \b
    lvd-curate demo
    """
    from curate.demo.demo import demo

    click.echo(demo(root, config, steps), nl=False)
