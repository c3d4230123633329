"""Embedders from open_clip: both towers of any model, by tag, folder, file or seed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import open_clip
import torch
from jaxtyping import Float, Float32
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor
from torch.nn.functional import normalize

from shared.embedders.embedder import given_weights, resolve_device, reword_error
from shared.embedders.evaluation_transform import EvaluationTransform
from shared.embedders.hub import at_revision, fetch
from shared.embedders.settings import HUB, LOCAL, EmbedderSettings, is_weights_file
from shared.embedders.timm_embedder import TorchForward, fit_for_inference
from shared.errors import LvdError, nearest

LIBRARIES = ("numpy", "PIL", "torch", "torchvision", "timm", "open_clip")
CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"

Model: TypeAlias = Any
"""What open_clip builds: its classes share `visual` and `encode_image`, but no base with these."""


def load_preparation(settings: EmbedderSettings) -> EvaluationTransform:
    """Return the transform of an open_clip model, which is built without memory for its weights."""
    settings = _located(settings)
    with reword_error(settings.model):
        return _build(settings, "meta")[1]


def load_forward(settings: EmbedderSettings, threads: int) -> TorchForward:
    """Return an open_clip model's image embeddings."""
    torch.set_num_threads(threads)
    settings = resolve_device(settings)
    model, transform = build_open_clip(settings)
    return TorchForward(model.encode_image, transform, settings)


def build_open_clip(settings: EmbedderSettings) -> tuple[Model, EvaluationTransform]:
    """Return an open_clip model of nothing but its `visual` tower, in eval mode, and its transform.

    It is on the device of `resolve_device`. Raises LvdError where the model or its weights cannot
    be had.
    """
    with reword_error(settings.model):
        settings, model, transform = _load(settings)
        for name in [name for name, _ in model.named_children() if name != "visual"]:
            delattr(model, name)  # the text tower is half of the memory, and of no use here
        if settings.image_size is not None and isinstance(model.visual, TimmModel):
            model.visual.set_input_size(settings.image_size)
        return fit_for_inference(model, settings.device), transform


def embed_texts(
    settings: EmbedderSettings, texts: Sequence[str], threads: int
) -> Float32[np.ndarray, "n d"]:
    """Return the L2-normalised vectors of texts by the text tower of an open_clip model.

    They are computed on the processor, in float32. Raises LvdError where the model or its weights
    cannot be had.
    """
    torch.set_num_threads(threads)
    with reword_error(settings.model):
        settings, model, _ = _load(settings)
        return _encode_texts(settings.model, model, texts).numpy()


def zero_shot_weights(
    settings: EmbedderSettings, classes: Sequence[Sequence[str]], threads: int
) -> Float32[np.ndarray, "c d"]:
    """Return the weights of a zero-shot classifier (CLIP, arXiv 2103.00020, section 3.1.4).

    A class is the mean of its texts' L2-normalised vectors, itself normalised, times the model's
    logit scale: the product with an image's unit vector is its logit. SigLIP's bias is the same for
    all classes, so that a softmax does not see it. Computed as `embed_texts` does.
    """
    torch.set_num_threads(threads)
    with reword_error(settings.model):
        settings, model, _ = _load(settings)
        vectors = _encode_texts(
            settings.model, model, [text for texts in classes for text in texts]
        )
        means = [of_class.mean(0) for of_class in vectors.split([len(texts) for texts in classes])]
        scale = model.logit_scale.detach().float().exp()
        found: np.ndarray = (scale * normalize(torch.stack(means), dim=1)).numpy()
        return found


def _encode_texts(name: str, model: Model, texts: Sequence[str]) -> Float[Tensor, "n d"]:
    tokens = open_clip.get_tokenizer(name)(list(texts))
    with torch.inference_mode():
        vectors: Tensor = model.eval().float().encode_text(tokens, normalize=True)
        return vectors


