"""Says where a score was taken otherwise than the published ones.

Those are DINOv2's (arXiv 2304.07193; where the paper is silent, the code, notebooks and configs of
heads that were released with it) and, of retrieval and attention, also DINO's (arXiv 2104.14294).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.frozen.model import FrozenModel

RESIZE, CROP = 256, 224
"""For k-NN and linear classification images are resized to a shorter side of 256 pixels, and the
224 at their centre are seen; for logistic regression that shorter side is 224 too."""
WINDOW, STRIDE = 512, 341
"""For segmentation windows of 512 pixels slide over images whose shorter side is as long."""


def classification(task: str, parts: Sequence[FrozenModel], resize: int | None) -> list[str]:
    """Return what differs for `knn`, `linear` and `logreg`, in sentences."""
    published = (CROP, CROP if task == "logreg" else RESIZE)
    notes = [
        f"the middle {crop} px of {side} px are seen, where DINOv2 sees {CROP} of {published[1]} "
        f"px: --size {CROP} --set resize={published[1]}"
        for crop, side in _seen(parts, resize)
        if (crop, side) != published
    ]
    if task != "knn":
        notes.append("features are standardised, where DINOv2's are fitted as they are")
    if task == "linear":
        return [
            *notes,
            "each image is seen once, where DINOv2 trains on random crops and flips",
            "held-out training images choose the head, where DINOv2 reports the best on its test "
            "images",
        ]
    pooled = sorted({part.needs.pooling for part in parts} - {"token"})
    return notes + [f"pooled by {kind}, where DINOv2 takes the CLS token" for kind in pooled]


def retrieval(parts: Sequence[FrozenModel], boxes: bool) -> list[str]:
    """Return what differs for `retrieval`, or is not published; `boxes` where queries are cut."""
    notes = [
        f"images are seen once, the middle {crop} px of {side} px, of which DINOv2's paper says "
        "nothing (DINO's code has images whole, and may have several sizes of them)"
        for crop, side in _seen(parts, None)
    ]
    if boxes:
        notes.append(
            "queries are cut to their boxes, where DINO's code has them whole: "
            "--set retrieval.crop_queries=false"
        )
    return notes


def segmentation(sides: Iterable[int], window: int | None, stride: int) -> list[str]:
    """Return what differs for `segment`; `sides` are those of the squares that models see."""
    squares = _listed(sides)
    notes = [
        "images are seen as they are, where DINOv2 trains on random scales, crops, flips and "
        "colours",
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
            f"windows of {window} px every {stride} px are resized to {squares} px, where DINOv2's, "
            f"of {WINDOW} px every {STRIDE}, are padded to whole patches",
        )
    return notes


def depth(sides: Iterable[int], cls: bool) -> list[str]:
    """Return what differs for `depth`; `sides` are those of the squares that models see."""
    notes = [
        f"each image is squeezed to a square of {_listed(sides)} px and seen once, where DINOv2 "
        "keeps its shape, trains on random crops, turns, flips and colours, and takes the mean with "
        "its mirror image",
        "depths are told at the map's own size, where DINOv2's are at 4 times the patches' and "
        "enlarged",
    ]
    if not cls:
        notes.append(
            "heads look at patch tokens alone, where DINOv2's linear head has the CLS token beside "
            "each: --set depth.cls=true"
        )
    return notes


def attention(sides: Iterable[int]) -> list[str]:
    """Return what differs for `attention`; `sides` are those of the squares that models see."""
    return [
        f"each image is squeezed to a square of {_listed(sides)} px, and at which size DINO's "
        "figures were taken is not published",
        "all objects of a mask are one, where DINO seeks the best head for each of them",
    ]


def _seen(parts: Sequence[FrozenModel], resize: int | None) -> list[tuple[int, int]]:
    """Return the sides of the squares that models see, and the shorter sides they are cut from."""
    return sorted({(part.needs.size, resize or part.transform.input_side) for part in parts})


def _listed(sides: Iterable[int]) -> str:
    return " and ".join(str(side) for side in sorted(set(sides)))
