"""Loads any model by name, frozen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import open_clip
import timm
import torch
from jaxtyping import Float
from timm.data import resolve_data_config
from torch import Tensor, nn

from shared.embedders.embedder import identity, resolve_device
from shared.embedders.evaluation_transform import EvaluationTransform, square
from shared.embedders.settings import HUB, LOCAL, EmbedderSettings
from shared.errors import LvdError
from train.frozen.model import FrozenModel, JoinedModel, Needs
from train.frozen.names import ModelName, parse_names
from train.frozen.towers import Tokens, patch_and_registers, pooling_of

if TYPE_CHECKING:
    from train.model.backbone import Backbone

SIZES = range(16, 4097)
PIXELS_SIDE = 32
"""Of the baseline that looks at raw pixels: 3,072 of them."""


def load_models(
    names: Sequence[str],
    *,
    size: int | None = None,
    precision: str = "auto",
    device: str = "auto",
    seed: int = 0,
) -> list[JoinedModel]:
    """Return the models of these names, each once; `seed` is that of untrained ones.

    A name is a model folder; the OUT of a run of ours or one of its step folders (the teacher);
    `bundled` or `bundled-copies`; a name of timm's (`timm:NAME` too), `hf-hub:OWNER/NAME`;
    open_clip's `ARCH:TAG` (or `open_clip:ARCH:TAG`); `pixels`; `untrained:NAME`, the same network
    with random weights; or several of them joined with `+`. `size` in pixels stands for the models' own. Raises LvdError,
    in one line, where one cannot be had.
    """
    if size is not None and size not in SIZES:
        raise LvdError(f"--size {size}: give {SIZES[0]} to {SIZES[-1]} px")
    settings = EmbedderSettings(
        kind="timm", model="any", precision=precision, device=device, image_size=size, seed=seed
    )
    settings = resolve_device(settings)
    loaded: dict[str, FrozenModel] = {}
    joined = []
    for name in dict.fromkeys(names):
        parts = parse_names(name)
        for part in parts:
            if part.given not in loaded:
                loaded[part.given] = _load(part, settings)
        joined.append(JoinedModel(name, [loaded[part.given] for part in parts]))
    return joined


def _load(name: ModelName, settings: EmbedderSettings) -> FrozenModel:
    """Return the model; of the settings, size, device, precision and seed hold.

    Raises LvdError, in one line, where it cannot be had.
    """
    load = {"timm": _timm, "open_clip": _open_clip, "trained": _ours, "pixels": _pixels}[name.kind]
    try:
        return load(name, settings)
    except LvdError as error:
        raise _said_of(name, error) from error


def _timm(name: ModelName, settings: EmbedderSettings) -> FrozenModel:
    from shared.embedders.timm_embedder import build_timm

    if not timm.is_model(name.model.partition(".")[0]) and name.model in open_clip.list_models():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name.model))
        raise LvdError(f"it is a model of open_clip: say {name.model}:TAG, of {tags}")
    settings = settings.model_copy(update={"model": name.model, "pretrained": name.trained})
    module, transform = build_timm(settings, dynamic_img_size=True)
    config = resolve_data_config(model=module)
    needs = _needs(module, transform, config["interpolation"], config["crop_pct"])
    return FrozenModel(name.given, module, transform, needs, settings, identity(settings))


def _open_clip(name: ModelName, settings: EmbedderSettings) -> FrozenModel:
    from shared.embedders.open_clip_embedder import build_open_clip

    own_weights = name.model.startswith((LOCAL, HUB))
    pretrained = name.trained and (True if own_weights else name.tag or "")
    settings = settings.model_copy(
        update={"kind": "open_clip", "model": name.model, "pretrained": pretrained}
    )
    model, transform = build_open_clip(settings)
    config = model.visual.preprocess_cfg
    needs = _needs(model.visual, transform, config["interpolation"], 1.0)
    return FrozenModel(name.given, model.visual, transform, needs, settings, identity(settings))


def _ours(name: ModelName, settings: EmbedderSettings) -> FrozenModel:
    """Return a run's teacher, its position embeddings resampled as the recipe says."""
    from shared.embedders.timm_embedder import fit_for_inference
    from train.model.backbone import build_backbone
    from train.weights.trained import find_trained

    trained = find_trained(Path(name.model))
    model = trained.recipe.model
    size = model.image_size or trained.recipe.crops.global_size
    if name.trained:
        backbone = trained.network("teacher").backbone
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            backbone = build_backbone(model, image_size=size, masked=False)
    if settings.image_size not in (None, size):
        size = settings.image_size
        _check_divides(backbone.patch, size)
        _resize(backbone, size)
    module, transform = (
        fit_for_inference(backbone.vit, settings.device),
        square(size, model.crop_mode),
    )
    needs = _needs(module, transform, "bicubic", 1.0)
    about = {"kind": "trained", "model": model.model_dump(mode="json")}
    return FrozenModel(name.given, module, transform, needs, settings, about)


def _pixels(name: ModelName, settings: EmbedderSettings) -> FrozenModel:
    def flattened(images: Float[Tensor, "n 3 h w"], blocks: int) -> Tokens:
        return Tokens(images.flatten(1), None, None)

    settings = settings.model_copy(update={"precision": "float32"})
    module, transform = nn.Identity(), square(PIXELS_SIDE)
    needs = _needs(module, transform, "bicubic", 1.0, pooling="pixels")
    return FrozenModel(name.given, module, transform, needs, settings, "pixels", flattened)


def _needs(
    module: nn.Module,
    transform: EvaluationTransform,
    interpolation: str,
    crop: float,
    pooling: str | None = None,
) -> Needs:
    height, width = transform.size
    if height != width:
        raise LvdError(f"it takes images of {height} x {width} px, and only squares are read here")
    patch, registers = patch_and_registers(module)
    if patch:
        _check_divides(patch, height)
    return Needs(
        size=height,
        mean=transform.mean,
        std=transform.std,
        interpolation=interpolation,
        crop=crop,
        pooling=pooling or pooling_of(module),
        patch=patch,
        registers=registers,
    )


def _check_divides(patch: int, size: int) -> None:
    if size % patch:
        raise LvdError(
            f"{size} x {size} px cannot be cut in patches of {patch} px: give a --size that is a "
            "multiple of it"
        )


def _resize(backbone: Backbone, size: int) -> None:
    """Make a backbone one for images of `size` pixels, which its patches divide."""
    vit = backbone.vit
    table = backbone.resampled(
        backbone.positions, vit.patch_embed.grid_size, backbone.grid(size, size)
    )
    vit.set_input_size(img_size=(size, size))
    vit.pos_embed = nn.Parameter(table, requires_grad=False)


def _said_of(name: ModelName, error: LvdError) -> LvdError:
    """Return an error in the words of `--model`: embedders are what stage one calls these."""
    reason = str(error).removeprefix("embedder model ")
    reason, _, remedy = reason.partition("; set HF_HOME")
    if remedy:
        reason += "; set HF_HOME to a cache that holds it, or give a model folder"
    return LvdError(
        f"--model {reason}" if name.given in reason else f"--model {name.given}: {reason}"
    )
