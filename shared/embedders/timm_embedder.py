"""Embedders from timm, with weights from the hub, a folder, a file or a seed.

`TorchForward`, the forward pass behind an evaluation transform, serves open_clip's models too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from jaxtyping import Float, Float32, UInt8
from timm.data import create_transform, resolve_data_config
from timm.models._hub import load_model_config_from_path
from torch import Tensor
from torch.nn.functional import normalize, softmax

from shared.embedders.batches import BatchedForward, DeviceMemoryError
from shared.embedders.embedder import given_weights, local_folder, resolve_device, reword_error
from shared.embedders.evaluation_transform import EvaluationTransform
from shared.embedders.hub import at_revision, fetch
from shared.embedders.settings import HUB, LOCAL, EmbedderSettings, in_folder
from shared.errors import LvdError, nearest
from shared.send import send

LIBRARIES = ("numpy", "PIL", "torch", "torchvision", "timm")
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
UNLIKELY_SEED = 0x10AD_ED
"""Of the weights that are there before those of a file are loaded."""


class TorchForward(BatchedForward):
    """A model's encoder, behind the scaling and normalising half of its evaluation transform."""

    def __init__(
        self,
        encode: Callable[[Float[Tensor, "n 3 h w"]], Float[Tensor, "n d"]],
        transform: EvaluationTransform,
        settings: EmbedderSettings,
    ) -> None:
        """Take device and precision from settings in which these are decided."""
        super().__init__(str(settings.model))
        self._encode = encode
        self._transform = transform
        self._device = settings.device
        self._precision = getattr(torch, settings.precision)
        self._finish = partial(softmax if settings.task == "classify" else normalize, dim=1)
        self.dim = self.encode(np.zeros((1, *transform.size, 3), np.uint8)).shape[1]

    def encode(self, pixels: UInt8[np.ndarray, "n h w 3"]) -> Float32[np.ndarray, "n d"]:
        """Return what `embed` returns of a batch; raise DeviceMemoryError where it has no room."""
        reduced = self._precision != torch.float32
        try:
            with (
                torch.inference_mode(),
                torch.autocast(self._device, self._precision, enabled=reduced),
            ):
                images = send(torch.from_numpy(pixels), self._device)
                # Read as [n, 3, h, w], this is channels-last memory: convnets gain 1.3 times.
                images = self._transform.normalised(images.permute(0, 3, 1, 2))
                return self._finish(self._encode(images).float()).cpu().numpy()
        except torch.cuda.OutOfMemoryError as error:
            raise DeviceMemoryError(" ".join(str(error).split())[:150]) from None


def fit_for_inference(model: torch.nn.Module, device: str) -> torch.nn.Module:
    """Return the model in eval mode on `device`, in channels-last memory."""
    try:
        return model.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:150]
        raise LvdError(
            f"the embedder cannot use device {device} ({reason}): set device=cpu"
        ) from None


def load_preparation(settings: EmbedderSettings) -> EvaluationTransform:
    """Return a timm model's own evaluation transform."""
    return _transform(_located(settings))


def load_forward(settings: EmbedderSettings, threads: int) -> TorchForward:
    """Return a timm model's pooled features, or its classifier, as the settings' `task` says."""
    torch.set_num_threads(threads)
    settings = resolve_device(settings)
    return TorchForward(*build_timm(settings), settings)


def build_timm(
    settings: EmbedderSettings, **options: object
) -> tuple[torch.nn.Module, EvaluationTransform]:
    """Return a timm model in eval mode, without classifier unless that is its task, and its own
    evaluation transform.

    It is on the device of `resolve_device`. Each of `options`, arguments of `timm.create_model`, is
    given where the model has it. Raises LvdError where the model or its weights cannot be had.
    """
    weights = _weights(settings)
    settings = resolve_device(_located(settings))
    with reword_error(settings.model):
        model = _create(settings, weights, options)
        if settings.task == "classify" and not model.num_classes:
            raise LvdError(
                f"embedder model {settings.model} has no classifier: name a model with num_classes, "
                "or leave out task"
            )
        if weights is not None:
            _check_all_loaded(model, _create(settings, None, options), settings, weights)
        return fit_for_inference(model, settings.device), _transform(settings)


def hub_file(settings: EmbedderSettings) -> tuple[str, str]:
    """Return the hub's repository of a model, with its revision, and the name of a file in it.

    That is the weights', or where these are random the config's. LvdError where there is none.
    """
    if settings.model.startswith(HUB):
        name = CONFIG if settings.pretrained is False else WEIGHTS
        return at_revision(settings.model.removeprefix(HUB), settings.revision), name
    _check_name(settings.model)
    config = timm.models.get_pretrained_cfg(settings.model)
    if config is None or not config.hf_hub_id:
        raise LvdError(
            f"embedder model {settings.model} has no weights on the hub: name one that has, as "
            "listed by timm.list_pretrained(), or give a .safetensors file as 'pretrained'"
        )
    name = (config.hf_hub_filename or "model.bin").replace("_pytorch_model", "_model")
    name = str(Path(name).with_suffix(".safetensors"))
    return at_revision(config.hf_hub_id, settings.revision), name


def _located(settings: EmbedderSettings) -> EmbedderSettings:
    """Return settings whose model is a folder with a config.json, or a name that timm knows."""
    if settings.model.startswith(HUB):
        config = fetch(hub_file(settings)[0], CONFIG, model=settings.model)
        return settings.model_copy(update={"model": f"{LOCAL}{config.parent}"})
    if in_folder(settings):
        return settings.model_copy(update={"model": f"{LOCAL}{local_folder(settings)}"})
    _check_name(settings.model)
    return settings


def label_names(settings: EmbedderSettings) -> list[str]:
    """Return the names of a classifier's classes, in their order; empty where its config has none."""
    with reword_error(settings.model):
        return list(_known(_located(settings)).get("label_names") or [])


def _known(settings: EmbedderSettings) -> dict[str, Any]:
    """Return what timm knows of a model in a folder or by name: its `pretrained_cfg`."""
    if settings.model.startswith(LOCAL):
        config, name, _ = load_model_config_from_path(settings.model.removeprefix(LOCAL))
    else:
        config, name = None, settings.model
    known: dict[str, Any] = timm.models.resolve_pretrained_cfg(name, config).to_dict()
    return known


def _transform(settings: EmbedderSettings) -> EvaluationTransform:
    """Return what timm makes of the model's data config, without building the model."""
    with reword_error(settings.model):
        known = _known(settings)
        size = {"input_size": (3, settings.image_size, settings.image_size)}
        data = resolve_data_config(size if settings.image_size else {}, pretrained_cfg=known)
        transform = create_transform(**data, is_training=False)
        return EvaluationTransform(transform, settings.model, settings.decode)


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
    return fetch(*hub_file(settings), model=settings.model)


def _create(
    settings: EmbedderSettings, weights: Path | None, options: Mapping[str, object]
) -> torch.nn.Module:
    def build(**given: Any) -> torch.nn.Module:
        with torch.random.fork_rng(devices=[]):
            # What stays as it was made is found by `_check_all_loaded`: so no seed that others use.
            torch.manual_seed(settings.seed if settings.pretrained is False else UNLIKELY_SEED)
            return timm.create_model(
                settings.model,
                pretrained=weights is not None,
                pretrained_cfg_overlay=_only_from(weights) if weights else None,
                **given,
            )

    size = {"img_size": settings.image_size} if settings.image_size else {}
    classes = {} if settings.task == "classify" else {"num_classes": 0}
    return _with_what_it_takes(build, {**size, **classes, **options})


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


def _only_from(weights: Path) -> dict[str, Any]:
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
