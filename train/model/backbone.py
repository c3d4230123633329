"""A timm Vision Transformer as backbone: mask tokens in, CLS and patch tokens out, at any size."""

from __future__ import annotations

from typing import Any

import timm
import torch
from jaxtyping import Bool, Float, Int
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from shared.errors import LvdError, nearest
from train.model.blocks import Shapes, make_sparse
from train.model.positions import resample_positions
from train.model.settings import ModelSettings


class Backbone(nn.Module):
    """Wraps a timm VisionTransformer (`vit`) without a classifier."""

    def __init__(self, vit: VisionTransformer, settings: ModelSettings, *, masked: bool) -> None:
        super().__init__()
        self.vit = vit
        # Zeros, as iBOT and DINOv2. Only where masks are used: DDP wants a gradient of everything.
        self.mask_token = nn.Parameter(torch.zeros(1, 1, vit.embed_dim)) if masked else None
        self._settings = settings
        self._fused: bool | None = None

    @property
    def dim(self) -> int:
        """Width of the tokens."""
        return self.vit.embed_dim

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return self.vit.patch_embed.patch_size[0]

    @property
    def prefix_tokens(self) -> int:
        """Tokens in front of the patches: CLS and registers."""
        return self.vit.num_prefix_tokens

    @property
    def cls_token(self) -> Float[nn.Parameter, "1 1 d"]:
        """The CLS token, which `build_backbone` has seen to be there."""
        assert self.vit.cls_token is not None
        return self.vit.cls_token

    @property
    def positions(self) -> Float[nn.Parameter, "1 p d"]:
        """The table of position embeddings, which `build_backbone` has seen to be there."""
        assert self.vit.pos_embed is not None
        return self.vit.pos_embed

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of patches of an image; LvdError unless it is divisible."""
        if height % self.patch or width % self.patch:
            raise LvdError(
                f"crops of {height} x {width} px cannot be cut in patches of {self.patch} px: "
                "change crops.global_size, crops.local_size or model.patch_size"
            )
        return height // self.patch, width // self.patch

    def forward(
        self,
        *views: Float[Tensor, "n 3 h w"],
        masks: Bool[Tensor, "first p"] | None = None,
        patch_index: Int[Tensor, " m"] | None = None,
    ) -> tuple[Float[Tensor, "all d"], Float[Tensor, "first p d"] | Float[Tensor, "m d"]]:
        """Return the CLS tokens of all views and the patch tokens of the first ones.

        Each of `views` is a batch of one size; all go through each block in one call. Tokens are
        behind the final norm, without the registers. Where `masks` is true, the mask token stands
        for the embedding of a patch of the first views (iBOT, arXiv 2111.07832), before the
        position embedding is added. With `patch_index`, positions in their flattened [first * p],
        only those patch tokens are returned, and the last block's MLP and the final norm are
        computed for nothing but these and CLS.
        """
        embedded = [self._embed(images, None if i else masks) for i, images in enumerate(views)]
        shapes = tuple((len(tokens), tokens.shape[1]) for tokens in embedded)
        x = torch.cat([tokens.flatten(0, 1) for tokens in embedded])
        x = self.vit.norm_pre(x)
        *blocks, last = self.vit.blocks
        for block in blocks:
            x = block(x, shapes)
        first, length = shapes[0]
        cls_index = _cls_places(shapes, x.device)
        if patch_index is None:
            x = self.vit.norm(last(x, shapes))
            tokens = x[: first * length].view(first, length, -1)
            return x.index_select(0, cls_index), tokens[:, self.prefix_tokens :]
        image = patch_index // (length - self.prefix_tokens)
        patch_index = patch_index + (image + 1) * self.prefix_tokens
        x = self.vit.norm(last(x, shapes, torch.cat([cls_index, patch_index])))
        return x[: len(cls_index)], x[len(cls_index) :]

    def resampled(
        self, table: Float[Tensor, "1 old d"], old: tuple[int, int], new: tuple[int, int]
    ) -> Float[Tensor, "1 new d"]:
        """Return a float32 table of position embeddings, made for the grid `old`, for `new`."""
        return resample_positions(
            table,
            new,
            old,
            prefix=self._embedded_prefix,
            mode=self._settings.position_mode,
            antialias=self._settings.position_antialias,
            offset=self._settings.position_offset,
        )

    @property
    def _embedded_prefix(self) -> int:
        """Rows of the table of position embeddings that belong to CLS and registers."""
        return 0 if self.vit.no_embed_class else self.prefix_tokens

    def _embed(
        self, images: Float[Tensor, "n 3 h w"], masks: Bool[Tensor, "n p"] | None
    ) -> Float[Tensor, "n t d"]:
        """Return what goes into the blocks, before the norm that some models have there."""
        grid = self.grid(*images.shape[-2:])
        tokens = self.vit.patch_embed(images).flatten(1, 2)
        self._choose_attention(tokens)
        if masks is not None:
            if self.mask_token is None:
                raise ValueError("masks are for a backbone that was built with a mask token")
            tokens = torch.where(masks[..., None], self.mask_token.to(tokens.dtype), tokens)
        return self.vit.pos_drop(self._with_prefix(tokens, grid))

    def _with_prefix(
        self, tokens: Float[Tensor, "n p d"], grid: tuple[int, int]
    ) -> Float[Tensor, "n t d"]:
        """Return the sequence of CLS, registers and patches, position embeddings added."""
        vit = self.vit
        prefix: Tensor = self.cls_token
        if vit.reg_token is not None:
            prefix = torch.cat([prefix, vit.reg_token], dim=1)
        embedded = self._embedded_prefix
        table = self.resampled(self.positions, vit.patch_embed.grid_size, grid)
        if embedded:
            prefix = prefix + table[:, :embedded]
        tokens = tokens + table[:, embedded:]
        return torch.cat([prefix.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)

    def _choose_attention(self, tokens: Tensor) -> None:
        """Tell timm's attention modules which form to take.

        Measured on one thread of an AVX512-BF16 processor, forward and backward, widths 128 to 384
        and 17 to 1025 tokens, the fused form takes 1.4 to 3.7 times as long as the explicit one in
        bfloat16, and 0.95 to 1.1 times in float32 (inference: 1.1 to 1.4, and 0.8 to 1.0).
        """
        slow = tokens.device.type == "cpu" and tokens.dtype != torch.float32
        fused = {"fused": True, "explicit": False, "auto": not slow}[self._settings.attention]
        if fused != self._fused:
            for module in self.vit.modules():
                if isinstance(module, Attention):
                    setattr(module, "fused_attn", fused)  # noqa: B010 - final, for TorchScript
            self._fused = fused


def _cls_places(shapes: Shapes, device: torch.device) -> Int[Tensor, " all"]:
    """Return the places of the CLS tokens in the flattened tokens of all sizes."""
    places, begin = [], 0
    for samples, length in shapes:
        places.append(begin + torch.arange(samples, device=device) * length)
        begin += samples * length
    return torch.cat(places)


def build_backbone(settings: ModelSettings, *, image_size: int, masked: bool) -> Backbone:
    """Return a randomly initialised backbone, from torch's global generator on the default device.

    Raises LvdError when timm has no such Vision Transformer or the settings don't fit together.
    """
    size = settings.image_size or image_size
    vit = _create(settings, size)
    _check(vit, settings, size)
    assert isinstance(vit, VisionTransformer)
    count = len(vit.blocks)
    for i, block in enumerate(vit.blocks):
        linear = settings.drop_path_schedule == "linear"
        share = settings.drop_path * (i / max(1, count - 1) if linear else 1)
        make_sparse(block, share)
    return Backbone(vit, settings, masked=masked)


def model_arguments(settings: ModelSettings, size: int) -> dict[str, bool | int | float | str]:
    """Return what timm's `create_model` needs, besides the name, for this backbone; JSON-able."""
    arguments: dict[str, bool | int | float | str] = {"img_size": size, "dynamic_img_size": True}
    if settings.patch_size is not None:
        arguments["patch_size"] = settings.patch_size
    if settings.layer_scale is not None:
        arguments["init_values"] = settings.layer_scale
    return {**arguments, **{str(key): value for key, value in settings.options.items()}}


