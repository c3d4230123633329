"""Reads the backbone that an export is made of, at the size in pixels that is asked for."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from shared.config import validate
from shared.errors import LvdError
from shared.storage.files import read_json
from train.model.backbone import Backbone, build_backbone
from train.model.model_folder import CONFIG, WEIGHTS
from train.model.settings import ModelSettings
from train.persistence.marks import ONE_FILE
from train.weights.trained import Role, find_trained


def read_backbone(
    source: Path, role: Role | None, size: int | None
) -> tuple[dict[str, Tensor], ModelSettings, int, str]:
    """Return the `state_dict` of a `Backbone`, its settings, its image size, and what it is.

    The image size is `size`, for which the position embeddings are resampled as the recipe says (a
    model folder: as timm does), or what they were made for.
    Raises LvdError where the source is torn or foreign, or patches do not divide the size.
    """
    if is_model_folder(source):
        backbone, settings, made_for = _in_folder(source, role)
        name = f"the model of {source}"
    else:
        trained, role = find_trained(source), role or "teacher"
        backbone, settings = trained.network(role).backbone, trained.recipe.model
        made_for = settings.image_size or trained.recipe.crops.global_size
        name = f"the {role} of {trained.checkpoint}"
    state = backbone.state_dict()
    if size is not None:
        if size % backbone.patch:
            raise LvdError(
                f"--size {size}: images of so many pixels cannot be cut in patches of "
                f"{backbone.patch} px: give a multiple of it"
            )
        state["vit.pos_embed"] = backbone.resampled(
            state["vit.pos_embed"], backbone.vit.patch_embed.grid_size, backbone.grid(size, size)
        )
    size = made_for if size is None else size
    return state, settings.model_copy(update={"image_size": size}), size, name


def is_model_folder(source: Path) -> bool:
    """Tell a model folder from a run, a checkpoint and an export with heads."""
    return (source / CONFIG).is_file() and not (source / ONE_FILE).exists()


def _in_folder(folder: Path, role: Role | None) -> tuple[Backbone, ModelSettings, int]:
    """Return the backbone of a model folder as `write_model_folder` makes it, and its image size."""
    if role == "student":
        raise LvdError(
            f"{folder} is a model folder, which holds one network: give the OUT of the run for "
            "--network student"
        )
    try:
        config = read_json(folder / CONFIG)
        arguments = dict(config["model_args"])
        size = int(arguments.pop("img_size"))
        said = {
            "name": config["architecture"],
            "image_size": size,
            "patch_size": arguments.pop("patch_size", None),
            "layer_scale": arguments.pop("init_values", None),
            "crop_mode": config["pretrained_cfg"]["crop_mode"],
        }
        del arguments["dynamic_img_size"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LvdError(
            f"{folder} is no model folder of lvd-train (its {CONFIG} is another program's): give "
            "the OUT of a run, its OUT/model, or one of its OUT/checkpoints/step-... folders"
        ) from error
    settings = validate(ModelSettings, {**said, "options": arguments}, file=folder / CONFIG)
    with torch.device("meta"):
        backbone = build_backbone(settings, image_size=size, masked=False)
    try:
        backbone.vit.load_state_dict(load_file(folder / WEIGHTS), assign=True)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise LvdError(
            f"{folder / WEIGHTS} does not hold what {CONFIG} beside it says "
            f"({' '.join(str(error).split())[:200]}): export it again from its run"
        ) from error
    return backbone, settings, size
