"""Widens a Vision Transformer: the same function on its axes, and new ones that no block touches.

What a block reads and writes goes through weights, and those of new axes are zero. Only LayerNorms
see all axes at once. Their mean stays zero if what is written to tokens has a mean of zero; to take
that off changes nothing, since a LayerNorm does it anyway. Their variance changes by a known factor,
as long as the new axes hold next to nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from shared.errors import LvdError

_NAME = re.compile(r"vit\.(?:(blocks\.\d+)\.)?(.+)")


def widened(state: Mapping[str, Tensor], width: int, heads: int) -> dict[str, Tensor]:
    """Return the `state` of a `Backbone` with tokens of `width`, a multiple of its `heads`.

    The first axes of a token are those of the narrower one, less their mean; the others are zero.
    LayerScale is multiplied into the weights. Raises LvdError, naming a parameter, for what is not
    made of LayerNorms, plain attention and plain MLPs.
    """
    return {name: _Wider(state, name, width, heads).value() for name in state}


def mlp_ratio(first: Float[Tensor, "hidden d"]) -> float:
    """Return the `mlp_ratio` by which timm makes an MLP of that shape: it cuts the product off."""
    hidden, width = first.shape
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


class _Wider:
    """One parameter of `state`, and what it becomes."""

    def __init__(self, state: Mapping[str, Tensor], name: str, width: int, heads: int) -> None:
        self.name, self.old = name, state[name].float()
        self.width, self.heads = width, heads
        self.narrow = state["vit.cls_token"].shape[-1]
        found = _NAME.fullmatch(name)
        self.block, self.part = found.groups() if found else (None, name)
        branch = "ls1" if self.part.startswith("attn") else "ls2"
        self.scale = state.get(f"vit.{self.block}.{branch}.gamma")

    def value(self) -> Tensor:
        old, width, heads = self.old, self.width, self.heads
        match self.part.split("."):
            case ["cls_token" | "reg_token" | "pos_embed" | "mask_token"]:
                return _cornered(old - old.mean(-1, keepdim=True), *old.shape[:-1], width)
            case ["patch_embed", "proj", _]:
                return _cornered(old - old.mean(0), width, *old.shape[1:])
            case ["norm" | "norm1" | "norm2", "weight"]:
                return _cornered(old * (self.narrow / width) ** 0.5, width)
            case ["norm" | "norm1" | "norm2", "bias"]:
                return _cornered(old, width)
            case ["attn", "qkv", _]:
                split = old.view(3, heads, -1, *old.shape[1:]).clone()
                split[0] *= (width / self.narrow) ** 0.5  # queries are divided by a head's root
                rest = [width] * (old.ndim - 1)
                return _cornered(split, 3, heads, width // heads, *rest).flatten(0, 2)
            case ["attn", "proj", "weight"]:
                split = self._written().view(self.narrow, heads, -1)
                return _cornered(split, width, heads, width // heads).flatten(1)
            case ["mlp", "fc2", "weight"]:
                return _cornered(self._written(), width, self._hidden(old.shape[1]))
            case ["attn", "proj", "bias"] | ["mlp", "fc2", "bias"]:
                return _cornered(self._written(), width)
            case ["mlp", "fc1", "weight"]:
                return _cornered(old, self._hidden(len(old)), width)
            case ["mlp", "fc1", "bias"]:
                return _cornered(old, self._hidden(len(old)))
            case ["ls1" | "ls2", "gamma"]:
                return old.new_ones(width)
        raise LvdError(f"a network with {self.name} cannot be widened")

    def _written(self) -> Tensor:
        """Return what adds to tokens, LayerScale multiplied in, with a mean of zero."""
        shape = [-1] + [1] * (self.old.ndim - 1)
        value = self.old if self.scale is None else self.old * self.scale.float().view(shape)
        return value - value.mean(0)

    def _hidden(self, old: int) -> int:
        return round(old / self.narrow * self.width)


def _cornered(value: Tensor, *shape: int) -> Tensor:
    """Return zeros with `value` in the corner where all indices begin."""
    large = value.new_zeros(shape)
    large[tuple(slice(length) for length in value.shape)] = value
    return large
