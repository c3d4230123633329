"""Changes the colours and sharpness of views: jitter, grey, blur and solarisation, batched.

Each operation is torchvision's of the same name; between them pixels stay in float32, so that a
view is rounded to grey levels once and not six times.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as functional
from jaxtyping import Float, UInt8
from torch import Tensor

from shared.send import send
from train.data.settings import BLUR_RADIUS

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

_LUMA = (0.2989, 0.587, 0.114)
_WHITE = 255.0
_VALUES_AT_ONCE = 600_000
"""What a CPU works on before it goes on to other images, so that it stays in the cache."""


def photometric(
    images: UInt8[Tensor, "n 3 h w"], parameters: dict[str, Tensor]
) -> UInt8[Tensor, "n 3 h w"]:
    """Return `images` with the operations that `parameters` give for each, on the images' device.

    `parameters` lie on the CPU, so that no choice waits for a device. They hold for each image:
    `jitter` bool [n], whether its colours are jittered; `order` int64 [n, 4], in which order the
    four operations are done then; `factors` float32 [n, 4], of brightness, contrast, saturation (1
    changes nothing) and hue (a part of the circle); `grey` bool [n]; `sigma` float32 [n], of the
    blur in pixels, 0 for none; `solarise` bool [n]. All is done in this order, as in DINOv2.
    """
    finished = torch.empty_like(images)
    at_once = max(1, len(images))
    if images.device.type == "cpu":
        at_once = max(1, _VALUES_AT_ONCE // images.shape[1:].numel())
    chosen = {name: values.numpy() for name, values in parameters.items()}
    for start in range(0, len(images), at_once):
        block = slice(start, start + at_once)
        of_block = {name: values[block] for name, values in chosen.items()}
        finished[block] = _changed(images[block], of_block)
    return finished


def _changed(
    images: UInt8[Tensor, "n 3 h w"], chosen: dict[str, np.ndarray]
) -> UInt8[Tensor, "n 3 h w"]:
    """Do to all images at once what `photometric` does to each."""

    def on_device(values: np.ndarray) -> Tensor:
        return send(torch.from_numpy(values), images.device)

    # The more operations come before its hue, the further in front is an image, and those without
    # jitter are last: then each step works in place on a slice, and one call turns all hues.
    before = (chosen["order"] == HUE).argmax(1)
    group = np.where(chosen["jitter"], 3 - before, 4)
    rows = group.argsort(kind="stable")
    ends = np.bincount(group, minlength=4).cumsum().tolist()[:4]
    pixels = images.index_select(0, on_device(rows)).float()
    _jitter_(pixels, chosen["order"][rows], before[rows], chosen["factors"][rows], ends)
    grey = chosen["grey"][rows].nonzero()[0]
    if len(grey):
        luma = _luma(pixels.index_select(0, on_device(grey)))
        pixels.index_copy_(0, on_device(grey), luma.expand(-1, 3, -1, -1))
    finished, source = _to_bytes(pixels), np.arange(len(rows))
    sigma = chosen["sigma"][rows]
    blurred = sigma.nonzero()[0]
    if len(blurred):
        sharp = pixels.index_select(0, on_device(blurred))
        soft = gaussian_blur(sharp, torch.from_numpy(sigma[blurred]))
        # Put behind the others and gathered below: bytes are far quicker to move than floats.
        finished = torch.cat([finished, _to_bytes(soft)])
        source[blurred] = np.arange(len(rows), len(finished))
    finished = finished.index_select(0, on_device(source[rows.argsort()]))
    solarised = chosen["solarise"].nonzero()[0]
    if len(solarised):
        # Levels from 128 are inverted: of a level and its inverse, the smaller one stays.
        levels = finished.index_select(0, on_device(solarised))
        finished.index_copy_(0, on_device(solarised), torch.minimum(levels, ~levels))
    return finished


def shift_hue_(pixels: Float[Tensor, "n 3 h w"], turns: Float[Tensor, " n"]) -> None:
    """Turn the HSV hue of the pixels by a part of the circle, in place, without conditions.

    In HSV a channel lies below the largest one by the chroma times clamp(d - 1, 0, 1), where d is
    the distance of the hue from that channel's own, in sixths of the circle. Red's distance comes
    from t = (2 red - green - blue) / chroma: it is 2 - t where red is the largest channel (t >= 1),
    1 - t where it is the smallest (t <= -1), and (3 - t) / 2 between; its sign is that of
    green - blue. Equal to torchvision's `adjust_hue` but for rounding.
    """
    red, green, blue = pixels.unbind(1)
    high = torch.maximum(red, green).clamp_min_(blue)
    chroma = torch.minimum(red, green).clamp_max_(blue).neg_().add_(high)
    excess = torch.sub(red, green).add_(red).sub_(blue).div_(chroma.clamp_min(1e-9))
    hue = excess.clamp(-1, 1).mul_(0.5).sub_(excess).add_(1.5)
    hue.copysign_(green - blue).add_(6 * turns.view(-1, 1, 1))
    hue.sub_(torch.div(hue, 6, out=excess).round_(), alpha=6)
    base = high.sub_(chroma, alpha=2)
    for channel, own in ((red, 0), (green, 2), (blue, -2)):
        # The distance around the circle of an angle a is 3 - |a - 3|; what is kept of the chroma
        # is 1 - clamp(d - 1, 0, 1) = clamp(|a - 3|, 1, 2) - 1.
        torch.sub(hue, own, out=channel).abs_().sub_(3).abs_().clamp_(1, 2)
        channel.mul_(chroma).add_(base)


def gaussian_blur(
    pixels: Float[Tensor, "n 3 h w"], sigma: Float[Tensor, " n"]
) -> Float[Tensor, "n 3 h w"]:
    """Return the images blurred, each by its own `sigma`, with edges reflected.

    The kernel is separable and symmetric: sums of shifted images are several times faster on a CPU
    than a convolution, and take another kernel for each image.
    """
    weights = torch.exp(-0.5 * (torch.arange(BLUR_RADIUS + 1) / sigma[:, None]) ** 2)
    weights = send(weights / (2 * weights.sum(1, keepdim=True) - weights[:, :1]), pixels.device)
    padded = functional.pad(pixels, [BLUR_RADIUS] * 4, mode="reflect")
    width = padded.shape[-1]
    # In a flattened image, the pixel below is `width` away and the one beside is 1 away. What runs
    # over the end of a line there lies in the padding, and is cut off.
    columns = _blur_along(padded.flatten(2), weights, width)
    both = _blur_along(columns, weights, 1)
    return both.as_strided(pixels.shape, (both.stride(0), both.stride(1), width, 1))


def _blur_along(
    flat: Float[Tensor, "n 3 padded"], weights: Float[Tensor, "n taps"], stride: int
) -> Float[Tensor, "n 3 inner"]:
    middle, *sides = weights[:, :, None, None].unbind(1)
    size = flat.shape[-1] - 2 * BLUR_RADIUS * stride
    shifted = flat.unfold(-1, size, stride).unbind(-2)
    total = shifted[BLUR_RADIUS] * middle
    pair = torch.empty_like(total)
    for tap, weight in enumerate(sides, start=1):
        torch.add(shifted[BLUR_RADIUS - tap], shifted[BLUR_RADIUS + tap], out=pair)
        total.addcmul_(pair, weight)
    return total


def _jitter_(
    pixels: Float[Tensor, "n 3 h w"],
    order: np.ndarray,
    before: np.ndarray,
    factors: np.ndarray,
    ends: list[int],
) -> None:
    """Do the four operations in each image's `order`, where `before` stand in front of its hue.

    `ends[k]` images have at least 3 - k of them there, and `ends[3]` are jittered at all.
    """
    jittered = ends[3]
    if not jittered:
        return
    # Each order is turned to begin after its hue, so what comes before the hue is at its end: a
    # step before the hue and the same step after it are for different images.
    others = np.take_along_axis(order, (before[:, None] + np.array((1, 2, 3))) % 4, 1)
    shares = _shares(others, np.take_along_axis(factors, others, 1), pixels.device)
    plain = others == BRIGHTNESS

    def blend_(step: int, images: slice) -> None:
        if images.start < images.stop:
            shares_now = shares[step, :, images]
            _blend_(pixels[images], *shares_now, only_brightness=plain[images, step].all())

    for step, end in enumerate(ends[:3]):
        blend_(step, slice(0, end))
    turns = send(torch.from_numpy(factors[:jittered, HUE].copy()), pixels.device)
    shift_hue_(pixels[:jittered], turns)
    for step, end in enumerate(ends[:3]):
        blend_(step, slice(end, jittered))


def _shares(
    operations: np.ndarray, factors: np.ndarray, device: torch.device
) -> Float[Tensor, "s 3 n 1 1 1"]:
    """Return what of the image, of its mean luma and of its luma each of s steps mixes.

    Brightness mixes with black, contrast with the mean luma, saturation with the luma.
    """
    rest = 1 - factors
    shares = factors, rest * (operations == CONTRAST), rest * (operations == SATURATION)
    stacked = np.ascontiguousarray(np.stack(shares).transpose(2, 0, 1))
    return send(torch.from_numpy(stacked), device)[..., None, None, None]


def _blend_(
    pixels: Float[Tensor, "n 3 h w"],
    of_image: Float[Tensor, "n 1 1 1"],
    of_mean: Float[Tensor, "n 1 1 1"],
    of_luma: Float[Tensor, "n 1 1 1"],
    *,
    only_brightness: bool = False,
) -> None:
    if only_brightness:
        pixels.mul_(of_image).clamp_(0, _WHITE)
        return
    luma = _luma(pixels)
    # Over rows first: the sum of one whole image would be split among threads, and depend on them.
    mean = luma.mean(3, keepdim=True).mean(2, keepdim=True).mul_(of_mean)
    other = luma.mul_(of_luma).add_(mean)
    pixels.mul_(of_image).add_(other).clamp_(0, _WHITE)


def _luma(pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 h w"]:
    red, green, blue = pixels.unbind(1)
    luma = (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])
    return luma.unsqueeze_(1)


def _to_bytes(pixels: Float[Tensor, "n 3 h w"]) -> UInt8[Tensor, "n 3 h w"]:
    # By way of int16, because the direct conversion to bytes is four times slower on a CPU.
    return pixels.round().to(torch.int16).to(torch.uint8)
