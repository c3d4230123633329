"""What a recipe may say of its networks: the backbone and the heads."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Option = Literal[
    "embed_dim",
    "depth",
    "num_heads",
    "mlp_ratio",
    "qkv_bias",
    "qk_norm",
    "proj_bias",
    "reg_tokens",
    "no_embed_class",
    "norm_layer",
    "act_layer",
    "pos_drop_rate",
    "proj_drop_rate",
    "attn_drop_rate",
]


class ModelSettings(BaseModel):
    """The backbone."""

    model_config = ConfigDict(extra="forbid")

    name: str
    """A Vision Transformer of timm, as `vit_small_patch14_reg4_dinov2`."""
    image_size: int | None = Field(None, ge=1)
    """Side in pixels that the position embeddings are made for; by default the global crops'."""
    patch_size: int | None = Field(None, ge=1)
    """By default the model's own."""
    options: dict[Option, bool | int | float | str] = {}
    """Further arguments of timm's VisionTransformer."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Stochastic depth of the student: the share of samples that skip a residual branch."""
    drop_path_schedule: Literal["uniform", "linear"] = "uniform"
    """The same in all blocks, as DINOv2, or growing from 0 in the first."""
    layer_scale: float | None = Field(None, gt=0)
    """Initial LayerScale; by default the model's own, which may be none."""
    pretrained: bool = False
    """Start from timm's weights for `name` on the hub."""
    position_mode: Literal["bicubic", "bilinear"] = "bicubic"
    """How position embeddings are resampled for crops of another size."""
    position_antialias: bool = True
    position_offset: float = Field(0.0, ge=0, lt=1)
    """DINOv2's own code resamples with 0.1 and without antialias."""
    crop_mode: Literal["center", "squash"] = "center"
    """How a whole image becomes the model's square once it is trained, as timm's configs say it: the
    square at its centre, or all of it, squeezed. Written to `model/config.json`; training crops."""
    attention: Literal["auto", "fused", "explicit"] = "auto"
    """torch's scaled_dot_product_attention or matrix products; `auto` is the faster one."""


class HeadSettings(BaseModel):
    """One head."""

    model_config = ConfigDict(extra="forbid")

    prototypes: int = Field(65_536, ge=2)
    hidden: int = Field(2048, ge=1)
    bottleneck: int = Field(256, ge=1)
    layers: int = Field(3, ge=1)
    """Linear layers before the prototypes."""
    train_gain: bool = False
    """Whether the length of each prototype is trained, as in the released DINOv2 code: a gain, 1 at
    first, frozen as long as the prototypes are. Without it all keep the length 1, and logits are
    cosines, as by default in DINO's code."""


class ProjectorSettings(BaseModel):
    """The MLP before InfoNCE."""

    model_config = ConfigDict(extra="forbid")

    hidden: int = Field(2048, ge=1)
    width: int = Field(256, ge=1)
    """Of what InfoNCE compares."""
    layers: int = Field(3, ge=1)
    """Linear layers, the last one included."""


class HeadsSettings(BaseModel):
    """The heads of a recipe."""

    model_config = ConfigDict(extra="forbid")

    dino: HeadSettings = HeadSettings()
    ibot: HeadSettings | None = None
    """Of the iBOT objective; by default as `dino`."""
    shared: bool = False
    """One head, `dino`, for CLS and patch tokens, as in iBOT and in DINOv2's short recipe."""

    @model_validator(mode="after")
    def _one_or_two(self) -> HeadsSettings:
        if self.shared and self.ibot is not None:
            raise ValueError("a shared head has the settings of 'dino': remove 'ibot' or 'shared'")
        return self
