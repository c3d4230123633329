"""One forward and backward pass of a small student, its blocks compiled or not, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from train.distributed.parallelise import autocast, parallelise
from train.distributed.ranks import Ranks
from train.distributed.settings import ParallelSettings
from train.model.network import build_network, make_teacher
from train.model.settings import HeadSettings, HeadsSettings, ModelSettings

IMAGES, SIDE, PATCH = 8, 32, 8


def forward_and_backward(
    device: torch.device, *, compiled: bool, drop_path: float, seed: int = 0, depth: int = 1
) -> dict[str, Tensor]:
    """Return a loss of everything that the student returns, its CLS tokens, and all gradients.

    In bfloat16, with masks, by the project's own way to compile.
    """
    model = ModelSettings(
        name="vit_tiny_patch16_224",
        patch_size=PATCH,
        options={"embed_dim": 32, "depth": depth, "num_heads": 2},
        layer_scale=0.5,
        drop_path=drop_path,
    )
    heads = HeadsSettings(dino=HeadSettings(prototypes=48, hidden=32, bottleneck=16))
    student = build_network(model, heads, masked=True, sizes=[SIDE], seed=0).to(device)
    settings = ParallelSettings(compile=compiled, precision="bfloat16")
    called, _ = parallelise(student, make_teacher(student), settings, Ranks(0, 1, 0, device))
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, 3, SIDE, SIDE, generator=draw).to(device)
    masks = (torch.rand(IMAGES, (SIDE // PATCH) ** 2, generator=draw) < 0.4).to(device)
    index = masks.flatten().nonzero()[:, 0]
    torch.manual_seed(seed)
    with autocast(torch.bfloat16, device):
        found = called(images, None, masks, index)
    patches = (4 * found.patch_logits.whole().float()).logsumexp(dim=-1).mean()
    loss = (4 * found.cls_logits.whole().float()).logsumexp(dim=-1).mean() + patches
    (loss + found.cls.float().pow(3).mean()).backward()
    gradients = {name: p.grad.float() for name, p in student.named_parameters()}
    return {"loss": loss.detach(), "cls": found.cls.detach().float(), **gradients}


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Return the norm of the difference over that of `theirs`."""
    return ((ours - theirs).norm() / theirs.norm()).item()
