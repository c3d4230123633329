"""timm's transformer block for views of several sizes: all in one call, and only what is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

Shapes = tuple[tuple[int, int], ...]
"""Samples and tokens of a sample of each size of view, in the order in which their tokens lie."""


class Kept(NamedTuple):
    """The samples of one size of view that keep a branch."""

    tokens: Int[Tensor, " k"]
    """Places of all their tokens."""
    samples: int
    scale: float
    """All samples over those that are kept: the expectation of the branch stays what it is."""


class SparseBlock(Block):
    """A `Block` of timm with the same parameters and, in eval mode, the same outputs.

    Views of several sizes go through it in one call: norms, linear layers and the feed-forward
    network see the tokens of all of them, attention those of each size. So a sharded block is
    gathered once for all views.

    Its stochastic depth draws, for each of the two residual branches, the samples that keep it, and
    computes the branch for those alone (DINOv2, arXiv 2304.07193, section 5): a drop rate of 0.3
    saves close to 0.3 of the block's work, where timm's DropPath computes all and multiplies by 0.
    """

    drop_path: float = 0.0
    """Share of the samples of each size that skip a branch, rounded to a whole number of samples."""

    def forward(  # type: ignore[override]  # called by `Backbone` alone, not by timm
        self,
        x: Float[Tensor, "n t d"] | Float[Tensor, "all d"],
        shapes: Shapes | None = None,
        read: Int[Tensor, " m"] | None = None,
    ) -> Float[Tensor, "n t d"] | Float[Tensor, "all d"] | Float[Tensor, "m d"]:
        """Return all tokens, or those at `read`, places in the flattened tokens.

        `x` is of one size, or the flattened tokens of all sizes of `shapes`, one size behind the
        other. Tokens that nobody reads, which the last block has many of, are spared the MLP.
        """
        if shapes is None:
            flat = self(x.flatten(0, 1), (tuple(x.shape[:2]),), read)
            return flat.view(x.shape) if read is None else flat
        x = _add_branch(x, self._attend, shapes, self._draw(shapes, x))
        kept = self._draw(shapes, x)
        if read is None:
            return _add_branch(x, self._feed_forward, shapes, kept)
        tokens = x.index_select(0, read)
        update = self._feed_forward(tokens, ())
        if kept is not None:
            scales = x.new_zeros(len(x))
            for size in kept:
                scales = scales.index_fill(0, size.tokens, size.scale)
            update = update * scales[read, None]
        return tokens + update

    def _attend(self, x: Tensor, shapes: Shapes) -> Tensor:
        return self.ls1(_attention(self.attn, self.norm1(x), shapes))

    def _feed_forward(self, x: Tensor, _: Shapes) -> Tensor:
        return self.ls2(self.mlp(self.norm2(x)))

    def _draw(self, shapes: Shapes, x: Tensor) -> list[Kept] | None:
        """Return the samples of each size that keep a branch, or None where all do."""
        if not self.training or self.drop_path == 0:
            return None
        drawn, begin = [], 0
        for samples, length in shapes:
            count = max(1, round(samples * (1 - self.drop_path)))
            kept = torch.arange(samples, device=x.device)
            if count < samples:
                kept = torch.randperm(samples, device=x.device)[:count]
            places = kept[:, None] * length + torch.arange(length, device=x.device)
            drawn.append(Kept(begin + places.flatten(), count, samples / count))
            begin += samples * length
        return drawn


def make_sparse(block: nn.Module, drop_path: float) -> None:
    """Make a plain `Block` of timm, where it is, a `SparseBlock` of the same parameters."""
    assert type(block) is Block
    block.__class__ = SparseBlock
    assert isinstance(block, SparseBlock)
    block.drop_path = drop_path


Branch = Callable[[Tensor, Shapes], Tensor]


def _add_branch(x: Tensor, branch: Branch, shapes: Shapes, kept: list[Kept] | None) -> Tensor:
    """Return x plus the branch of the kept samples, scaled so that its expectation is unchanged."""
    if kept is None:
        return x + branch(x, shapes)
    lengths = [length for _, length in shapes]
    chosen = x.index_select(0, torch.cat([size.tokens for size in kept]))
    counts = tuple((size.samples, length) for size, length in zip(kept, lengths, strict=True))
    updates = branch(chosen, counts).to(x.dtype).split([len(size.tokens) for size in kept])
    for size, update in zip(kept, updates, strict=True):
        # Not in place, which compiled checkpointing cannot have: a copy of the tokens for each size.
        x = x.index_add(0, size.tokens, update, alpha=size.scale)
    return x


def _attention(
    attention: nn.Module, x: Float[Tensor, "all d"], shapes: Shapes
) -> Float[Tensor, "all d"]:
    """Return a module's attention within each sample, its linear layers called once for all sizes.

    One size goes through timm's own forward pass, and so do, one after the other, the sizes of
    another kind of attention than timm's `Attention`.
    """
    sizes = x.split([samples * length for samples, length in shapes])
    if len(shapes) == 1 or type(attention) is not Attention:
        outputs = [
            attention(size.view(*shape, -1)).flatten(0, 1)
            for size, shape in zip(sizes, shapes, strict=True)
        ]
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    sizes = attention.qkv(x).split([samples * length for samples, length in shapes])
    mixed = [
        _mix(attention, size.view(*shape, 3, attention.num_heads, -1)).flatten(0, 1)
        for size, shape in zip(sizes, shapes, strict=True)
    ]
    return attention.proj_drop(attention.proj(attention.norm(torch.cat(mixed))))


def _mix(attention: Attention, qkv: Float[Tensor, "n t 3 heads e"]) -> Float[Tensor, "n t d"]:
    """Return the values that each token attends to, as timm's `Attention` between its layers."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attention.q_norm(q), attention.k_norm(k)
    if attention.fused_attn:
        dropout = attention.attn_drop.p if attention.training else 0.0
        values = scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    else:
        weights = (q * attention.scale @ k.transpose(-2, -1)).softmax(dim=-1)
        values = attention.attn_drop(weights) @ v
    return values.transpose(1, 2).flatten(2)
