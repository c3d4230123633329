"""Writes what a run has trained in one of the forms that others load."""

from __future__ import annotations

from pathlib import Path

import torch

from shared.errors import LvdError
from train.export.new_folder import new_folder
from train.export.one_file import write_one_file
from train.export.onnx_graph import TOLERANCE, require_onnx, write_onnx
from train.export.options import Format, check_options
from train.export.source import is_model_folder, read_backbone
from train.model.model_folder import write_model_folder
from train.persistence.marks import ONE_FILE
from train.weights.trained import Role, find_trained

NETWORKS = ("student/", "teacher/")


def write_export(
    source: Path,
    out: Path,
    form: Format,
    *,
    role: Role | None = None,
    size: int | None = None,
    half: bool = False,
) -> str:
    """Write the folder `out`, whole or not at all; return what is in it, in a line.

    `timm` and `onnx` hold one backbone, of the teacher unless `role` says otherwise, for images of
    `size` pixels, its weights in float16 with `half`; `heads` and `single` are made of a checkpoint
    as it is. Raises LvdError, in one line, for a source that is torn or foreign and for an `out`
    that holds anything.
    """
    check_options(form, role=role, size=size, half=half)
    if form in ("timm", "onnx"):
        return _write_backbone(source, out, form, role, size, half)
    if is_model_folder(source) or (source / ONE_FILE).exists():
        raise LvdError(
            f"{source} is an export: --format {form} needs a checkpoint, so give the OUT of the "
            "run, or one of its OUT/checkpoints/step-... folders"
        )
    trained = find_trained(source)
    with new_folder(out) as folder:
        count, size = write_one_file(trained, folder, NETWORKS if form == "heads" else ("",))
    return f"{out}: {count} tensors of {trained.checkpoint} in {ONE_FILE}, {size / 2**20:,.1f} MiB"


def _write_backbone(
    source: Path,
    out: Path,
    form: Format,
    role: Role | None,
    size: int | None,
    half: bool,
) -> str:
    if form == "onnx":
        require_onnx()
    state, settings, side, name = read_backbone(source, role, size)
    what = f"{out}: {name}, {settings.name} at {side} px"
    with new_folder(out) as folder:
        dtype = torch.float16 if half else torch.float32
        write_model_folder(state, settings, side, folder, dtype)
        what += ", in float16" if half else ""
        if form == "timm":
            return f"{what}; timm.create_model('local-dir:{out}', pretrained=True) loads it"
        difference = write_onnx(folder)
    return (
        f"{what}, as ONNX; largest difference to torch {difference:.1e} of the largest output "
        f"(at most {TOLERANCE:.0e} is let pass)"
    )
