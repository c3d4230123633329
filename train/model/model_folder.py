"""Writes a backbone as a model folder that plain timm loads, and that stage one embeds with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from shared.storage.files import dumps, reraise_disk_full, reraise_write_errors, sync, sync_tree
from train.model.backbone import model_arguments
from train.model.settings import ModelSettings

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def write_model_folder(
    state: Mapping[str, Tensor],
    settings: ModelSettings,
    image_size: int,
    folder: Path,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the `state_dict` of a `Backbone`, built for `image_size`, as `folder`, in `dtype`.

    It holds config.json and model.safetensors: `timm.create_model("local-dir:FOLDER",
    pretrained=True)` gives the model, without any code of this project. It is written beside and
    renamed. One that is there gets new weights, in one rename; only where its config is another one
    it is replaced, in two. So a reader never sees half of one.
    """
    weights = {
        name.removeprefix("vit."): value.detach().to("cpu", dtype).contiguous()
        for name, value in state.items()
        if name.startswith("vit.")
    }
    config = dumps(_config(weights, settings, settings.image_size or image_size))
    beside, before = (
        folder.with_name(f".{folder.name}.{what}") for what in (str(os.getpid()), "before")
    )
    with reraise_disk_full(folder.parent), reraise_write_errors():
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(f".{folder.name}.*"):  # by one that was killed
            shutil.rmtree(left)
        try:
            beside.mkdir()
            save_file(weights, beside / WEIGHTS, metadata={"format": "pt"})
            (beside / CONFIG).write_text(config)
            # safetensors writes files that only their owner may read.
            (beside / WEIGHTS).chmod((beside / CONFIG).stat().st_mode)
            sync_tree(beside)
            if (folder / CONFIG).exists() and (folder / CONFIG).read_text() == config:
                (beside / WEIGHTS).replace(folder / WEIGHTS)
                sync(folder)
            else:
                if folder.exists():
                    folder.rename(before)
                beside.rename(folder)
            sync(folder.parent)
        finally:
            for left in (beside, before):
                shutil.rmtree(left, ignore_errors=True)


def _config(weights: Mapping[str, Tensor], settings: ModelSettings, size: int) -> dict[str, Any]:
    return {
        "architecture": settings.name.partition(".")[0],
        "num_classes": 0,
        "num_features": weights["cls_token"].shape[-1],
        "global_pool": "token",
        "model_args": model_arguments(settings, size),
        "pretrained_cfg": {
            "num_classes": 0,
            "input_size": [3, size, size],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": settings.crop_mode,
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
