"""Distinct crops of the photographs that ship inside the scikit-image and scikit-learn wheels."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageStat

from shared.errors import LvdError

SEED_SUBJECTS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "coffee": ("skimage", "data/coffee.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
}
OTHER_SUBJECTS = {
    "cameraman": ("skimage", "data/camera.png"),
    "coins": ("skimage", "data/coins.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
}
TEXTURES = {
    "brick": ("skimage", "data/brick.png"),
    "galaxies": ("skimage", "data/hubble_deep_field.jpg"),
    "grass": ("skimage", "data/grass.png"),
    "gravel": ("skimage", "data/gravel.png"),
    "moon": ("skimage", "data/moon.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "tissue": ("skimage", "data/ihc.png"),
}

_SCALES = (0.95, 0.58, 0.42, 0.3, 0.22)  # of the picture's shorter side
_TRIES = 400
_MAX_OVERLAP = 0.3  # intersection over union of any two crops of one photograph
_MIN_SIDE = 80
_LONG_SIDE = 760
_MIN_CONTRAST = 20.0  # standard deviation of grey levels
_MIN_DETAIL = 1  # mean difference of a cell's grey levels from their blur: sky falls below
_MIN_BUSY = 0.5  # share of 6 x 6 cells with that much detail

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Crop:
    """The `box` of a photograph; `number` counts the crops of one subject from large to small."""

    subject: str
    number: int
    box: Box
    image: Image.Image


def crops(subjects: dict[str, tuple[str, str]], count: int, label: str) -> list[Crop]:
    """Return `count` crops that overlap little, dealt over the subjects in turn, large ones first.

    `label` seeds the choice. LvdError when the photographs do not hold that many.
    """
    piles = [_subject_crops(name, *place, label) for name, place in sorted(subjects.items())]
    turns = (crop for turn in zip_longest(*piles) for crop in turn if crop is not None)
    dealt = list(islice(turns, count))
    if len(dealt) < count:
        raise LvdError(
            f"the built-in sample needs {count} distinct crops of {', '.join(sorted(subjects))}, "
            f"which hold {len(dealt)}: ask for fewer images"
        )
    return dealt


def _subject_crops(subject: str, package: str, name: str, label: str) -> Iterator[Crop]:
    picture = _open(package, name)
    grey = picture.convert("L")
    detail = ImageChops.difference(grey, grey.filter(ImageFilter.BoxBlur(2)))
    chosen = random.Random(f"{label}/{subject}")
    boxes: list[Box] = []
    for scale in (scale for scale in _SCALES for _ in range(_TRIES)):
        box = _random_box(picture.size, scale, chosen)
        if box is None or any(overlap(box, other) > _MAX_OVERLAP for other in boxes):
            continue
        cells = np.asarray(detail.resize((6, 6), Image.Resampling.BOX, box))
        contrast = ImageStat.Stat(grey.crop(box)).stddev[0]
        if (cells > _MIN_DETAIL).mean() > _MIN_BUSY and contrast > _MIN_CONTRAST:
            boxes.append(box)
            yield Crop(subject, len(boxes) - 1, box, picture.crop(box))


def overlap(one: Box, other: Box) -> float:
    """Return the intersection over union of two boxes (left, upper, right, lower)."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return both / (sum(areas) - both)


def _random_box(size: Sequence[int], scale: float, chosen: random.Random) -> Box | None:
    short = min(size) * scale * chosen.uniform(0.9, 1.05)
    aspect = chosen.uniform(0.75, 1.5)
    width, height = round(short * max(aspect, 1.0)), round(short * max(1 / aspect, 1.0))
    if min(width, height) < _MIN_SIDE or width > size[0] or height > size[1]:
        return None
    left, upper = chosen.randint(0, size[0] - width), chosen.randint(0, size[1] - height)
    return left, upper, left + width, upper + height


def _open(package: str, name: str) -> Image.Image:
    spec = find_spec(package)  # finds the package without importing it, which costs seconds
    folders = spec.submodule_search_locations if spec else None
    path = Path(folders[0], name) if folders else Path(name)
    if not path.is_file():
        raise LvdError(
            f"the built-in sample needs {name} from inside {package}, and the one installed does "
            "not ship it: install the version in constraints.txt"
        )
    with Image.open(path) as picture:
        rgb = picture.convert("RGB")
    rgb.thumbnail((_LONG_SIDE, _LONG_SIDE))
    return rgb
