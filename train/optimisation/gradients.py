"""What happens to gradients between the backward pass and the optimiser."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Partial
from torch.nn.utils import get_total_norm

from train.optimisation.ema import local_shards


def drop_gradients_of_frozen(optimiser: torch.optim.Optimizer) -> None:
    """Drop the prototypes' gradients, after the backward pass of a step that freezes them.

    A parameter without a gradient counts in no norm, and AdamW neither moves nor decays it, nor
    advances its bias correction: a learning rate of 0 would leave it in the norm.
    """
    for group in optimiser.param_groups:
        if group["last_layer"]:
            for parameter in group["params"]:
                parameter.grad = None


@torch.no_grad()
def clip_by_module(network: nn.Module, max_norm: float | None) -> dict[str, float]:
    """Scale down, in place, the gradients of each direct child whose L2 norm exceeds `max_norm`.

    Returns the norms before that by the child's name ("backbone", "dino_head", "ibot_head"),
    without children that have no gradients. They are norms over all shards where gradients are
    DTensors, all on one mesh; every rank must call it then. None measures only. One
    synchronisation with the device.
    """
    gradients = {
        name: [p.grad for p in child.parameters() if p.grad is not None]
        for name, child in network.named_children()
    }
    gradients = {name: present for name, present in gradients.items() if present}
    shards = {name: local_shards(present) for name, present in gradients.items()}
    norms = torch.stack([get_total_norm(present) for present in shards.values()])
    like = next(iter(gradients.values()))[0]
    if isinstance(like, DTensor):
        # On shards, and summed once for all children: half the time of torch's norm of DTensors.
        sums = [Partial() if placed.is_shard() else placed for placed in like.placements]
        squares = DTensor.from_local(norms.square(), like.device_mesh, sums)
        norms = squares.full_tensor().sqrt()
    on_host = dict(zip(shards, norms.tolist(), strict=True))
    for name, norm in on_host.items():
        # Multiplying by 1 would cost a pass over all gradients.
        if max_norm is not None and norm > max_norm:
            torch._foreach_mul_(shards[name], max_norm / (norm + 1e-6))
    return on_host


def finite(*values: float) -> bool:
    """Return whether all losses and gradient norms of a step are finite numbers.

    If not, the step is to be skipped on all ranks or on none: `train.distributed.ranks.any_rank` decides.
    """
    return all(map(math.isfinite, values))