def hub_file(settings: EmbedderSettings) -> tuple[str, str]:
    """Return the hub's repository of a model, with its revision, and the name of a file in it.

    That is the weights', or where these are random the config's. LvdError where there is none.
    """
    if settings.model.startswith(HUB):
        name = CONFIG if settings.pretrained is False else WEIGHTS
        return at_revision(settings.model.removeprefix(HUB), settings.revision), name
    _check_name(settings.model)
    repository, _, name = _tag(settings).get("hf_hub", "").rpartition("/")
    if not repository:
        raise LvdError(
            f"embedder model {settings.model} ({settings.pretrained}) has no weights on the hub: "
            "choose another tag"
        )
    name = str(Path(name).with_suffix(".safetensors")) if name else WEIGHTS
    return at_revision(repository, settings.revision), name


def _load(settings: EmbedderSettings) -> tuple[EmbedderSettings, Model, EvaluationTransform]:
    """Return where a model was found, the model with its weights, whole, and its transform."""
    weights = _weights(settings)
    settings = resolve_device(_located(settings))
    model, transform = _build(settings, "cpu")
    if weights is not None:
        open_clip.load_checkpoint(model, str(weights))
    return settings, model, transform


def _located(settings: EmbedderSettings) -> EmbedderSettings:
    """Return settings whose model is a folder with a config, or a name that open_clip knows."""
    if settings.model.startswith(HUB):
        config = fetch(hub_file(settings)[0], CONFIG, model=settings.model)
        return settings.model_copy(update={"model": f"{LOCAL}{config.parent}"})
    if not settings.model.startswith(LOCAL):
        _check_name(settings.model)
    return settings


def _build(settings: EmbedderSettings, device: str) -> tuple[Model, EvaluationTransform]:
    """Return a model with random weights, and the transform that it has at `image_size`."""
    model, size = _create(settings, None, device), settings.image_size
    resized = size is not None and isinstance(model.visual, TimmModel)
    if size is not None and not resized:
        model = _create(settings, size, device)
    preprocess = PreprocessCfg(**model.visual.preprocess_cfg)
    if resized:  # timm's towers keep the size of their weights until these are there
        preprocess = replace(preprocess, size=size)
    # Pictures are RGB already: without this step the transform ends as timm's do.
    transform = image_transform_v2(preprocess, is_train=False)
    return model, EvaluationTransform(transform, settings.model, settings.decode)


def _create(settings: EmbedderSettings, size: int | None, device: str) -> Model:
    tag = _tag(settings)
    with (
        _no_warning_of_random_weights(),
        torch.random.fork_rng(devices=[]),
        torch.device(device),
    ):
        torch.manual_seed(settings.seed)
        return open_clip.create_model(
            settings.model,
            load_weights=False,
            device=device,
            pretrained_text=False,
            force_quick_gelu=bool(tag.get("quick_gelu")),
            force_image_size=size,
            force_preprocess_cfg=tag,
        )


@contextmanager
def _no_warning_of_random_weights() -> Iterator[None]:
    """Keep open_clip from warning that no weights are loaded while it only builds the model."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _check_name(model: str) -> None:
    names = open_clip.list_models()
    if model not in names:
        raise LvdError(
            f"embedder model {model}: open_clip knows no model {model!r}{nearest(model, names)}"
        )


def _tag(settings: EmbedderSettings) -> dict[str, Any]:
    """Return open_clip's entry for the tag; empty for files, folders and random weights."""
    if not isinstance(settings.pretrained, str) or is_weights_file(settings.pretrained):
        return {}
    tag = open_clip.get_pretrained_cfg(settings.model, settings.pretrained)
    if not tag:
        tags = open_clip.list_pretrained_tags_by_model(settings.model)
        raise LvdError(
            f"embedder model {settings.model}: open_clip has no weights {settings.pretrained!r} "
            f"for it{nearest(settings.pretrained, tags)}; it has {', '.join(tags) or 'none'}"
        )
    return tag


def _weights(settings: EmbedderSettings) -> Path | None:
    if settings.pretrained is False:
        return None
    return given_weights(settings) or fetch(*hub_file(settings), model=settings.model)
