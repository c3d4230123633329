"""What of a run is saved, and what people take away from it: checkpoint state and model folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from shared.errors import LvdError
from train.distillation.anchors import AnchorHead
from train.distillation.frozen_teacher import FrozenTeacher
from train.distributed.shards import whole_tensors
from train.model.model_folder import write_model_folder
from train.persistence.checkpoints import load, training_state
from train.system import System


def snapshot(system: System, step: int, counts: Counter[str]) -> dict[str, Any]:
    """Return all that a run needs to go on behind `step` steps; its tensors are the live ones.

    No generator's state is in it, and of the data one integer: all else follows from the recipe.
    """
    frozen = system.frozen_teacher
    centerings = {str(n): c.state_dict() for n, c in enumerate(system.centerings)}
    return {
        **training_state(system.student, system.teacher, system.optimiser),
        "centerings": centerings,
        **({"distillation": _distillation(frozen)} if frozen else {}),
        "progress": {"images": step * system.recipe.batch_size, **counts},
    }


def restore(system: System, counts: Counter[str], checkpoint: Path) -> int:
    """Load a checkpoint into the system and the counts; return the number of steps behind it."""
    saved = load(checkpoint, snapshot(system, 0, counts))
    if (frozen := system.frozen_teacher) is not None:
        _check_teacher(saved["distillation"]["teacher"], frozen, system, checkpoint)
    progress = dict(saved["progress"])
    images = progress.pop("images")
    counts.update(progress)
    return images // system.recipe.batch_size


def _distillation(teacher: FrozenTeacher) -> dict[str, Any]:
    """Return what tells a frozen teacher from others, and its anchors."""
    heads = {"dino": teacher.dino_head, "ibot": teacher.ibot_head}
    anchors = {
        name: dict(head.named_buffers())
        for name, head in heads.items()
        if isinstance(head, AnchorHead)
    }
    return {"teacher": teacher.fingerprint, "anchors": anchors}


def _check_teacher(
    fingerprint: str, teacher: FrozenTeacher, system: System, checkpoint: Path
) -> None:
    distillation = system.recipe.distillation
    if distillation is not None and fingerprint != teacher.fingerprint:
        raise LvdError(
            f"checkpoint {checkpoint} was distilled from other weights than "
            f"distillation.teacher={distillation.teacher} has now: name the teacher "
            "that it began with, or give another --out"
        )


def write_model(system: System, out: Path) -> None:
    """Write the teacher's backbone as a model folder; every process must call it.

    The first process alone gathers it in its memory, on the CPU, and writes it.
    """
    state = {}
    for name, whole in whole_tensors(system.teacher.backbone):
        if system.ranks.first:
            state[name] = whole.cpu()
    if system.ranks.first:
        write_model_folder(state, system.recipe.model, system.recipe.crops.global_size, out)
