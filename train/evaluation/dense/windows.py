"""Windows that slide over images of any shape, and what is told of a pixel by all that hold it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

LONGEST = 4
"""Windows' sides that an image's longer side may have; it is squeezed to these where it has more."""

Box = tuple[int, int, int, int]
"""Left, upper, right and lower edge in pixels of the upright image."""


class Windows(NamedTuple):
    """The windows of several images, one image's behind another's."""

    counts: list[int]
    """Of each image."""
    boxes: Float[Tensor, "windows 4"]
    """Upper, left, lower and right edge as shares of the image's height and width."""


def slide(height: int, width: int, side: int, stride: int) -> list[Box]:
    """Return the windows of an image that is resized to a shorter side of `side` pixels.

    They are squares of `side`, `stride` apart or less; the last one ends where the image does (as
    in mmsegmentation's sliding inference). Boxes are whole pixels of the image as it is.
    """
    shorter = min(height, width)
    spans = []
    for length in (height, width):
        resized = min(round(length * side / shorter), LONGEST * side)
        steps = -(-(resized - side) // stride)
        starts = [min(step * stride, resized - side) for step in range(steps + 1)]
        scale = length / resized
        spans.append([(_nearest(at * scale), _nearest((at + side) * scale)) for at in starts])
    return [(left, top, right, bottom) for top, bottom in spans[0] for left, right in spans[1]]


def _nearest(edge: float) -> int:
    """Round halves up: edges that are a pixel apart stay so."""
    return math.floor(edge + 0.5)


def as_shares(box: Box, height: int, width: int) -> tuple[float, float, float, float]:
    """Return upper, left, lower and right edge of a box as shares of an image's sides."""
    left, upper, right, lower = box
    return upper / height, left / width, lower / height, right / width


def blend(
    grids: Float[Tensor, "windows rows cols d"],
    windows: Windows,
    points: Float[Tensor, "n points 2"],
) -> Float[Tensor, "n points d"]:
    """Return at each point, a share of its image's height and width, the mean over its windows.

    In each window that holds it the grid is interpolated bilinearly. For a head that is linear, its
    output for this mean is the mean of its outputs, which are what sliding inference averages.
    """
    rows = torch.repeat_interleave(torch.tensor(windows.counts)).to(points.device)
    upper_left, lower_right = windows.boxes.to(points.device)[:, None].split(2, dim=2)
    local = (points[rows] - upper_left) / (lower_right - upper_left)
    inside = ((local >= 0) & (local <= 1)).all(dim=2, keepdim=True)
    sampled = torch.where(inside, at_points(grids, local), 0)
    sums, held = (
        torch.stack([of_one.sum(dim=0) for of_one in values.split(windows.counts)])
        for values in (sampled, inside.to(sampled.dtype))
    )
    return sums / held


def at_points(
    grids: Float[Tensor, "n rows cols d"], points: Float[Tensor, "n points 2"]
) -> Float[Tensor, "n points d"]:
    """Return grids interpolated bilinearly at points, given as shares of height and width.

    At the pixel centres of a larger picture this equals `interpolate` to its size with
    align_corners=False: beyond the outermost cells' centres the outermost cells count.
    """
    places = (2 * points - 1).flip(-1)[:, :, None]  # grid_sample wants right, down in -1 .. 1
    sampled = functional.grid_sample(
        grids.permute(0, 3, 1, 2), places, "bilinear", padding_mode="border", align_corners=False
    )
    return sampled[..., 0].transpose(1, 2)


def whole_images(count: int) -> Windows:
    """Return one window for each image, which is all of it."""
    return Windows([1] * count, torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(count, -1))
