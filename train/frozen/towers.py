"""Reads pooled features, CLS and patch tokens of the networks of timm and open_clip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast

import torch
from jaxtyping import Float
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer as ClipTransformer
from timm.layers import Format, SelectAdaptivePool2d
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call

from train.model.positions import resample_positions

TOKEN_MODELS = (VisionTransformer, Eva, Beit)
"""timm's networks of tokens throughout, the CLS token and registers in front; `norm` is their last."""


class Tokens(NamedTuple):
    """What a frozen model sees in n images."""

    pooled: Float[Tensor, "n e"]
    """By the model's own pooling: its CLS token, the mean of its patches, its image embedding."""
    cls: Float[Tensor, "n blocks d"] | None
    """CLS tokens of the last blocks, in their order, each behind the final norm; None without."""
    patches: Float[Tensor, "n rows columns d"] | None
    """Of the last block, behind the final norm, without CLS token and registers; or the last map of
    a convolutional network. None where there is no such thing."""


class _Timm(Protocol):
    """What timm's networks have in common, which no class of timm says."""

    def forward_intermediates(
        self, x: Tensor, *, indices: int, **options: bool | str
    ) -> tuple[Tensor, list[Any]]:
        """Return the last tokens or map, and those of some blocks, with prefix tokens in pairs."""

    def forward_head(self, x: Tensor) -> Tensor:
        """Return what the network pools of its last tokens or map."""


Tower = Callable[[Float[Tensor, "n 3 h w"], int], Tokens]
"""What maps normalised images, and the number of blocks whose CLS token is wanted, to tokens."""


def tower_of(module: nn.Module) -> Tower:
    """Return how the tokens of a network of timm, or of an image tower of open_clip, are read.

    Where the network permits it, images may have any size that its patches divide: position
    embeddings are resampled as timm resamples them.
    """
    if isinstance(module, TimmModel):
        if isinstance(module.trunk, VisionTransformer):
            _take_any_size(module.trunk)
        return lambda images, blocks: _timm_tokens(module.trunk, images, blocks, module.head)
    if isinstance(module, ClipTransformer | ModifiedResNet):
        return _ClipTower(module)
    return lambda images, blocks: _timm_tokens(module, images, blocks, nn.Identity())


def trunk_of(module: nn.Module) -> nn.Module:
    """Return timm's network inside an image tower of open_clip; any other network itself."""
    return module.trunk if isinstance(module, TimmModel) else module


def patch_and_registers(module: nn.Module) -> tuple[int | None, int]:
    """Return the side of a patch in pixels, if tokens are patches, and the number of registers."""
    network = trunk_of(module)
    if isinstance(network, ClipTransformer):
        return network.patch_size[0], 0
    if not isinstance(network, TOKEN_MODELS):
        return None, 0
    return network.patch_embed.patch_size[0], network.num_prefix_tokens - _has_cls(network)


def pooling_of(module: nn.Module) -> str:
    """Return how a network pools: `token`, `avg`, `map` (by attention), or as its library says."""
    if isinstance(module, ModifiedResNet):
        return "map"
    if isinstance(module, ClipTransformer):
        kind = "map" if module.attn_pool is not None else module.pool_type
        return f"{'token' if kind == 'tok' else kind}, projected"
    network = trunk_of(module)
    pools = [part for part in network.modules() if isinstance(part, SelectAdaptivePool2d)]
    kind = getattr(network, "global_pool", None)
    kind = kind if isinstance(kind, str) else pools[-1].pool_type if pools else "its own"
    projected = isinstance(module, TimmModel) and any(True for _ in module.head.parameters())
    return f"{kind}, projected" if projected else kind


def _timm_tokens(
    network: nn.Module, images: Float[Tensor, "n 3 h w"], blocks: int, head: nn.Module
) -> Tokens:
    if not hasattr(network, "forward_intermediates"):
        return Tokens(head(network(images)), None, None)
    library = cast("_Timm", network)
    if not isinstance(network, TOKEN_MODELS):
        try:
            last, maps = library.forward_intermediates(images, indices=1, norm=True)
        except AssertionError:  # said, before anything is computed, by those that cannot
            last, maps = library.forward_intermediates(images, indices=1)
        return Tokens(head(library.forward_head(last)), None, maps[-1].permute(0, 2, 3, 1))
    prefix = network.num_prefix_tokens
    last, seen = library.forward_intermediates(
        images,
        indices=min(blocks, len(network.blocks)),
        return_prefix_tokens=prefix > 0,
        output_fmt="NLC",
    )
    cls = None
    if _has_cls(network):
        before = [network.norm(tokens[:, 0]) for _, tokens in seen[:-1]]
        cls = torch.stack([*before, last[:, 0]], dim=1)
    height, width = images.shape[2:]
    grid = network.patch_embed.dynamic_feat_size((height, width))
    return Tokens(head(library.forward_head(last)), cls, last[:, prefix:].unflatten(1, grid))


class _ClipTower(nn.Module):
    """The towers that open_clip builds itself, whose position embeddings have one size."""

    def __init__(self, visual: ClipTransformer | ModifiedResNet) -> None:
        super().__init__()
        self.visual = visual
        self._is_vit = isinstance(visual, ClipTransformer)
        at = "positional_embedding" if self._is_vit else "attnpool.positional_embedding"
        self._table = f"visual.{at}"
        side = visual.image_size[0] if self._is_vit else visual.image_size
        self._stride = visual.patch_size[0] if self._is_vit else 32
        self._grid = (side // self._stride,) * 2

    def forward(
        self, images: Float[Tensor, "n 3 h w"], blocks: int, resampled: bool = False
    ) -> Tokens:
        height, width = (side // self._stride for side in images.shape[2:])
        grid = height, width
        if grid != self._grid and not resampled:
            table = self.get_parameter(self._table)[None]
            fitting = resample_positions(table, grid, self._grid, prefix=1)[0]
            return functional_call(self, {self._table: fitting}, (images, blocks, True))
        if not self._is_vit:
            found = self.visual.forward_intermediates(images, indices=1)
            return Tokens(
                found["image_features"], None, found["image_intermediates"][-1].permute(0, 2, 3, 1)
            )
        found = self.visual.forward_intermediates(
            images,
            indices=min(blocks, len(self.visual.transformer.resblocks)),
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        # Behind attention pooling the final norm has another width, and is none of the tokens'.
        norm = nn.Identity() if self.visual.attn_pool is not None else self.visual.ln_post
        cls = norm(torch.cat(found["image_intermediates_prefix"], dim=1))
        patches = norm(found["image_intermediates"][-1]).unflatten(1, grid)
        return Tokens(found["image_features"], cls, patches)


def _has_cls(network: nn.Module) -> bool:
    return network.cls_token is not None


def _take_any_size(vit: VisionTransformer) -> None:
    """Make a ViT what timm's `dynamic_img_size` would have made it when it was built."""
    setattr(vit, "dynamic_img_size", True)  # noqa: B010 - final, for TorchScript
    embed = vit.patch_embed
    embed.flatten, embed.output_fmt, embed.strict_img_size = False, Format.NHWC, False
