"""Scores attention maps: how well the CLS token's heads find the object that a mask marks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int32, UInt8
from PIL import Image
from torch import Tensor

from shared.embedders.settings import REDUCED_DECODING_FACTOR
from shared.errors import LvdError
from shared.pictures.images import ImageError, decode
from shared.progress import stage_bar, warn
from train.evaluation import protocol
from train.evaluation.dense.pairs import Pair, find_pairs, read_mask
from train.evaluation.file_features import ahead
from train.evaluation.scores import Score, share_scored
from train.evaluation.settings import AttentionSettings
from train.frozen.attention_maps import cls_attention, most_attended

if TYPE_CHECKING:
    from train.frozen.model import JoinedModel


def attention(model: JoinedModel, data: str, settings: AttentionSettings) -> list[Score]:
    """Return the Jaccard index of heads and objects: of each image's best head, and of all heads.

    DINO's protocol (arXiv 2104.14294, section 4.2.2): of each head's map the most attended patches
    that hold `settings.mass` of it, enlarged to the mask by nearest neighbour, are held against the
    object; means over the images. The whole image is resized to a square of the model's own size,
    so that a mask's pixel lies at the same share of height and width as in the image. The heads of
    joined models stand side by side. Images that are broken or whose mask has no object are counted
    in a warning. Raises LvdError where none is left, where `data` has no pairs, and for a model
    without CLS attention.
    """
    pairs = find_pairs(data, "mask", "--data")
    sizes = [part.needs.size for part in model.parts]
    indices: list[Float[Tensor, " heads"]] = []
    left_out: list[str] = []
    with stage_bar(f"attention of {model.name}", len(pairs)) as bar:
        looks = ahead(partial(_look, sizes=sizes, settings=settings), pairs, settings.workers)
        while batch := list(islice(looks, settings.batch_size)):
            whole = [look for look in batch if isinstance(look, _Look)]
            left_out += [look for look in batch if isinstance(look, str)]
            if whole:
                indices += _indices(model, whole, settings.mass)
            bar.advance(len(batch))
    if not indices:
        raise LvdError(
            f"--data: no image of {data!r} has an object to compare with, for one {left_out[0]}"
        )
    if left_out:
        warn(f"--data: {len(left_out)} pairs are left out, as {left_out[0]}")
    every = torch.stack(indices)
    note = "; ".join(
        filter(None, [share_scored(len(every), len(pairs)), *protocol.attention(sizes)])
    )
    setting = f"{settings.mass:.0%} of the mass"
    return [
        Score(
            "attention", "Jaccard, best head", every.amax(dim=1).mean().item(), setting, note=note
        ),
        Score("attention", "Jaccard, all heads", every.mean().item(), setting),
    ]


def jaccard(
    kept: Bool[Tensor, "heads rows cols"],
    thing: Bool[np.ndarray, "h w"],
    counted: Bool[np.ndarray, "h w"],
) -> Float[Tensor, " heads"]:
    """Return |kept and thing| / |kept or thing|, in the pixels that are `counted`, for each head.

    Patches are enlarged to the pixels by nearest neighbour. `thing` holds at least one counted
    pixel.
    """
    (h, w), (rows, cols) = thing.shape, kept.shape[1:]
    down, right = (2 * np.arange(h) + 1) * rows // (2 * h), (2 * np.arange(w) + 1) * cols // (2 * w)
    patch = down[:, None] * cols + right
    inside, outside = (
        torch.from_numpy(np.bincount(patch[pixels], minlength=rows * cols)).double()
        for pixels in (thing & counted, ~thing & counted)
    )
    share = kept.flatten(1).double()
    return share @ inside / (share @ outside + inside.sum())


class _Look(NamedTuple):
    pixels: list[UInt8[Tensor, "3 size size"]]
    """For each part of the model."""
    thing: Bool[np.ndarray, "h w"]
    counted: Bool[np.ndarray, "h w"]


def _look(pair: Pair, sizes: list[int], settings: AttentionSettings) -> _Look | str:
    """Return an image and its mask, or why they cannot be used."""
    try:
        labels = read_mask(pair.target)
        reduce_to = round(REDUCED_DECODING_FACTOR * max(sizes))
        image = decode(pair.image.read_bytes(), reduce_to=reduce_to)
    except (ImageError, OSError) as error:
        return f"{pair.key}: {error}"
    if _differ_in_shape(image, labels):
        return f"{pair.key}: its mask has another shape"
    counted = labels != settings.void
    thing = counted & (labels != 0)
    if not thing.any():
        found = ", ".join(map(str, np.unique(labels)[:5]))
        return (
            f"{pair.key}: its mask has no object, only {found} (0 is the background, and "
            f"attention.void={settings.void} counts for nothing)"
        )
    squares = [np.array(image.resize((s, s), Image.Resampling.BICUBIC)) for s in sizes]
    return _Look([torch.from_numpy(s).permute(2, 0, 1) for s in squares], thing, counted)


def _differ_in_shape(image: Image.Image, labels: Int32[np.ndarray, "h w"]) -> bool:
    """Tell whether a mask belongs to a turned or cropped image; rounding may have cost it a pixel."""
    (h, w), (width, height) = labels.shape, image.size
    return abs(w * height - h * width) > max(w, h, width, height)


def _indices(
    model: JoinedModel, looks: list[_Look], mass: float
) -> Iterator[Float[Tensor, " heads"]]:
    """Yield the Jaccard index of every head for each image."""
    kept = []
    for number, part in enumerate(model.parts):
        maps = cls_attention(part, torch.stack([look.pixels[number] for look in looks]))
        kept.append(most_attended(maps.cpu(), mass))
    for row, look in enumerate(looks):
        yield torch.cat([jaccard(maps[row], look.thing, look.counted) for maps in kept])
