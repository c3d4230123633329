"""Colours for patch tokens: their principal components, shared by all pictures of a set."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

_EXTREMES = (1, 99)
"""Percentiles of a component between which its colour runs from none to full."""


_INSIDE = 0.1
"""By how much the foreground's share of the inner patches exceeds its share of the border."""


class PatchColours(NamedTuple):
    """What the patches of a set of pictures look like."""

    first: Float[np.ndarray, "n rows cols"]
    """The first component of all patches, in standard deviations; the foreground's side is up."""
    foreground: Bool[np.ndarray, "n rows cols"]
    colours: UInt8[np.ndarray, "n rows cols 3"]
    """RGB; the background is black."""


def patch_colours(
    patches: Float[np.ndarray, "n rows cols d"], threshold: float = 0.0
) -> PatchColours:
    """Return foreground and colours of patch tokens (DINOv2, arXiv 2304.07193, figure 1).

    The foreground is where the first principal component of all patches exceeds `threshold`
    standard deviations. A component has no sign of its own: the side on which the patches at the
    pictures' borders lie, on average, is the background. The foreground's patches have principal
    components of their own, the first three of which are red, green and blue, each from its 1st to
    its 99th percentile. Where fewer than two patches are left, all is black.
    """
    first = _components(patches.reshape(-1, patches.shape[3]), 1).reshape(patches.shape[:3])
    inside = first[:, 1:-1, 1:-1]
    if first.sum() - inside.sum() > 0:
        first = -first
    first = first / max(float(first.std()), np.finfo(np.float64).tiny)
    foreground = first > threshold
    colours = np.zeros((*foreground.shape, 3), dtype=np.uint8)
    if foreground.sum() > 1:
        components = _components(patches[foreground], 3)
        low, high = np.percentile(components, _EXTREMES, axis=0)
        span = np.maximum(high - low, np.finfo(np.float64).tiny)
        colours[foreground] = np.rint(255 * np.clip((components - low) / span, 0, 1))
    return PatchColours(first, foreground, colours)


def lies_inside(foreground: Bool[np.ndarray, "n rows cols"]) -> bool:
    """Tell whether the foreground's share of the inner patches is well above that of the border."""
    inside = foreground[:, 1:-1, 1:-1]
    border = foreground.size - inside.size
    if not inside.size or not border:
        return False
    return bool(inside.mean() - (foreground.sum() - inside.sum()) / border >= _INSIDE)


def _components(tokens: Float[np.ndarray, "n d"], count: int) -> Float[np.ndarray, "n count"]:
    """Return the first principal components in float64; zeros where there are fewer.

    The largest weight of each is positive, as in scikit-learn, whose import would take longer than
    all the drawing.
    """
    there = min(count, *tokens.shape)
    centred = tokens.astype(np.float64)
    centred -= centred.mean(axis=0)
    axes = np.linalg.eigh(centred.T @ centred).eigenvectors[:, : -there - 1 : -1]
    largest = np.abs(axes).argmax(axis=0)
    axes = axes * np.sign(axes[largest, np.arange(there)])
    return np.pad(centred @ axes, ((0, 0), (0, count - there)))
