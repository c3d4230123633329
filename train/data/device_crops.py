"""Cuts and resizes the crops of many images at once, as matrix products on the images' device."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float64, Int, Int32, UInt8
from torch import Tensor

_RADIUS = {"bilinear": 1, "bicubic": 2}
"""Of the kernel, in pixels of whichever of the crop and its resized form is the coarser."""
_CUBIC = -0.5
"""The parameter a of the bicubic kernel, as in Pillow and in torch where it antialiases."""
_LARGEST_WEIGHT, _MOST_BITS = 2**15, 22
"""Of torch's fixed-point weights: int16, with as many bits as the largest of a crop leaves room."""


def resized_crops(
    images: UInt8[Tensor, "n 3 h w"],
    boxes: Int[Tensor, "n v 4"],
    flips: Bool[Tensor, "n v"],
    size: int,
    interpolation: str,
) -> UInt8[Tensor, "m 3 s s"]:
    """Return v crops of each image at `size` pixels, mirrored where `flips` says so, crop-major.

    `boxes` are top, left, height and width inside the image; what lies outside them plays no part,
    so smaller images may be padded. `interpolation` is `bicubic` or `bilinear`, antialiased. All
    tensors are on one device.

    Equal on every device, bit for bit, to torchvision's `resized_crop` of uint8 on a CPU. That
    resamples along rows and then along columns: sums of pixels with weights in fixed point, each
    rounded to a grey level. Here both are products with matrices of these weights.
    """
    (count, views), (height, width) = flips.shape, images.shape[2:]
    top, left, high, wide = boxes.unbind(-1)
    weights, bits = _fixed_point_weights(left, wide, size, width, interpolation)
    weights = torch.where(flips[..., None, None], weights.flip(2), weights)
    # All views of an image are one product with the image as it is: none needs a copy of it.
    sums = _exact_product(images.flatten(1, 2), weights.flatten(1, 2))
    rows = _round_to_levels(sums.view(count, 3, height, views, size), bits[:, None, None, :, None])
    weights, bits = _fixed_point_weights(top, high, size, height, interpolation)
    lines = rows.permute(0, 3, 1, 4, 2).reshape(count * views, 3 * size, height)
    sums = _exact_product(lines, weights.flatten(0, 1))
    crops = _round_to_levels(sums.view(count, views, 3, size, size), bits[..., None, None, None])
    return crops.permute(1, 0, 2, 4, 3).flatten(0, 1)


def _fixed_point_weights(
    starts: Int[Tensor, "n v"],
    lengths: Int[Tensor, "n v"],
    size: int,
    extent: int,
    interpolation: str,
) -> tuple[Int32[Tensor, "n v s extent"], Int32[Tensor, "n v"]]:
    """Return the weights of `extent` pixels in each of `size` resized ones, times 2^bits, and bits.

    Resized are the `lengths` pixels from `starts` on; in float64 up to the rounding, as in torch's
    `upsample_bicubic2d_aa`, so that rounding makes the same integers.
    """
    places = torch.arange(size, device=starts.device)
    pixels = torch.arange(extent, device=starts.device)
    scale = lengths.double() / size
    coarser = scale.clamp_min(1)
    support = (_RADIUS[interpolation] * coarser)[..., None]
    centres = scale[..., None] * (places + 0.5)
    first = (centres - support + 0.5).trunc().clamp_min(0)
    end = torch.minimum((centres + support + 0.5).trunc(), lengths[..., None])
    inside = pixels - starts[..., None, None]
    tap = inside - first[..., None]
    distance = (tap + (first - centres)[..., None] + 0.5) * (1 / coarser)[..., None, None]
    kernel = _bicubic(distance) if interpolation == "bicubic" else 1 - distance.abs()
    weights = kernel.mul_((tap >= 0) & (inside < end[..., None]))
    weights /= weights.sum(-1, keepdim=True)
    largest = weights.amax((-2, -1))
    # The most bits with which the largest weight rounds to less than 2^15.
    bits = torch.log2((_LARGEST_WEIGHT - 0.5) / largest).ceil().sub_(1).clamp_max(_MOST_BITS)
    fixed = weights.mul_(torch.exp2(bits)[..., None, None])
    # Halves are rounded away from 0.
    return fixed.add_(fixed.sign(), alpha=0.5).trunc_().int(), bits.int()


def _bicubic(distance: Float64[Tensor, "*d"]) -> Float64[Tensor, "*d"]:
    x = distance.abs()
    near = ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * _CUBIC - 4 * _CUBIC
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _exact_product(
    levels: UInt8[Tensor, "k a b"], weights: Int32[Tensor, "k c b"]
) -> Int32[Tensor, "k a c"]:
    """Return levels @ weights.T without rounding.

    Of weights cut into two halves of 8 bits, the sums stay below 2^24 for crops of up to 128 times
    the resized size, so float32 holds them, and TF32 the factors.
    """
    numbers = levels.float()
    upper = (weights + 128) >> 8
    lower = weights - (upper << 8)
    with torch.autocast(levels.device.type, enabled=False):
        upper_sums, lower_sums = (torch.bmm(numbers, of.float().mT) for of in (upper, lower))
    return (upper_sums.int() << 8).add_(lower_sums.int())


def _round_to_levels(sums: Int32[Tensor, "*d"], bits: Int32[Tensor, "*e"]) -> UInt8[Tensor, "*d"]:
    half = 1 << (bits - 1)
    return (sums + half).bitwise_right_shift_(bits).clamp_(0, 255).to(torch.uint8)
