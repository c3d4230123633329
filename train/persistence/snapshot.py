"""What of a run is saved, and what people take away from it: checkpoint state and model folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from torch.distributed.tensor import DTensor

from train.model.model_folder import write_model_folder
from train.persistence.checkpoints import load, training_state
from train.system import System


def snapshot(system: System, step: int, counts: Counter[str]) -> dict[str, Any]:
    """Return all that a run needs to go on behind `step` steps; its tensors are the live ones.

    No generator's state is in it, and of the data one integer: all else follows from the recipe.
    """
    centerings = {str(n): c.state_dict() for n, c in enumerate(system.centerings)}
    return {
        **training_state(system.student, system.teacher, system.optimiser),
        "centerings": centerings,
        "progress": {"images": step * system.recipe.batch_size, **counts},
    }


def restore(system: System, counts: Counter[str], checkpoint: Path) -> int:
    """Load a checkpoint into the system and the counts; return the number of steps behind it."""
    progress = dict(load(checkpoint, snapshot(system, 0, counts))["progress"])
    images = progress.pop("images")
    counts.update(progress)
    return images // system.recipe.batch_size


def write_model(system: System, out: Path) -> None:
    """Write the teacher's backbone as a model folder; every process must call it."""
    state = {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()
        for name, tensor in system.teacher.backbone.state_dict().items()
    }
    if system.ranks.first:
        write_model_folder(state, system.recipe.model, system.recipe.crops.global_size, out)
