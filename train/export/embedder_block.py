"""Makes an embedder of a backbone: one more block gives its CLS token what copies are found by.

The CLS token knows what a picture shows, the mean patch what it is made of: linear probes of
DINOv2 (arXiv 2304.07193) read both, side by side. In their cosines, directions along which views
of one picture differ count as much as those that tell pictures apart. Within-class covariance
normalisation (Hatch and others, Interspeech 2006) scales them down; views of one picture are the
class here, so nobody has to name one. The block holds all that in the shapes of a plain one:

    attention   with queries of zero: adds the mean token to each, on axes that the CLS token leaves
    MLP         gelu(z) - gelu(-z) = z: a matrix, so large that what passes beside it does not count
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from shared.errors import LvdError
from train.data.crops import CropSettings, Views, stack_views
from train.export.centring import frozen, pictures
from train.model.backbone import ModelSettings

BLOCK = re.compile(r"vit\.blocks\.(\d+)\.(.*)")
DRAWS = 4
"""How often each picture is edited; each draw gives two views."""
EDITS = {
    "global_area": (0.75, 1.0),
    "aspect": (0.85, 1.18),
    "flip": 0.0,
    "jitter": (0.4, 0.3, 0.2, 0.02),
    "grey": 0.2,
    "blur": (0.3, 0.3, 0.0),
    "blur_sigma": (0.1, 1.0),
    "solarise": 0.0,
    "local_views": 0,
}
"""What copies in a crawl differ by: crops, light, colour, sharpness."""
SHRINKAGE = 0.03
"""How much of the covariance of all pictures is added to that of views of one."""
_STRENGTH = 100.0
"""How many times as long as the token beside it the matrix's result is."""


class _Tokens(NamedTuple):
    """CLS tokens before the final norm, and the mean of all tokens after a norm of their own."""

    cls: Float[Tensor, "n d"]
    mean: Float[Tensor, "n d"]


def as_embedder(
    state: Mapping[str, Tensor], settings: ModelSettings, folder: Path, images: str
) -> tuple[dict[str, Tensor], ModelSettings]:
    """Return `state` and `settings` of a `Backbone` with one block more; `folder` is its model folder.

    Over the `images` (what `--shards` may be; at most 5,000) the vectors have a mean of about zero. Raises
    LvdError where there are too few, or where the block's MLP cannot hold a matrix.
    """
    depth = 1 + max(int(found[1]) for name in state if (found := BLOCK.match(name)))
    last = {
        found[2]: value
        for name, value in state.items()
        if (found := BLOCK.match(name)) and int(found[1]) == depth - 1
    }
    width = state["vit.cls_token"].shape[-1]
    if not _holds_a_matrix(last, width) or "vit.norm.bias" not in state:
        raise LvdError(
            "--embedder needs LayerNorm and plain MLPs with biases, not gated and at least "
            f"{2 * width} wide, and this model has others: leave it away"
        )
    whole, views, eps = _seen(folder, images)
    if len(whole.cls) < 2 * width:
        raise LvdError(
            f"--embedder: {len(whole.cls)} images say too little of {width} dimensions: name at "
            f"least {2 * width}"
        )
    turn = _side_by_side(whole)
    joined, edited = (
        layer_norm(t.cls + t.mean @ turn.T, (width,), eps=eps) for t in (whole, views)
    )
    matrix = _telling_apart(joined, edited)
    length = (whole.cls + whole.mean @ turn.T).square().mean().sqrt()
    matrix = matrix * (
        _STRENGTH * length / ((joined - joined.mean(0)) @ matrix.T).square().mean().sqrt()
    )
    block = _block(last, turn, matrix, joined.mean(0))
    options = {**settings.options, "depth": depth + 1}
    return {
        **state,
        **{f"vit.blocks.{depth}.{name}": value.float() for name, value in block.items()},
        # The last norm only makes all vectors as long as one another.
        "vit.norm.weight": torch.ones(width),
        "vit.norm.bias": torch.zeros(width),
    }, settings.model_copy(update={"options": options})


def _holds_a_matrix(block: Mapping[str, Tensor], width: int) -> bool:
    """Tell a block with a plain MLP, whose hidden units take a vector and its negative."""
    first, second = block.get("mlp.fc1.weight"), block.get("mlp.fc2.weight")
    if first is None or second is None or "mlp.fc2.bias" not in block:
        return False
    if first.shape[0] != second.shape[1]:
        return False
    return first.shape[0] >= 2 * width


