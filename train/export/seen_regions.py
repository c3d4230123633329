"""What a backbone makes of pictures and of edited views of them: CLS tokens, and means of regions.

Patches know what is where; a mean of all of them forgets it. Means over a few regions keep some, as a
spatial pyramid does (Lazebnik, Schmid and Ponce, CVPR 2006). The regions are the same for a picture
and its mirror image, as a network is that was trained on flipped views.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import layer_norm, pad

from shared.errors import LvdError
from shared.evaluation_transform import square
from train.data.crops import Views, stack_views
from train.data.settings import CropSettings
from train.export.centring import frozen, pictures

REGIONS = 4
DRAWS = 4
"""How often each picture is edited; each draw gives two views, and the last has a caption on it."""
EDITS = {
    "global_area": (0.8, 1.0),
    "aspect": (0.9, 1.12),
    "flip": 0.0,
    "jitter": (0.4, 0.3, 0.2, 0.02),
    "jitter_probability": 0.4,
    "grey": 0.5,
    "blur": (0.3, 0.3, 0.0),
    "blur_sigma": (0.1, 1.0),
    "solarise": 0.0,
    "local_views": 0,
}
"""What copies in a crawl differ by: crops, light, colour, sharpness. In units of what is seen."""
_SHARPER = 2
"""How many times as large as the network's input the pictures are that are edited."""


class Tokens(NamedTuple):
    """CLS tokens, and means of the patches of each region: after a LayerNorm, without its affine."""

    cls: Float[Tensor, "n d"]
    regions: Float[Tensor, "n r d"]


class Seen(NamedTuple):
    """Tokens of whole pictures and of `2 * DRAWS` views of each, and how they were read."""

    whole: Tokens
    views: Tokens
    logits: Float[Tensor, "r patches"]
    """What a patch's place says for a region."""
    deviation: float
    """The standard deviation of a patch's token, typically: that of the first picture's."""
    heads: int
    eps: float


def seen(folder: Path, images: str, crop_mode: str) -> Seen:
    """Return what the model of `folder` makes of `images`, whatever `--shards` may be.

    `crop_mode` is the model's. A region's mean is what softmax attention gives with a key that
    stands beside a patch's token and goes through its LayerNorm: its logit is divided by the token's
    standard deviation, times the typical one. CLS and registers take part, with logits of zero.
    Raises LvdError where nothing can be decoded.
    """
    model, transform, device = frozen(folder)
    prefix, eps = model.num_prefix_tokens, model.norm.eps
    logits = region_logits(*model.patch_embed.grid_size)
    placed = pad(logits, (prefix, 0)).to(device)
    found: list[Float[Tensor, "n t d"]] = []
    hook = model.norm.register_forward_pre_hook(lambda _, given: found.append(given[0].double()))

    def tokens(pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n t d"]:
        model(pixels)
        return found.pop()

    whole: list[Tokens] = []
    views: list[Tokens] = []
    typical: Tensor | None = None
    with torch.inference_mode():
        size = transform.size[0]
        larger = square(size * _SHARPER, crop_mode)
        edit = Views(CropSettings(global_size=size, **EDITS), seed=0)
        for number, picture in enumerate(pictures(images, transform)):
            pixels = torch.from_numpy(transform.prepare(picture).copy()).permute(2, 0, 1)
            picture = Image.fromarray(larger.prepare(picture))
            draws = [picture] * (DRAWS - 1) + [_captioned(picture, number)]
            edited, *_ = stack_views([edit(p, number, draw) for draw, p in enumerate(draws)])
            made = tokens(transform.normalised(torch.cat([pixels[None], edited]).to(device)))
            deviations = made.std(-1, correction=0)
            typical = deviations[:, prefix:].mean() if typical is None else typical
            weights = (placed * typical / deviations[:, None]).softmax(-1)
            normed = layer_norm(made, made.shape[-1:], eps=eps)
            read = Tokens(made[:, 0].cpu(), (weights @ normed).cpu())
            whole.append(Tokens(*(values[:1] for values in read)))
            views.append(Tokens(*(values[1:] for values in read)))
    hook.remove()
    if typical is None:
        raise LvdError(f"--embedder {images}: none of the images can be decoded: name others")
    joined = (Tokens(*map(torch.cat, zip(*parts, strict=True))) for parts in (whole, views))
    heads = model.blocks[0].attn.num_heads
    return Seen(*joined, logits, float(typical), heads, eps)


def _captioned(picture: Image.Image, number: int) -> Image.Image:
    """Return the picture, squeezed for a strip above or below it, as under memes and stock photos."""
    rng = np.random.default_rng(number)
    width, height = picture.size
    strip = round(height * rng.uniform(0.08, 0.16))
    canvas = Image.new("RGB", (width, height), ["white", "black"][rng.integers(2)])
    top = strip * int(rng.integers(2))
    canvas.paste(picture.resize((width, height - strip), Image.Resampling.BICUBIC), (0, top))
    return canvas


def region_logits(rows: int, columns: int) -> Float[Tensor, "4 patches"]:
    """Return soft regions of a grid, row by row: its centre, its top, its bottom, its left and right.

    Each has a mean of zero over the patches.
    """
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, rows, dtype=torch.float64),
        torch.linspace(-1, 1, columns, dtype=torch.float64),
        indexing="ij",
    )
    regions = (-4 * (x**2 + y**2), -3 * y, 3 * y, 4 * (x**2 - y**2))
    logits = torch.stack([region.flatten() for region in regions])
    return logits - logits.mean(1, keepdim=True)
