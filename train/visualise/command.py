"""The command `lvd-train visualise`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import click

from shared.commands import called


@click.command()
@click.option(
    "--model",
    "name",
    required=True,
    metavar="NAME",
    help="A model folder, the OUT or a step folder of a run, bundled, a timm name, ARCH:TAG of "
    "open_clip; several joined with '+'.",
)
@click.option(
    "--images",
    required=True,
    metavar="PATH",
    help="The pictures: a folder of images or of shards, a tar, a glob, a brace list, an fsspec URL.",
)
@click.option(
    "--neighbours",
    metavar="SHARDS",
    help="Images among which each picture's nearest neighbours are sought; a PATH like --images, or the "
    "OUT of lvd-curate run --set export.embeddings=true, whose vectors are used where --model made "
    "them: nothing is embedded then.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/visualise"),
    show_default=True,
    help="Gets index.html and PNG files; figures of an earlier call there are replaced.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=Path("runs/features"),
    show_default=True,
    help="Where the features of --neighbours are kept for the next call.",
)
@click.option(
    "--size",
    type=click.IntRange(min=1),
    metavar="PX",
    help="Side of the model's input, for finer maps; by default the model's own.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a setting, such as pictures=16, mass=0.6 or nearest=10 (a wrong name lists the "
    "right ones). Repeatable.",
)
def visualise(
    name: str,
    images: str,
    neighbours: str | None,
    out: Path,
    cache: Path,
    size: int | None,
    overrides: tuple[str, ...],
) -> None:
    """Draw what a model sees: attention maps, patch colours and nearest neighbours.

    Of the first pictures of PATH, by key: the CLS token's attention of each head, with the patches
    that hold 60 % of it; the principal components of the patch tokens as colours that all pictures
    share; and the nearest neighbours among SHARDS. Open OUT/index.html, which needs nothing else.

    \b
    lvd-train visualise --model runs/train/sample --images runs/curate/sample/shards
    """
    from shared.config import apply_overrides, validate
    from shared.datasets.dataset import DatasetSettings, list_parts
    from train.frozen.names import parse_names
    from train.visualise.output import check_replaceable
    from train.visualise.settings import VisualiseSettings

    tree = apply_overrides({}, overrides)
    settings = validate(
        VisualiseSettings, tree, file="the settings of visualise", overrides=overrides
    )
    parse_names(name)
    check_replaceable(out)
    if neighbours is not None:
        list_parts("--neighbours", DatasetSettings(path=neighbours))
    from train.visualise.album import draw  # torch, which takes seconds, comes with it

    page = draw(
        name,
        images,
        neighbours,
        out,
        cache,
        size=size,
        settings=settings,
        command=_command(name, images, neighbours, size, overrides),
    )
    click.echo(page)


def _command(
    name: str, images: str, neighbours: str | None, size: int | None, overrides: Sequence[str]
) -> str:
    """Return the call without --out and --cache, which decide nothing of what is drawn."""
    words = ["visualise", "--model", name, "--images", images]
    words += ["--neighbours", neighbours] if neighbours is not None else []
    words += ["--size", str(size)] if size is not None else []
    words += [word for override in overrides for word in ("--set", override)]
    return f"{called('lvd-train')} {shlex.join(words)}"
