"""torch's fused attention on a card is the product, softmax and product that it stands for."""

from __future__ import annotations

import pytest
import torch
from small_step import LOCAL_SIDE, PATCH, SIDE, recipe

from train.distributed.parallelise import autocast
from train.model.network import Network
from train.student import new_network

pytestmark = pytest.mark.gpu


def outputs_and_gradients(
    network: Network, precision: torch.dtype, side: int, device: torch.device
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, side, side, generator=generator).to(device)
    with autocast(precision, device):
        cls, patches = network.backbone(images)
    tokens = torch.cat([cls[:, None], patches], dim=1).float()
    tokens.square().mean().backward()
    return tokens.detach(), [p.grad for p in network.backbone.vit.blocks.parameters()]


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("side", [SIDE, LOCAL_SIDE, 16 * PATCH])
@pytest.mark.parametrize(("name", "allowed"), [("float32", 1e-4), ("bfloat16", 3e-2)])
def test_fused_and_explicit_attention_are_one(
    device: torch.device, name: str, allowed: float, side: int
) -> None:
    found = []
    for attention in ("fused", "explicit"):
        network = new_network(recipe(model=recipe().model.model_dump() | {"attention": attention}))
        network = network.to(device)
        found.append(outputs_and_gradients(network, getattr(torch, name), side, device))
    (fused, of_fused), (explicit, of_explicit) = found
    assert error(fused, explicit) < allowed
    for ours, theirs in zip(of_fused, of_explicit, strict=True):
        assert error(ours, theirs) < 3 * allowed
