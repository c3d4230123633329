"""Makes an embedder of a backbone: one more block gives its CLS token what copies are found by.

The CLS token knows what a picture shows, the patches what it is made of: linear probes of DINOv2
(arXiv 2304.07193) read both, side by side. In their cosines, directions along which views of one
picture differ count as much as those that tell pictures apart. Within-class covariance normalisation
(Hatch and others, Interspeech 2006) scales them down; views of one picture are the class here, so
nobody has to name one. The block holds all that in the shapes of a plain one, and the network gets a
little wider for it:

    new axes    say where a patch is, so softly that no LayerNorm notices
    attention   a head looks at one region; what it reads goes to axes that the CLS token leaves
    MLP         gelu(z) - gelu(-z) = z: a matrix, so large that what passes beside it does not count
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import layer_norm, pad

from shared.errors import LvdError
from train.export.seen_regions import REGIONS, Seen, seen
from train.export.widening import mlp_ratio, widened
from train.model.settings import ModelSettings

AXES_PER_HEAD = 8
"""How much wider each head becomes."""
SHRINKAGE = 0.03
"""How much of the covariance of all pictures is added to that of views of one."""
FLOOR = 3e-3
"""How much of an axis's variance is taken for noise, in units of that of all axes: bfloat16 makes some."""
_BLOCK = re.compile(r"vit\.blocks\.(\d+)\.(.*)")
_STRENGTH = 100.0
"""How many times as long as the token beside it the matrix's result is."""
_SOFT = 0.01
"""What a logit of 1 counts on a token, in units of its deviation: bfloat16 knows 0.0005 of it."""


