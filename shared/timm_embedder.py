"""Embedders from timm, with weights from the hub, a folder, a file or a seed.

`TorchEmbedder`, the forward pass behind an evaluation transform, serves open_clip's models too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch.nn.functional import normalize
from torchvision import transforms

from shared.embedders import (
    HUB,
    LOCAL,
    REDUCED_DECODING_FACTOR,
    EmbedderSettings,
    failure_is_said,
    fetch,
    given_weights,
)
from shared.errors import LvdError, nearest

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


def load_timm(settings: EmbedderSettings, threads: int) -> TorchEmbedder:
    """Return a timm model's pooled features (no classifier) as an embedder."""
    torch.set_num_threads(threads)
    if settings.model.startswith(HUB):
        settings = settings.model_copy(update={"model": _downloaded(settings.model)})
    elif not settings.model.startswith(LOCAL):
        _check_name(settings.model)
    weights = _weights(settings)
    with failure_is_said(settings.model):
        model = _create(settings, weights)
        if weights is not None:
            _check_all_loaded(model, settings, weights)
        model = fit_for_inference(model, settings.device)
        size = {"input_size": (3, settings.image_size, settings.image_size)}
        data = resolve_data_config(size if settings.image_size else {}, model=model)
        return TorchEmbedder(model, create_transform(**data, is_training=False), settings)


def _downloaded(model: str) -> str:
    repository = model.removeprefix(HUB)
    fetch(repository, "config.json", model=model)
    return f"{LOCAL}{fetch(repository, 'model.safetensors', model=model).parent}"


def _check_name(model: str) -> None:
    name, _, tag = model.partition(".")
    if not timm.is_model(name):
        hint = nearest(name, timm.list_models())
        raise LvdError(f"embedder model {model}: timm knows no model {name!r}{hint}")
    if tag:
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{name}.*")]
        if tag not in tags:
            raise LvdError(
                f"embedder model {model}: timm's {name} has no weights {tag!r}{nearest(tag, tags)}"
                f"; it has {', '.join(sorted(tags)) or 'none'}"
            )


def _weights(settings: EmbedderSettings) -> Path | None:
    """Return the safetensors file to load, or None for random weights."""
    if settings.pretrained is False:
        return None
    if file := given_weights(settings):
        return file
    config = timm.models.get_pretrained_cfg(settings.model)
    if config is None or not config.hf_hub_id:
        raise LvdError(
            f"embedder model {settings.model} has no weights on the hub: name one that has, as "
            "listed by timm.list_pretrained(), or give a .safetensors file as 'pretrained'"
        )
    name = (config.hf_hub_filename or "model.bin").replace("_pytorch_model", "_model")
    return fetch(
        config.hf_hub_id, str(Path(name).with_suffix(".safetensors")), model=settings.model
    )


def _create(settings: EmbedderSettings, weights: Path | None) -> torch.nn.Module:
    def build(**size: int) -> torch.nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            return timm.create_model(
                settings.model,
                pretrained=weights is not None,
                pretrained_cfg_overlay=_only_from(weights) if weights else None,
                num_classes=0,
                **size,
            )

    return _with_size(build, settings.image_size)


def _with_size(build: Callable[..., torch.nn.Module], size: int | None) -> torch.nn.Module:
    """ViTs are built for one size, most convolutional networks take any and have no such option."""
    if size is None:
        return build()
    try:
        return build(img_size=size)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return build()


def _only_from(weights: Path) -> dict:
    """Return the overlay that makes timm read this file and nothing else, as safetensors."""
    return {
        "file": str(weights),
        "source": "file",
        "custom_load": False,
        "hf_hub_id": None,
        "url": "",
    }


def _check_all_loaded(model: torch.nn.Module, settings: EmbedderSettings, weights: Path) -> None:
    """Raise LvdError when weights still have their random start: timm loads what fits, silently."""
    random = _create(settings.model_copy(update={"pretrained": False}), None)
    start = dict(random.named_parameters())
    for name, value in model.named_parameters():
        same = name in start and value.shape == start[name].shape and value.numel() > 1
        if same and bool((value != value.flatten()[0]).any()) and torch.equal(value, start[name]):
            raise LvdError(
                f"embedder model {settings.model}: {weights.name} has no weights for {name!r}; "
                "give the file that belongs to this model"
            )


def _trimmed(image: Image.Image) -> Image.Image:
    """Return the image without the ends of an extreme aspect ratio, which no centre crop keeps."""
    width, height = image.size
    limit = WIDEST_ASPECT * min(width, height)
    if max(width, height) <= limit:
        return image
    left, top = max(0, (width - limit) // 2), max(0, (height - limit) // 2)
    return image.crop((left, top, left + min(width, limit), top + min(height, limit)))
