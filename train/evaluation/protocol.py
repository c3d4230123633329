"""Says where a score was taken otherwise than those of DINOv2's paper (arXiv 2304.07193)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.frozen.model import FrozenModel

RESIZE, CROP = 256, 224
"""For k-NN and linear classification images are resized to a shorter side of 256 pixels, and the
224 at their centre are seen."""
WINDOW, STRIDE = 512, 341
"""For segmentation windows of 512 pixels slide over images whose shorter side is as long."""


def classification(task: str, parts: Sequence[FrozenModel], resize: int | None) -> list[str]:
    """Return what differs for `knn`, `linear` and `logreg`, in sentences."""
    seen = {(part.needs.size, resize or part.transform.input_side) for part in parts}
    notes = [
        f"the middle {crop} px of {side} px are seen, where DINOv2 sees {CROP} of {RESIZE} px: "
        f"--size {CROP} --set resize={RESIZE}"
        for crop, side in sorted(seen)
        if (crop, side) != (CROP, RESIZE)
    ]
    if task == "linear":
        return [
            *notes,
            "each image is seen once, where DINOv2 trains on random crops and flips",
            "held-out training images choose the head, where DINOv2 reports the best on its test "
            "images",
        ]
    pooled = sorted({part.needs.pooling for part in parts} - {"token"})
    return notes + [f"pooled by {kind}, where DINOv2 takes the CLS token" for kind in pooled]


def segmentation(sides: Iterable[int], window: int | None, stride: int) -> list[str]:
    """Return what differs for `segment`; `sides` are those of the squares that models see."""
    squares = _listed(sides)
    notes = [
        "images are seen as they are, where DINOv2 trains on random scales, crops and flips",
    ]
    if window is None:
        return [
            f"each image is squeezed to a square of {squares} px, where DINOv2 slides windows of "
            f"{WINDOW} px over it: --set segment.window={WINDOW}",
            *notes,
        ]
    if (window, stride) != (WINDOW, STRIDE) or squares != str(WINDOW):
        notes.insert(
            0,
            f"windows of {window} px every {stride} px are seen at {squares} px, where DINOv2's "
            f"are of {WINDOW} px every {STRIDE}",
        )
    return notes


def depth(sides: Iterable[int], cls: bool) -> list[str]:
    """Return what differs for `depth`; `sides` are those of the squares that models see."""
    notes = [
        f"each image is squeezed to a square of {_listed(sides)} px, where DINOv2 keeps its shape "
        "and trains on random crops"
    ]
    if not cls:
        notes.append(
            "heads look at patch tokens alone, where DINOv2's linear head has the CLS token beside "
            "each: --set depth.cls=true"
        )
    return notes


def _listed(sides: Iterable[int]) -> str:
    return " and ".join(str(side) for side in sorted(set(sides)))
