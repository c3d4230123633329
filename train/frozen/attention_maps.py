"""Attention maps: which patches the CLS token of the last block looks at, head by head.

A block that only pools is passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from open_clip.transformer import VisionTransformer as ClipTransformer
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from shared.errors import LvdError
from train.frozen.model import FrozenModel
from train.frozen.towers import TOKEN_MODELS, trunk_of

_ROUNDING = 1e-6
"""A mass that float32 shares miss by no more than this is reached."""


class MissingTokensError(LvdError):
    """A model has not the tokens that are asked for."""


def cls_attention(
    model: FrozenModel, pixels: UInt8[Tensor, "n 3 h w"]
) -> Float[Tensor, "n heads rows cols"]:
    """Return how the CLS token of the last block attends to the patches, in float32.

    CLS and registers are left out and the patches' weights divided by their sum, so that each map
    sums to 1: which is the softmax over the patches alone, and is computed as that. Memory grows
    with the number of tokens and not with its square. Raises MissingTokensError for a model
    without CLS token, and for one whose last block has no softmax attention.
    """
    attention, prefix = _last_attention(model)
    patch = model.needs.patch
    if patch is None:
        raise _no_maps(model)
    rows, cols = (side // patch for side in pixels.shape[2:])
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    hook = attention.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    try:
        model.tokens(pixels)
    finally:
        hook.remove()
    (tokens, *_), options = calls[-1]
    with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
        weights = _patch_weights(attention, tokens.float(), options, prefix)
    if weights is None or weights.shape[2] != rows * cols:
        raise _no_maps(model)
    return weights.unflatten(2, (rows, cols))


def most_attended(
    maps: Float[Tensor, "n heads rows cols"], mass: float
) -> Bool[Tensor, "n heads rows cols"]:
    """Return the fewest patches that hold `mass` of each map, the most attended ones.

    DINO (arXiv 2104.14294, section 4.2.2) shows them at a mass of 0.6. Of patches that are attended
    alike the first are taken.
    """
    shares, order = maps.flatten(2).double().sort(dim=2, descending=True, stable=True)
    shares = shares / shares.sum(dim=2, keepdim=True)
    before = shares.cumsum(dim=2) - shares
    kept = torch.zeros_like(order, dtype=torch.bool).scatter(2, order, before < mass - _ROUNDING)
    return kept.view_as(maps)


class _FirstQuery(TorchFunctionMode):
    """Notes the softmax weights of the first query of scaled_dot_product_attention.

    They are those of the keys behind the first `prefix`, as if there were no others.
    """

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self._prefix = prefix
        self.weights: list[Float[Tensor, "n heads patches"]] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is scaled_dot_product_attention:
            query, key, _ = args
            logits = query[:, :, :1] @ key.mT * query.shape[3] ** -0.5
            if (bias := kwargs.get("attn_mask")) is not None:
                logits = logits + bias[..., :1, :]
            self.weights.append(logits[:, :, 0, self._prefix :].softmax(dim=2))
        return function(*args, **kwargs)


def _patch_weights(
    attention: nn.Module, tokens: Float[Tensor, "n t d"], options: dict[str, Any], prefix: int
) -> Float[Tensor, "n heads patches"] | None:
    """Return the softmax weights of the first token's query; None where there are not any."""
    if isinstance(attention, nn.MultiheadAttention):
        cls, patches = tokens[:, :1], tokens[:, prefix:]
        return attention(cls, patches, patches, average_attn_weights=False)[1][:, :, 0]
    with _FirstQuery(prefix) as noted, _fused(attention):
        attention(tokens, **options)
    return noted.weights[0] if len(noted.weights) == 1 else None


@contextmanager
def _fused(attention: nn.Module) -> Iterator[None]:
    """Let timm's attention call scaled_dot_product_attention; open_clip's own always does."""
    before = getattr(attention, "fused_attn", None)
    if before is None:
        yield
        return
    setattr(attention, "fused_attn", True)  # noqa: B010 - final, for TorchScript
    try:
        yield
    finally:
        setattr(attention, "fused_attn", before)  # noqa: B010


def _last_attention(model: FrozenModel) -> tuple[nn.Module, int]:
    """Return the attention of the last block, and how many tokens stand before the patches.

    The last that asks of each image what it holds; of all, where none does.
    """
    network = trunk_of(model.module)
    if isinstance(network, ClipTransformer):
        return network.transformer.resblocks[-1].attn, 1
    if isinstance(network, TOKEN_MODELS) and network.cls_token is not None:
        looking = [block for block in network.blocks if not _pools(block)] or network.blocks
        # timm's parallel blocks have none, or several
        attention = getattr(looking[-1], "attn", None) if looking else None
        if isinstance(attention, nn.Module):
            return attention, network.num_prefix_tokens
    raise _no_maps(model)


def _pools(block: nn.Module) -> bool:
    """Tell a block that asks the same of every image, as that of `lvd-train export --embedder`."""
    qkv = getattr(getattr(block, "attn", None), "qkv", None)
    return qkv is not None and not bool(qkv.weight[: qkv.in_features].any())


def _no_maps(model: FrozenModel) -> MissingTokensError:
    return MissingTokensError(
        f"model {model.name} has no attention maps: they need a Vision Transformer whose CLS token "
        "looks at patches by softmax attention, as those of DINO, MAE and CLIP"
    )
