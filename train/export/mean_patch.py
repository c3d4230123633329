"""Puts the mean patch token beside the CLS token, in the one vector that a plain timm model gives.

DINOv2's linear probes read both, concatenated (arXiv 2304.07193, section 7.1): the CLS token knows what
a picture shows, the mean patch what it is made of. Here each gets half of the dimensions. That is one
more block, which looks at all tokens alike and adds their mean to each of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from shared.errors import LvdError
from train.export.centring import frozen, pixel_batches
from train.model.backbone import ModelSettings

BLOCK = re.compile(r"vit\.blocks\.(\d+)\.(.*)")


def with_mean_patch(
    state: Mapping[str, Tensor], settings: ModelSettings, folder: Path, images: str
) -> tuple[dict[str, Tensor], ModelSettings]:
    """Return `state` and `settings` of a `Backbone` with one block more; `folder` is its model folder.

    Over the `images` (what `--shards` may be), the mean of all tokens, of half as many principal
    axes as the model is wide, is turned onto the axes along which the CLS token varies least, and
    scaled to vary as much as the CLS token does. Raises LvdError where there are too few images.
    """
    cls, normed, mean = _tokens(folder, images)
    width = cls.shape[1]
    if len(cls) < 2 * width:
        raise LvdError(
            f"--mean-patch: {len(cls)} images say too little of {width} dimensions: name at least "
            f"{2 * width} as --centre"
        )
    weight = state["vit.norm.weight"].double()
    scale = cls.std(1, correction=0).mean()
    seen = [normed * weight, mean * weight]
    seen = [values - values.mean(0) for values in seen]
    axes = [torch.linalg.svd(values, full_matrices=False)[2] for values in seen]
    half = width // 2
    turn = axes[0][width - half :].T @ axes[1][:half]
    size = [values.square().sum(1).mean().sqrt() for values in seen]
    turn = (turn * weight) / weight[:, None] * (size[0] / size[1]) * scale
    depth = 1 + max(int(found[1]) for name in state if (found := BLOCK.match(name)))
    added = {
        f"vit.blocks.{depth}.{found[2]}": _pooling(found[2], value, turn.to(value.dtype))
        for name, value in state.items()
        if (found := BLOCK.match(name)) and int(found[1]) == depth - 1
    }
    options = {**settings.options, "depth": depth + 1}
    return {**state, **added}, settings.model_copy(update={"options": options})


def _pooling(name: str, like: Tensor, turn: Float[Tensor, "d d"]) -> Tensor:
    """Return a parameter of the block: queries and keys of zero, so that all tokens weigh alike."""
    width = len(turn)
    if name == "attn.proj.weight":
        return turn.contiguous()
    if name == "attn.qkv.weight":
        return torch.cat([like.new_zeros(2 * width, width), torch.eye(width, dtype=like.dtype)])
    scales = re.fullmatch(r"(norm\d|attn\.\w*norm|mlp\.norm)\.weight|ls\d\.gamma", name)
    return torch.ones_like(like) if scales else torch.zeros_like(like)


def _tokens(folder: Path, images: str) -> tuple[Float[Tensor, "n d"], ...]:
    """Return CLS tokens before the final norm, the same normed, and the mean of all tokens normed.

    Normed is without the final norm's scale and bias.
    """
    model, transform, device = frozen(folder)
    found: list[tuple[Tensor, ...]] = []

    def note(norm: nn.LayerNorm, given: tuple[Tensor, ...]) -> None:
        tokens = given[0].double().cpu()
        normed = layer_norm(tokens, tokens.shape[-1:], eps=norm.eps)
        found.append((tokens[:, 0], normed[:, 0], normed.mean(1)))

    hook = model.norm.register_forward_pre_hook(note)
    with torch.inference_mode():
        for pixels in pixel_batches(images, transform, device):
            model(pixels)
    hook.remove()
    if not found:
        raise LvdError(f"--centre {images}: none of the images can be decoded: name others")
    return tuple(torch.cat(values) for values in zip(*found, strict=True))
