"""Saves what a run has when its processes can no longer talk to each other."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist
from torch.distributed.tensor import DTensor

from shared.errors import LvdError
from train.distributed.ranks import leave_group
from train.persistence.checkpoints import save
from train.snapshot import snapshot
from train.system import System


def cut_off(error: RuntimeError) -> bool:
    """Return whether an error says that a collective of the processes failed or took too long."""
    return dist.is_initialized() and (isinstance(error, dist.DistError) or "gloo" in str(error))


def rescue(system: System, steps: int, counts: Counter[str], folder: Path, keep: int) -> LvdError:
    """Save a checkpoint behind `steps` steps without the other processes; return what to say of it.

    A collective that fails in a step does so before anything has moved. The first process can save
    where it has the networks whole, on the CPU: on a card the rest of the step may have been
    computed without the others' part, and of a share of the networks there is no whole checkpoint.
    """
    ranks = system.ranks
    line = "the processes lost each other (hang-*.txt says where each was, if they waited)"
    whole = not any(isinstance(p, DTensor) for p in system.student.parameters())
    leave_group()
    if not (ranks.first and whole and ranks.device.type == "cpu"):
        return LvdError(f"{line}: the same command goes on from the last whole checkpoint")
    state = snapshot(system, steps, counts)
    path = save(folder, steps, state, keep, replace(ranks, world=1))
    return LvdError(f"{line}: saved {path}; the same command goes on from there")
