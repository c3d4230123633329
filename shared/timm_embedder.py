"""Embedders from timm, with weights from the hub, a folder, a file or a seed.

`TorchEmbedder`, the forward pass behind an evaluation transform, serves open_clip's models too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch.nn.functional import normalize

from shared.embedders import (
    HUB,
    LOCAL,
    EmbedderSettings,
    failure_is_said,
    given_weights,
    in_folder,
    local_folder,
)
from shared.errors import LvdError, nearest
from shared.evaluation_transform import EvaluationTransform
from shared.hub import fetch

UNLIKELY_SEED = 0x10AD_ED
"""Of the weights that are there before those of a file are loaded."""


class TorchEmbedder:
    """A model's encoder behind the model's own evaluation transform.

    The transform is split: resizing and cropping happen in `prepare`, on many threads; scaling and
    normalising happen in `embed`, on the batch, with the same float32 values.
    """

    def __init__(
        self,
        encode: Callable[[torch.Tensor], torch.Tensor],
        transform: EvaluationTransform,
        settings: EmbedderSettings,
    ) -> None:
        self._encode = encode
        self._transform = transform
        self._device = settings.device
        self._precision = getattr(torch, settings.precision)
        self.dim = self.embed([np.zeros((*transform.size, 3), np.uint8)]).shape[1]
        self.input_side = transform.input_side
        self.reduce_to = transform.reduce_to if settings.decode == "reduced" else None

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Return the resized and cropped pixels, uint8 [height, width, 3]."""
        return self._transform.prepare(image)

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
            features = self._encode(self._transform.normalised(pixels))
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
    model, transform = build_timm(settings)
    return TorchEmbedder(model, transform, settings)


def build_timm(
    settings: EmbedderSettings, **options: object
) -> tuple[torch.nn.Module, EvaluationTransform]:
    """Return a timm model without classifier, in eval mode, and its own evaluation transform.

    Each of `options`, arguments of `timm.create_model`, is given where the model has it. Raises
    LvdError where the model or its weights cannot be had.
    """
    if settings.model.startswith(HUB):
        settings = settings.model_copy(update={"model": _downloaded(settings.model)})
    elif in_folder(settings):
        settings = settings.model_copy(update={"model": f"{LOCAL}{local_folder(settings)}"})
    else:
        _check_name(settings.model)
    weights = _weights(settings)
    with failure_is_said(settings.model):
        model = _create(settings, weights, options)
        if weights is not None:
            _check_all_loaded(model, _create(settings, None, options), settings, weights)
        model = fit_for_inference(model, settings.device)
        size = {"input_size": (3, settings.image_size, settings.image_size)}
        data = resolve_data_config(size if settings.image_size else {}, model=model)
        transform = create_transform(**data, is_training=False)
        return model, EvaluationTransform(transform, settings.model)


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


def _create(
    settings: EmbedderSettings, weights: Path | None, options: Mapping[str, object]
) -> torch.nn.Module:
    def build(**given: object) -> torch.nn.Module:
        with torch.random.fork_rng(devices=[]):
            # What stays as it was made is found by `_check_all_loaded`: so no seed that others use.
            torch.manual_seed(settings.seed if settings.pretrained is False else UNLIKELY_SEED)
            return timm.create_model(
                settings.model,
                pretrained=weights is not None,
                pretrained_cfg_overlay=_only_from(weights) if weights else None,
                num_classes=0,
                **given,
            )

    size = {"img_size": settings.image_size} if settings.image_size else {}
    return _with_what_it_takes(build, {**size, **options})


def _with_what_it_takes(
    build: Callable[..., torch.nn.Module], options: Mapping[str, object]
) -> torch.nn.Module:
    """ViTs are built for one size, most convolutional networks take any and have no such option."""
    try:
        return build(**options)
    except TypeError as error:
        unknown = next((name for name in options if f"'{name}'" in str(error)), None)
        if unknown is None:
            raise
        return _with_what_it_takes(build, {k: v for k, v in options.items() if k != unknown})


def _only_from(weights: Path) -> dict:
    """Return the overlay that makes timm read this file and nothing else, as safetensors."""
    return {
        "file": str(weights),
        "source": "file",
        "custom_load": False,
        "hf_hub_id": None,
        "url": "",
    }


def _check_all_loaded(
    model: torch.nn.Module, random: torch.nn.Module, settings: EmbedderSettings, weights: Path
) -> None:
    """Raise LvdError when weights still have their random start: timm loads what fits, silently."""
    start = dict(random.named_parameters())
    for name, value in model.named_parameters():
        same = name in start and value.shape == start[name].shape and value.numel() > 1
        if same and bool((value != value.flatten()[0]).any()) and torch.equal(value, start[name]):
            raise LvdError(
                f"embedder model {settings.model}: {weights.name} has no weights for {name!r}; "
                "give the file that belongs to this model"
            )