def _create(settings: ModelSettings, size: int) -> nn.Module:
    architecture = settings.name.partition(".")[0]
    if not timm.is_model(architecture):
        hint = nearest(architecture, timm.list_models("*vit*"))
        raise LvdError(f"model.name: timm has no model {architecture!r}{hint}")
    arguments: dict[str, Any] = dict(model_arguments(settings, size))
    try:
        return timm.create_model(architecture, num_classes=0, **arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise LvdError(
            f"model {settings.name} cannot be built ({type(error).__name__}: {reason}): correct "
            "model.options, or name a plain Vision Transformer of timm"
        ) from error


def _check(vit: nn.Module, settings: ModelSettings, size: int) -> None:
    """Raise LvdError unless the model is a ViT whose tokens this trainer can use."""
    problem = ""
    if (
        not isinstance(vit, VisionTransformer)
        or type(vit) is not VisionTransformer
        or {type(block) for block in vit.blocks} != {Block}
    ):
        problem = "it is no plain VisionTransformer"
    elif not vit.has_class_token:
        problem = "it has no CLS token"
    elif isinstance(vit.norm, nn.Identity) or vit.attn_pool is not None:
        problem = "it pools its patches instead of reading the CLS token"
    elif vit.pos_embed is None:
        problem = "it has no position embeddings"
    if problem:
        raise LvdError(
            f"model {settings.name} cannot be trained here: {problem}; name another, such as "
            "vit_small_patch16_224"
        )
    assert isinstance(vit, VisionTransformer)
    patch = vit.patch_embed.patch_size[0]
    if size % patch:
        raise LvdError(
            f"model {settings.name}: {size} px are not divisible by its patches of {patch} px: "
            "change crops.global_size, model.image_size or model.patch_size"
        )
