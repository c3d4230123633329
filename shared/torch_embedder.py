"""The forward pass that timm and open_clip models share: uint8 pixels in, unit vectors out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize
from torchvision import transforms

from shared.embedders import REDUCED_DECODING_FACTOR, EmbedderSettings
from shared.errors import LvdError

WIDEST_ASPECT = 4
"""Where only the middle square is looked at, longer images are trimmed first: memory is bounded."""


class TorchEmbedder:
    """A model's encoder behind the model's own evaluation transform.

    The transform is split: resizing and cropping happen in `prepare`, on many threads; scaling and
    normalising happen in `embed`, on the batch, with the same float32 values.
    """

    def __init__(
        self,
        encode: Callable[[torch.Tensor], torch.Tensor],
        transform: transforms.Compose,
        settings: EmbedderSettings,
    ) -> None:
        *geometry, to_tensor, normalise = transform.transforms
        if not (
            isinstance(to_tensor, transforms.ToTensor)
            and isinstance(normalise, transforms.Normalize)
        ):
            raise LvdError(f"embedder model {settings.model}: its transform is not one for images")
        self._encode = encode
        self._geometry = geometry
        self._device = settings.device
        self._precision = getattr(torch, settings.precision)
        self._mean, self._std = (
            torch.as_tensor(values, dtype=torch.float32, device=self._device).view(-1, 1, 1)
            for values in (normalise.mean, normalise.std)
        )
        blank = self.prepare(Image.new("RGB", (256, 256)))
        self.dim = self.embed([blank]).shape[1]
        resize = geometry[0]
        side = resize.size if isinstance(resize, transforms.Resize) else blank.shape[:2]
        self.input_side = int(side if isinstance(side, int) else min(side))
        self.reduce_to = (
            round(self.input_side * REDUCED_DECODING_FACTOR)
            if settings.decode == "reduced"
            else None
        )

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Return the resized and cropped pixels, uint8 [height, width, 3]."""
        resize = self._geometry[0]
        if isinstance(resize, transforms.Resize) and isinstance(resize.size, int):
            image = _trimmed(image)
        for step in self._geometry:
            image = step(image)
        return np.asarray(image, dtype=np.uint8)

    def embed(self, batch: Sequence[np.ndarray]) -> np.ndarray:
        """Return the L2-normalised vectors, float32 [n, dim]."""
        pixels = torch.from_numpy(np.stack(batch)).to(self._device)
        # Read as [n, 3, height, width], this is channels-last memory: convnets gain 1.3 times.
        pixels = pixels.permute(0, 3, 1, 2)
        reduced = self._precision != torch.float32
        with (
            torch.inference_mode(),
            torch.autocast(self._device, self._precision, enabled=reduced),
        ):
            features = self._encode(pixels.float().div_(255).sub_(self._mean).div_(self._std))
        return normalize(features.float(), dim=1).cpu().numpy()


def fit_for_inference(model: torch.nn.Module, device: str) -> torch.nn.Module:
    """Return the model in eval mode on `device`, in channels-last memory."""
    try:
        return model.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:150]
        raise LvdError(
            f"the embedder cannot use device {device} ({reason}): set device=cpu"
        ) from None


def _trimmed(image: Image.Image) -> Image.Image:
    """Return the image without the ends of an extreme aspect ratio, which no centre crop keeps."""
    width, height = image.size
    limit = WIDEST_ASPECT * min(width, height)
    if max(width, height) <= limit:
        return image
    left, top = max(0, (width - limit) // 2), max(0, (height - limit) // 2)
    return image.crop((left, top, left + min(width, limit), top + min(height, limit)))