def as_embedder(
    state: Mapping[str, Tensor], settings: ModelSettings, folder: Path, images: str
) -> tuple[dict[str, Tensor], ModelSettings]:
    """Return `state` and `settings` of a `Backbone` with a block more; `folder` is its model folder.

    It is `AXES_PER_HEAD` wider per head; with fewer than four heads, only the first regions are
    read. Over the `images` (what `--shards` may be; at most 5,000)
    the vectors have a mean of about zero. Raises LvdError where there are too few, or where the
    network is not made of what the block is made of.
    """
    depth = 1 + max(int(found[1]) for name in state if (found := _BLOCK.match(name)))
    if settings.options.get("act_layer", "gelu") != "gelu" or not _is_plain(state, depth - 1):
        raise LvdError(
            "--embedder needs LayerNorms, position embeddings, plain attention and plain MLPs with "
            "biases and GELU, at least twice as wide as the tokens, and this model has others: "
            "leave it away"
        )
    try:
        widened(state, state["vit.cls_token"].shape[-1], 1)
    except LvdError as error:
        raise LvdError(f"--embedder: {error}: leave it away") from None
    pictures = seen(folder, images, settings.crop_mode)
    narrow, heads = state["vit.cls_token"].shape[-1], pictures.heads
    width = narrow + AXES_PER_HEAD * heads
    if len(pictures.whole.cls) < 2 * width:
        raise LvdError(
            f"--embedder: {len(pictures.whole.cls)} images say too little of {width} dimensions: "
            f"name at least {2 * width}"
        )
    wide = widened(state, width, heads)
    soft = _SOFT * pictures.deviation
    _mark_places(wide, narrow, soft, pictures.logits.float())
    whole, views = (
        pad(t.cls - t.cls.mean(1, keepdim=True), (0, width - narrow))
        for t in (pictures.whole, pictures.views)
    )
    values = _values(pictures, width // heads)
    read, read_of_views = (_read(t.regions, values) for t in (pictures.whole, pictures.views))
    turn = _side_by_side(whole, read, read_of_views)
    before = whole + read @ turn.T
    joined = layer_norm(before, (width,), eps=pictures.eps)
    edited = layer_norm(views + read_of_views @ turn.T, (width,), eps=pictures.eps)
    matrix = _outermost_last(_telling_apart(joined, edited))
    made = (joined - joined.mean(0)) @ matrix.T
    matrix = matrix * (_STRENGTH * before.square().mean().sqrt() / made.square().mean().sqrt())
    block = _block(wide, depth - 1, values, turn, matrix, -matrix @ joined.mean(0))
    share = (narrow / width) ** 0.5  # a token's deviation is smaller over more axes
    block["norm1.weight"][:narrow] = share
    block["norm1.weight"][narrow:] = share / _SOFT
    options = {
        **settings.options,
        "embed_dim": width,
        "depth": depth + 1,
        "mlp_ratio": mlp_ratio(block["mlp.fc1.weight"]),
    }
    return {
        **wide,
        **{f"vit.blocks.{depth}.{name}": value.float() for name, value in block.items()},
        # The last norm only makes all vectors as long as one another.
        "vit.norm.weight": torch.ones(width),
        "vit.norm.bias": torch.zeros(width),
    }, settings.model_copy(update={"options": options})


def _is_plain(state: Mapping[str, Tensor], last: int) -> bool:
    """Tell a network that can be widened, with an MLP that takes a vector and its negative."""
    names = ("norm1.bias", "attn.qkv.bias", "mlp.fc1.weight", "mlp.fc2.weight", "mlp.fc2.bias")
    block = [state.get(f"vit.blocks.{last}.{name}") for name in names]
    if any(
        value is None for value in (*block, state.get("vit.norm.bias"), state.get("vit.pos_embed"))
    ):
        return False
    first, second = block[2], block[3]
    return first.shape[0] == second.shape[1] >= 2 * first.shape[1]


def _telling_apart(
    whole: Float[Tensor, "n d"], views: Float[Tensor, "nk d"]
) -> Float[Tensor, "d d"]:
    """Return the inverse root of the covariance of views, plus a little of that of all pictures.

    It is turned so that its rows are the axes along which the pictures vary then, the most first.
    """
    centred = whole - whole.mean(0)
    differences = views - whole.repeat_interleave(len(views) // len(whole), 0)
    within, total = (values.T @ values / len(values) for values in (differences, centred))
    size = total.diagonal().mean()
    within = within + SHRINKAGE * total + FLOOR * size * torch.eye(len(total), dtype=total.dtype)
    values, vectors = torch.linalg.eigh(within)
    matrix = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    return torch.linalg.svd(centred @ matrix.T, full_matrices=False)[2] @ matrix


def _values(pictures: Seen, width: int) -> Float[Tensor, "h e d"]:
    """Return what each head reads of its region, `width` axes: those that tell pictures apart best.

    Heads take the regions in turn, and go on with the next axes once all have been taken.
    """
    axes = [
        _telling_apart(pictures.whole.regions[:, region], pictures.views.regions[:, region])
        for region in range(REGIONS)
    ]
    values = torch.zeros(pictures.heads, width, axes[0].shape[1], dtype=torch.float64)
    for head in range(pictures.heads):
        taken = axes[head % REGIONS][head // REGIONS * width :][:width]
        values[head, : len(taken)] = taken
    return values


def _read(regions: Float[Tensor, "n r d"], values: Float[Tensor, "h e d"]) -> Float[Tensor, "n he"]:
    """Return the heads' outputs, side by side."""
    heads = [regions[:, head % REGIONS] @ axes.T for head, axes in enumerate(values)]
    return torch.cat(heads, 1)


def _side_by_side(
    cls: Float[Tensor, "n d"], read: Float[Tensor, "n e"], of_views: Float[Tensor, "nk e"]
) -> Float[Tensor, "d e"]:
    """Return what turns what tells pictures apart best onto axes along which CLS varies least.

    Half of the axes each, scaled so that both vary as much.
    """
    half = cls.shape[1] // 2
    axes = torch.linalg.svd(cls - cls.mean(0), full_matrices=False)[2][-half:]
    taken = _telling_apart(read, of_views)[:half]
    size, other = (v.var(0, correction=0).sum().sqrt() for v in (cls, read @ taken.T))
    return size / other * axes.T @ taken


def _outermost_last(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """Turn `matrix` so that its last row is in the direction that a norm takes away: equal entries."""
    identity = torch.eye(len(matrix), dtype=matrix.dtype)
    identity[:, 0] = 1
    basis, _ = torch.linalg.qr(identity)
    return basis @ matrix.flip(0)


def _mark_places(
    state: dict[str, Tensor], narrow: int, soft: float, logits: Float[Tensor, "r patches"]
) -> None:
    """Write where each patch is on the first new axes, `soft` times its logits, the sum zero."""
    new = state["vit.pos_embed"][0, -logits.shape[1] :, narrow:]
    new[:, :REGIONS] = soft * logits.T
    new[:, REGIONS:] = -soft * logits.sum(0)[:, None] / (new.shape[1] - REGIONS)


def _block(
    state: Mapping[str, Tensor],
    like: int,
    values: Float[Tensor, "h e d"],
    turn: Float[Tensor, "d d"],
    matrix: Float[Tensor, "d d"],
    shift: Float[Tensor, " d"],
) -> dict[str, Tensor]:
    """Return the parameters of the block, named and shaped as those of the block `like`."""
    heads, each, narrow = values.shape
    width = heads * each
    scales = re.compile(r"norm\d\.weight|ls\d\.gamma")
    block = {
        found[2]: (torch.ones_like if scales.fullmatch(found[2]) else torch.zeros_like)(value)
        for name, value in state.items()
        if (found := _BLOCK.match(name)) and int(found[1]) == like
    }
    queries = block["attn.qkv.bias"].view(3, heads, each)[0]
    _, keys, read = block["attn.qkv.weight"].view(3, heads, each, width)
    queries[:, 0] = each**0.5
    for head in range(heads):
        keys[head, 0, narrow + head % REGIONS] = 1
    read[..., :narrow] = values
    block["attn.proj.weight"][:] = turn
    eye = torch.eye(width)
    block["mlp.fc1.weight"][: 2 * width] = torch.cat([eye, -eye])
    block["mlp.fc2.weight"][:, : 2 * width] = torch.cat([matrix, -matrix], 1)
    block["mlp.fc2.bias"][:] = shift
    return block
