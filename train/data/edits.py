"""Edits views as people edit pictures that they pass on: turned, framed, captioned, covered, shrunk."""

from __future__ import annotations

import io
import string
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from train.data.settings import EditSettings

_FILTERS = (
    Image.Resampling.NEAREST,
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.BOX,
)
_TURN = 25.0
"""Most degrees, either way."""
_FRAME = 0.22
"""Most of a side that one edge of a frame takes."""
_STRIP = (0.1, 0.3)
"""Least and most of the height that a caption takes."""
_COVER = 0.3
"""Most of the area that is covered."""
_SHRINK = (0.2, 0.7)
_QUALITY = (5, 60)

Edit = Callable[[Image.Image, np.random.Generator], Image.Image]


def edited(
    views: UInt8[Tensor, "v 3 s s"], settings: EditSettings, seed: int
) -> UInt8[Tensor, "v 3 s s"]:
    """Return a sample's global views with edits: the first strong, the others `mild`; by `seed`.

    Each edit has the probability that the settings give it, times `mild` behind the first view, and
    is drawn whether the others happen or not. The order is that of a picture's way through the web:
    turned and framed, captioned and covered, shrunk and compressed.
    """
    made = torch.empty_like(views)
    for number, view in enumerate(views):
        rng = np.random.default_rng((seed, number))
        image = Image.fromarray(view.permute(1, 2, 0).contiguous().numpy())
        for name, edit in _EDITS.items():
            share = getattr(settings, name) * (settings.mild if number else 1)
            chance, own = rng.random(), rng.integers(2**63)
            if chance < share:
                image = edit(image, np.random.default_rng(own))
        made[number] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return made


def _turn(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Turn by some degrees; the corners are filled, or cut off by a crop."""
    angle = rng.uniform(-_TURN, _TURN)
    size = image.size
    turned = image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=_colour(rng))
    if rng.random() < 0.5:
        return turned
    # The largest square inside a turned square has this share of its side.
    radians = np.deg2rad(abs(angle))
    share = 1 / (np.cos(radians) + np.sin(radians))
    edge = (1 - share) / 2 * size[0]
    box = (edge, edge, size[0] - edge, size[1] - edge)
    return turned.resize(size, Image.Resampling.BILINEAR, box=box)


def _frame(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Set the picture in a frame of one colour, all around or above and below or at the sides."""
    size = image.size
    # Left, top, right, bottom: of one width, of two, or each of its own.
    edges = np.resize(rng.uniform(0, _FRAME, rng.choice([1, 2, 4])), 4)
    kept = rng.choice(["all", "lying", "standing"], p=[0.5, 0.25, 0.25])
    if kept == "lying":
        edges[[0, 2]] = 0
    elif kept == "standing":
        edges[[1, 3]] = 0
    left, top, right, bottom = np.rint(edges * size[0]).astype(int).tolist()
    inner = image.resize((size[0] - left - right, size[1] - top - bottom), _filter(rng))
    canvas = Image.new("RGB", size, _colour(rng))
    canvas.paste(inner, (left, top))
    return canvas


def _caption(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Put lines of text above or below the picture, on a strip or on the picture itself."""
    width, height = image.size
    strip = max(4, round(height * rng.uniform(*_STRIP)))
    below, beside = rng.random() < 0.6, rng.random() < 0.7
    paper, ink = _contrast(rng)
    if beside:
        canvas = Image.new("RGB", image.size, paper)
        canvas.paste(
            image.resize((width, height - strip), _filter(rng)), (0, 0 if below else strip)
        )
    else:
        canvas = image.copy()
    top = height - strip if below else 0
    _write(canvas, (0, top, width, strip), ink, rng)
    return canvas


def _cover(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Lay a shape, a text or a piece of noise over a part of the picture, opaque or half so."""
    width, height = image.size
    area, aspect = rng.uniform(0.02, _COVER), np.exp(rng.uniform(-1, 1))
    wide = min(width, max(3, round(width * np.sqrt(area * aspect))))
    high = min(height, max(3, round(height * np.sqrt(area / aspect))))
    left, top = int(rng.integers(0, width - wide + 1)), int(rng.integers(0, height - high + 1))
    box = (left, top, left + wide, top + high)
    covered = image.copy()
    kind = rng.choice(["rectangle", "ellipse", "text", "noise", "piece"])
    if kind == "text":
        _write(covered, (left, top, wide, high), _colour(rng), rng)
    elif kind == "noise":
        levels = rng.integers(0, 256, (4, 4, 3), np.uint8)
        covered.paste(Image.fromarray(levels).resize((wide, high), _filter(rng)), box)
    elif kind == "piece":
        piece = image.transpose(Image.Transpose.ROTATE_90).resize((wide, high), _filter(rng))
        covered.paste(piece, box)
    else:
        draw = ImageDraw.Draw(covered)
        (draw.rectangle if kind == "rectangle" else draw.ellipse)(
            (left, top, left + wide - 1, top + high - 1), fill=_colour(rng)
        )
    return Image.blend(image, covered, rng.uniform(0.4, 1.0))


def _shrink(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Scale the picture down and up again."""
    side = max(8, round(image.width * rng.uniform(*_SHRINK)))
    return image.resize((side, side), _filter(rng)).resize(image.size, _filter(rng))


def _compress(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Save the picture as JPEG and read it back."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(*_QUALITY)))
    return Image.open(buffer, formats=["JPEG"]).convert("RGB")


_EDITS: dict[str, Edit] = {
    "turn": _turn,
    "frame": _frame,
    "caption": _caption,
    "cover": _cover,
    "shrink": _shrink,
    "compress": _compress,
}


def _write(
    image: Image.Image,
    box: tuple[int, int, int, int],
    ink: tuple[int, int, int],
    rng: np.random.Generator,
) -> None:
    """Write one or two lines of letters into a box of left, top, width and height."""
    left, top, width, height = box
    lines = int(rng.integers(1, 3)) if height >= 16 else 1
    size = max(5, round(0.8 * height / lines))
    letters = max(1, round(width / (0.5 * size) * rng.uniform(0.5, 1.0)))
    draw = ImageDraw.Draw(image)
    for line in range(lines):
        text = "".join(rng.choice(list(string.ascii_letters + "    "), letters))
        draw.text((left + 1, top + line * height / lines), text, fill=ink, font=_font(size))


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _filter(rng: np.random.Generator) -> Image.Resampling:
    return _FILTERS[int(rng.integers(len(_FILTERS)))]


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    """Return black, white, or any colour."""
    drawn = rng.integers(0, 256, 3).tolist()
    kind = rng.random()
    return (0, 0, 0) if kind < 0.35 else (255, 255, 255) if kind < 0.7 else tuple(drawn)


def _contrast(rng: np.random.Generator) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return paper and ink that can be told apart."""
    paper = _colour(rng)
    return paper, (0, 0, 0) if sum(paper) > 380 else (255, 255, 255)
