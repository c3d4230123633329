"""Resampling of a table of learned position embeddings to another grid of patches."""

from __future__ import annotations

import torch
from jaxtyping import Float
from timm.layers import resample_abs_pos_embed
from torch import Tensor
from torch.nn.functional import interpolate


def resample_positions(
    table: Float[Tensor, "1 old d"],
    grid: tuple[int, int],
    old_grid: tuple[int, int],
    *,
    prefix: int,
    mode: str = "bicubic",
    antialias: bool = True,
    offset: float = 0.0,
) -> Float[Tensor, "1 new d"]:
    """Return the float32 table for `grid`; its first `prefix` rows (CLS, registers) stay.

    With `offset` 0 it is timm's `resample_abs_pos_embed`. DINOv2's own code stretches by
    (new + 0.1) / old instead of new / old, bicubic without antialias: `offset=0.1`.
    """
    table = table.float()
    if grid == old_grid:
        return table
    if offset == 0:
        return resample_abs_pos_embed(
            table, list(grid), list(old_grid), prefix, interpolation=mode, antialias=antialias
        )
    scale = [(new + offset) / old for new, old in zip(grid, old_grid, strict=True)]
    rows = table[:, prefix:].unflatten(1, old_grid).permute(0, 3, 1, 2)
    rows = interpolate(rows, scale_factor=scale, mode=mode, antialias=antialias)
    return torch.cat([table[:, :prefix], rows.flatten(2).transpose(1, 2)], dim=1)
