"""A model's evaluation transform in two halves: geometry image by image, scaling on the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torchvision import transforms

from shared.embedders.settings import REDUCED_DECODING_FACTOR
from shared.errors import LvdError
from shared.send import send

WIDEST_ASPECT = 4
"""Where only the middle square is looked at, longer images are trimmed first: memory is bounded."""


class EvaluationTransform:
    """Resizes and crops in `prepare`, on many threads; scales and normalises on the batch.

    Together they give the float32 values of the transform that it was made from, which ends in
    ToTensor and Normalize, as timm's and open_clip's do.
    """

    def __init__(
        self,
        transform: transforms.Compose,
        model: str,
        decode: Literal["reduced", "full"] = "reduced",
    ) -> None:
        """Raise LvdError, which names the `model`, where it is no transform of images.

        `decode` is that of the embedder's settings.
        """
        *geometry, to_tensor, normalise = transform.transforms
        if not (
            isinstance(to_tensor, transforms.ToTensor)
            and isinstance(normalise, transforms.Normalize)
        ):
            raise LvdError(f"embedder model {model}: its transform is not one for images")
        self._geometry = geometry
        self.mean, self.std = (
            tuple(float(str(value)) for value in np.asarray(values, np.float32).reshape(-1))
            for values in (normalise.mean, normalise.std)
        )
        height, width, _ = self.prepare(Image.new("RGB", (256, 256))).shape
        self.size: tuple[int, int] = (height, width)
        """Height and width of what `prepare` returns."""
        resize = geometry[0] if geometry else None
        side = resize.size if isinstance(resize, transforms.Resize) else self.size
        self.input_side = int(side if isinstance(side, int) else min(side))
        """The shorter side, in pixels, to which an image is resized before it is cropped."""
        reduced = decode == "reduced"
        self.reduce_to = round(self.input_side * REDUCED_DECODING_FACTOR) if reduced else None
        """The shorter side, in pixels, to which large JPEGs may be decoded; see shared.pictures.images."""

    def __repr__(self) -> str:
        return f"EvaluationTransform({self._geometry}, {self.mean}, {self.std})"

    def prepare(self, image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
        """Return the resized and cropped pixels of an RGB image. Thread-safe."""
        resize = self._geometry[0] if self._geometry else None
        if isinstance(resize, transforms.Resize) and isinstance(resize.size, int):
            image = _trimmed(image)
        for step in self._geometry:
            image = step(image)
        return np.asarray(image, dtype=np.uint8)

    def normalised(self, pixels: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        """Return the model's float32 input of prepared pixels, on their device."""
        mean, std = (
            send(torch.tensor(values, dtype=torch.float32), pixels.device).view(-1, 1, 1)
            for values in (self.mean, self.std)
        )
        return pixels.float().div_(255).sub_(mean).div_(std)


def square(
    size: int,
    crop_mode: str = "center",
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
    decode: Literal["reduced", "full"] = "reduced",
    resize: int | None = None,
) -> EvaluationTransform:
    """Return bicubic resizing to a square of `size` pixels, as timm's `crop_mode` says.

    `center`: to a shorter side of that many, or of `resize`, and the square at the centre.
    `squash`: all of the image, whatever its aspect. Means and deviations are by default those of
    ImageNet.
    """
    sides = (size, size) if crop_mode == "squash" else resize or size
    steps = [
        transforms.Resize(sides, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(size),
        transforms.ToTensor(),
        transforms.Normalize(mean, std),
    ]
    return EvaluationTransform(transforms.Compose(steps), f"square of {size} px", decode)


def _trimmed(image: Image.Image) -> Image.Image:
    """Return the image without the ends of an extreme aspect ratio, which no centre crop keeps."""
    width, height = image.size
    limit = WIDEST_ASPECT * min(width, height)
    if max(width, height) <= limit:
        return image
    left, top = max(0, (width - limit) // 2), max(0, (height - limit) // 2)
    return image.crop((left, top, left + min(width, limit), top + min(height, limit)))
