"""Lets a run go on from another one's networks: a stage with other crops, schedules or data."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException

from shared.errors import LvdError
from shared.storage import read_json
from train.model.network import Network
from train.persistence.checkpoints import MANIFEST, newest, read_tensors

TABLE = "backbone.vit.pos_embed"


def load_networks(source: Path, networks: Mapping[str, Network]) -> None:
    """Load "student" and "teacher" of a run into `networks`, heads and mask token included.

    `source` is the run's OUT, or one of its checkpoints. Position embeddings are resampled to the
    grid of the networks. Raises LvdError where there is no whole checkpoint, or one of another
    architecture.
    """
    path = source
    if (source / "checkpoints").is_dir():
        path = newest(source / "checkpoints") or source
    for name, network in networks.items():
        state, ours = read_network(path, name), network.state_dict()
        if TABLE in state and state[TABLE].shape != ours[TABLE].shape:
            backbone = network.backbone
            embedded = ours[TABLE].shape[1] - backbone.vit.patch_embed.num_patches
            side = isqrt(state[TABLE].shape[1] - embedded)
            grid = backbone.vit.patch_embed.grid_size
            state[TABLE] = backbone.resampled(state[TABLE], (side, side), grid)
        for key in sorted(state.keys() | ours.keys()):
            there, here = (tuple(s[key].shape) if key in s else None for s in (state, ours))
            if there != here:
                raise LvdError(
                    f"continue_from {source}: its {name} has {key} {there or 'not at all'}, and "
                    f"this recipe {here or 'not at all'}: use its model and heads settings"
                )
        network.load_state_dict(state)


def read_network(path: Path, name: str) -> dict[str, Tensor]:
    """Return the weights of the network `name` of a checkpoint, whole and on the CPU.

    Raises LvdError where `path` is no whole checkpoint.
    """
    prefix = f"{name}/"
    try:
        tensors = {
            key: torch.empty(known["shape"], dtype=getattr(torch, known["dtype"]))
            for key, known in read_json(path / MANIFEST)["tensors"].items()
            if key.startswith(prefix)
        }
        read_tensors(path, tensors, together=False)
    except (OSError, ValueError, KeyError, CheckpointException) as error:
        reason = " ".join(str(error).split())[:200]
        raise LvdError(
            f"{path} is no whole checkpoint ({reason}): give the OUT of a run, or a step-... folder"
        ) from error
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
