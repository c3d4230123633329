"""What happens to gradients between the backward pass and the optimiser."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from train.distributed.shards import local_shards


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
def square_sums(network: nn.Module, world: int) -> dict[str, Float[Tensor, ""]]:
    """Return this process's part of the squared gradient norm of each direct child, float64.

    By the child's name ("backbone", "dino_head", "ibot_head"), without children that have no
    gradients. The sum over all `world` processes is the whole square: what several of them hold
    (all of it without shards) each of them counts in part. Nothing is sent, and nothing waits for
    the device.
    """
    return {name: _square_sum(gradients, world) for name, gradients in _by_child(network).items()}


@torch.no_grad()
def clip_by_module(
    network: nn.Module, norms: Mapping[str, Float[Tensor, ""]], max_norm: float
) -> None:
    """Scale down, in place, the gradients of each direct child whose L2 norm exceeds `max_norm`.

    `norms` are those of all shards by the child's name, on the gradients' device, where the factor
    stays too: there the others are multiplied by 1, which takes less time than asking whether to.
    On a CPU, which needs not be waited for, they are left alone.
    """
    for name, gradients in _by_child(network).items():
        factor = (max_norm / (norms[name] + 1e-6)).clamp(max=1).float()
        if factor.device.type != "cpu" or factor != 1:
            torch._foreach_mul_(local_shards(gradients), factor)


def _by_child(network: nn.Module) -> dict[str, list[Tensor]]:
    gradients = {
        name: [p.grad for p in child.parameters() if p.grad is not None]
        for name, child in network.named_children()
    }
    return {name: present for name, present in gradients.items() if present}


def _square_sum(gradients: Sequence[Tensor], world: int) -> Float[Tensor, ""]:
    of_copies: dict[int, list[Tensor]] = defaultdict(list)
    for gradient in gradients:
        of_copies[_copies(gradient, world)].append(gradient)
    squares = [
        get_total_norm(local_shards(some)).double().square() / copies
        for copies, some in of_copies.items()
    ]
    return reduce(torch.add, squares)


def _copies(gradient: Tensor, world: int) -> int:
    """Return how many processes hold the part of a gradient that this one holds."""
    if not isinstance(gradient, DTensor):
        return world
    mesh = gradient.device_mesh
    for dimension, placement in enumerate(gradient.placements):
        if placement.is_shard():
            world //= mesh.size(dimension)
    return world
