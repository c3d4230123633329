"""The command `lvd-train export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from train.export.options import Format
    from train.weights.trained import Role


@click.command()
@click.argument("source", metavar="RUN_OR_CHECKPOINT", type=click.Path(path_type=Path))
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="The folder to write; there must be nothing in it.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["timm", "heads", "onnx", "single"]),
    default="timm",
    show_default=True,
    help="timm: a backbone, for timm.create_model('local-dir:OUT', pretrained=True) and "
    "lvd-curate --embedder OUT. heads: student and teacher with their heads, for continue_from. "
    "onnx: a backbone as a graph, held against torch. single: the whole checkpoint in one file.",
)
@click.option(
    "--network",
    "role",
    type=click.Choice(["teacher", "student"]),
    help="Whose backbone, for timm and onnx.  [default: teacher]",
)
@click.option(
    "--size",
    type=click.IntRange(min=1),
    metavar="PX",
    help="Resample the position embeddings for images of PX x PX, for timm and onnx; by default "
    "the size that the model was trained at.",
)
@click.option("--half", is_flag=True, help="Keep the weights in float16: half the size. For timm.")
def export(
    source: Path,
    out: Path,
    form: Format,
    role: Role | None,
    size: int | None,
    half: bool,
) -> None:
    """Write what a run has trained in a form that others load.

    Nothing is ever unpickled. RUN_OR_CHECKPOINT is the OUT of a run, whose newest whole checkpoint
    is taken, or one of its OUT/checkpoints/step-... folders, whatever number of processes wrote
    it. timm and onnx are also made from an export of the format heads or single, and from a model
    folder, such as OUT/model.

    \b
    lvd-train export runs/train/sample --out runs/export/sample --size 96
    """
    from train.export.new_folder import check_free
    from train.export.options import check_options

    check_options(form, role=role, size=size, half=half)
    check_free(out)
    from train.export.formats import write_export  # torch, which takes seconds, comes with it

    click.echo(write_export(source, out, form, role=role, size=size, half=half))
