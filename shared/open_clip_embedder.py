"""Embedders from open_clip: the image tower of any model, by tag, folder, file or seed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import open_clip
import torch
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg, image_transform_v2

from shared.embedders import (
    HUB,
    LOCAL,
    EmbedderSettings,
    failure_is_said,
    given_weights,
    is_weights_file,
)
from shared.errors import LvdError, nearest
from shared.evaluation_transform import EvaluationTransform
from shared.hub import fetch
from shared.timm_embedder import TorchEmbedder, fit_for_inference

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"


def load_open_clip(settings: EmbedderSettings, threads: int) -> TorchEmbedder:
    """Return an open_clip model's image embeddings as an embedder."""
    torch.set_num_threads(threads)
    model, transform = build_open_clip(settings)
    return TorchEmbedder(model.encode_image, transform, settings)


def build_open_clip(settings: EmbedderSettings) -> tuple[torch.nn.Module, EvaluationTransform]:
    """Return an open_clip model of nothing but its `visual` tower, in eval mode, and its transform.

    Raises LvdError where the model or its weights cannot be had.
    """
    if settings.model.startswith(HUB):
        repository = settings.model.removeprefix(HUB)
        fetch(repository, CONFIG, model=settings.model)
        folder = fetch(repository, WEIGHTS, model=settings.model).parent
        settings = settings.model_copy(update={"model": f"{LOCAL}{folder}"})
    elif not settings.model.startswith(LOCAL):
        _check_name(settings.model)
    tag = _tag(settings)
    weights = _weights(settings, tag)
    with failure_is_said(settings.model):
        model = _create(settings, tag, None)
        resized = settings.image_size is not None and isinstance(model.visual, TimmModel)
        if settings.image_size is not None and not resized:
            model = _create(settings, tag, settings.image_size)
        if weights is not None:
            open_clip.load_checkpoint(model, str(weights))
        for name in [name for name, _ in model.named_children() if name != "visual"]:
            delattr(model, name)  # the text tower is half of the memory, and of no use here
        preprocess = PreprocessCfg(**model.visual.preprocess_cfg)
        if resized:  # timm's towers keep the size of their weights until these are there
            model.visual.set_input_size(settings.image_size)
            preprocess = replace(preprocess, size=settings.image_size)
        # Pictures are RGB already: without this step the transform ends as timm's do.
        transform = image_transform_v2(preprocess, is_train=False)
        model = fit_for_inference(model, settings.device)
        return model, EvaluationTransform(transform, settings.model)


def _create(settings: EmbedderSettings, tag: dict, size: int | None) -> torch.nn.Module:
    with _no_warning_of_random_weights(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return open_clip.create_model(
            settings.model,
            load_weights=False,
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


def _tag(settings: EmbedderSettings) -> dict:
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


def _weights(settings: EmbedderSettings, tag: dict) -> Path | None:
    if settings.pretrained is False:
        return None
    if file := given_weights(settings):
        return file
    model = f"{settings.model} ({settings.pretrained})"
    repository, _, name = tag.get("hf_hub", "").rpartition("/")
    if not repository:
        raise LvdError(f"embedder model {model} has no weights on the hub: choose another tag")
    name = str(Path(name).with_suffix(".safetensors")) if name else WEIGHTS
    return fetch(repository, name, model=model)
