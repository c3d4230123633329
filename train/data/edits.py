"""Edits views as people edit pictures that they pass on: turned, framed, captioned, covered, shrunk."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from train.data.layouts import caption, colour, cover, frame, page, resampling
from train.data.settings import EditSettings
from train.data.tones import detail, light

_TURN = 25.0
"""Most degrees, either way."""
_SLANT = 0.14
"""Most of a side by which a corner is moved."""
_SHRINK = (0.2, 0.7)
_QUALITY = (5, 60)

Edit = Callable[[Image.Image, np.random.Generator], Image.Image]


def edited(
    views: UInt8[Tensor, "v 3 s s"], settings: EditSettings, seed: int
) -> UInt8[Tensor, "v 3 s s"]:
    """Return a sample's global views with edits: the first strong, the others `mild`; by `seed`.

    Each edit has the probability that the settings give it, times `mild` behind the first view, and
    is drawn whether the others happen or not. The order is that of a picture's way through the web:
    lit and sharpened, turned and framed, captioned and covered, set on a page, shrunk and compressed.
    """
    made = torch.empty_like(views)
    for number, view in enumerate(views):
        rng = np.random.default_rng((seed, number))
        image = Image.fromarray(view.permute(1, 2, 0).contiguous().numpy())
        draws = {name: (rng.random(), rng.integers(2**63)) for name in _DRAWN}
        for name, edit in _EDITS.items():
            share = getattr(settings, name) * (settings.mild if number else 1)
            chance, own = draws[name]
            if chance < share:
                image = edit(image, np.random.default_rng(own))
        made[number] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return made


def _quarter(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Turn by a quarter, either way, or by a half."""
    turns = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_180)
    return image.transpose(turns[rng.choice(3, p=[0.4, 0.4, 0.2])])


def _slant(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Look at the picture from one side, or shear it; what lies outside of it has one colour."""
    side = image.width
    corners = np.array([[0, 0], [side, 0], [side, side], [0, side]], np.float64)
    if rng.random() < 0.5:
        moved = corners + rng.uniform(-_SLANT, _SLANT, (4, 2)) * side
    else:
        shear = rng.uniform(-_SLANT, _SLANT) * side * np.array([1, 1, -1, -1])
        moved = corners + np.stack([shear, np.zeros(4)], 1)[:, :: rng.choice([1, -1])]
    return image.transform(
        image.size,
        Image.Transform.PERSPECTIVE,
        _homography(corners, moved),
        Image.Resampling.BILINEAR,
        fillcolor=colour(rng),
    )


def _homography(corners: np.ndarray, moved: np.ndarray) -> list[float]:
    """Return the eight numbers by which Pillow finds the place in the picture of each new pixel."""
    rows = []
    for (x, y), (u, v) in zip(corners, moved, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    return np.linalg.solve(np.array(rows), moved.ravel()).tolist()


def _turn(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Turn by some degrees; the corners are filled, or cut off by a crop."""
    angle = rng.uniform(-_TURN, _TURN)
    size = image.size
    turned = image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=colour(rng))
    if rng.random() < 0.5:
        return turned
    # The largest square inside a turned square has this share of its side.
    radians = np.deg2rad(abs(angle))
    share = 1 / (np.cos(radians) + np.sin(radians))
    edge = (1 - share) / 2 * size[0]
    box = (edge, edge, size[0] - edge, size[1] - edge)
    return turned.resize(size, Image.Resampling.BILINEAR, box=box)


def _shrink(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Scale the picture down and up again."""
    side = max(8, round(image.width * rng.uniform(*_SHRINK)))
    return image.resize((side, side), resampling(rng)).resize(image.size, resampling(rng))


def _compress(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Save the picture as JPEG and read it back."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(*_QUALITY)))
    return Image.open(buffer, formats=["JPEG"]).convert("RGB")


_EDITS: dict[str, Edit] = {
    "light": light,
    "detail": detail,
    "quarter": _quarter,
    "slant": _slant,
    "turn": _turn,
    "frame": frame,
    "caption": caption,
    "cover": cover,
    "page": page,
    "shrink": _shrink,
    "compress": _compress,
}
_DRAWN = tuple(name for name in EditSettings.model_fields if name in _EDITS)
"""The order of the draws: a setting that is added behind the others changes none of theirs."""