def _side_by_side(tokens: _Tokens) -> Float[Tensor, "d d"]:
    """Return what turns the mean token's first axes onto those along which CLS varies least.

    Half of the axes each, scaled so that both vary as much.
    """
    half = tokens.cls.shape[1] // 2
    cls, mean = (values - values.mean(0) for values in tokens)
    axes = [torch.linalg.svd(values, full_matrices=False)[2] for values in (cls, mean)]
    scale = cls.square().sum().sqrt() / mean.square().sum().sqrt()
    return scale * axes[0][-half:].T @ axes[1][:half]


def _telling_apart(
    whole: Float[Tensor, "n d"], edited: Float[Tensor, "nk d"]
) -> Float[Tensor, "d d"]:
    """Return the inverse root of the covariance of edits, plus a little of that of all pictures.

    It is turned so that the direction which a norm takes away, that of equal entries, is the one
    along which the vectors vary least.
    """
    centred = whole - whole.mean(0)
    differences = edited - whole.repeat_interleave(len(edited) // len(whole), 0)
    within, total = (values.T @ values / len(values) for values in (differences, centred))
    size = total.diagonal().mean()
    within = within + SHRINKAGE * total + 1e-4 * size * torch.eye(len(total), dtype=total.dtype)
    values, vectors = torch.linalg.eigh(within)
    matrix = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    spread = torch.linalg.svd(centred @ matrix.T, full_matrices=False)[2]
    identity = torch.eye(len(total), dtype=total.dtype)
    identity[:, 0] = 1
    basis, _ = torch.linalg.qr(identity)
    return basis @ spread.flip(0) @ matrix  # the least axis comes first, as the ones do


def _block(
    like: Mapping[str, Tensor],
    turn: Float[Tensor, "d d"],
    matrix: Float[Tensor, "d d"],
    mean: Float[Tensor, " d"],
) -> dict[str, Tensor]:
    """Return the parameters of the block, named and shaped `like` those of another one."""
    width = len(turn)
    eye = torch.eye(width, dtype=turn.dtype)
    scales = re.compile(r"(norm\d|attn\.\w*norm|mlp\.norm)\.weight|ls\d\.gamma")
    block = {
        name: torch.ones_like(value) if scales.fullmatch(name) else torch.zeros_like(value)
        for name, value in like.items()
    }
    block["attn.qkv.weight"][2 * width :] = eye
    block["attn.proj.weight"] = turn
    block["mlp.fc1.weight"][: 2 * width] = torch.cat([eye, -eye])
    block["mlp.fc2.weight"][:, : 2 * width] = torch.cat([matrix, -matrix], 1)
    block["mlp.fc2.bias"] = -matrix @ mean
    return {name: value.contiguous() for name, value in block.items()}


def _seen(folder: Path, images: str) -> tuple[_Tokens, _Tokens, float]:
    """Return what the model makes of whole images and of their edited views, and its norm's eps."""
    model, transform, device = frozen(folder)
    edit = Views(CropSettings(global_size=transform.size[0], **EDITS), seed=0)
    found: list[_Tokens] = []

    def note(norm: nn.LayerNorm, given: tuple[Tensor, ...]) -> None:
        tokens = given[0].double().cpu()
        normed = layer_norm(tokens, tokens.shape[-1:], eps=norm.eps)
        found.append(_Tokens(tokens[:, 0], normed.mean(1)))

    hook = model.norm.register_forward_pre_hook(note)
    whole: list[_Tokens] = []
    views: list[_Tokens] = []
    with torch.inference_mode():
        for number, picture in enumerate(pictures(images, transform)):
            pixels = torch.from_numpy(transform.prepare(picture).copy()).permute(2, 0, 1)
            edited, *_ = stack_views([edit(picture, number, draw) for draw in range(DRAWS)])
            model(transform.normalised(torch.cat([pixels[None], edited]).to(device)))
            seen = found.pop()
            whole.append(_Tokens(*(values[:1] for values in seen)))
            views.append(_Tokens(*(values[1:] for values in seen)))
    hook.remove()
    if not whole:
        raise LvdError(f"--embedder {images}: none of the images can be decoded: name others")
    joined = (_Tokens(*map(torch.cat, zip(*tokens, strict=True))) for tokens in (whole, views))
    return *joined, model.norm.eps
