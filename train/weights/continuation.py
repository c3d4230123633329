"""Lets a run go on from another one's networks: a stage with other crops, schedules or data."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from timm.layers import resample_patch_embed
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException

from shared.config import validate
from shared.errors import LvdError
from shared.storage.files import read_json
from train.model.backbone import build_backbone
from train.model.model_folder import CONFIG
from train.model.network import Network
from train.model.settings import ModelSettings
from train.persistence.checkpoints import newest, read_tensors
from train.persistence.marks import MANIFEST, ONE_FILE
from train.weights.init import traits

TABLE = "backbone.vit.pos_embed"
KERNEL = "backbone.vit.patch_embed.proj.weight"


def load_networks(source: Path, networks: Mapping[str, Network]) -> None:
    """Load "student" and "teacher" of a run into `networks`, heads and mask token included.

    `source` is the run's OUT, one of its checkpoints, or an export of the format `heads` or
    `single`. Position embeddings are resampled to the grid of the networks, and patch embeddings
    to their patch size (FlexiViT, arXiv 2212.08013: a patch and its enlargement give one token).
    Raises LvdError where there is no whole checkpoint, or one of another architecture.
    """
    for name, network in networks.items():
        network.load_state_dict(network_weights(source, name, network))


def network_weights(source: Path, name: str, network: Network) -> dict[str, Tensor]:
    """Return the weights of "student" or "teacher" of a run for `network`, whole and on the CPU.

    `source` and errors are those of `load_networks`. `network` may be sharded, or without content.
    """
    path = source
    if (source / "checkpoints").is_dir():
        path = newest(source / "checkpoints") or source
    state, ours = read_network(path, name), network.state_dict()
    _check_architecture(path, network, source)
    if TABLE in state and state[TABLE].shape != ours[TABLE].shape:
        backbone = network.backbone
        embedded = ours[TABLE].shape[1] - backbone.vit.patch_embed.num_patches
        side = isqrt(state[TABLE].shape[1] - embedded)
        grid = backbone.vit.patch_embed.grid_size
        state[TABLE] = backbone.resampled(state[TABLE], (side, side), grid)
    if KERNEL in state:
        state[KERNEL] = resample_patch_embed(state[KERNEL], [network.backbone.patch] * 2)
    check_fit(state, network, f"continue_from {source}: its {name}", "this recipe")
    return state


def check_fit(state: Mapping[str, Tensor], network: Network, theirs: str, ours: str) -> None:
    """Raise LvdError unless `state`, of `theirs`, has names and shapes of `network`, of `ours`."""
    wanted = network.state_dict()
    for key in sorted(state.keys() | wanted.keys()):
        there, here = (tuple(s[key].shape) if key in s else None for s in (state, wanted))
        if there != here:
            raise LvdError(
                f"{theirs} has {key} {there or 'not at all'}, and {ours} {here or 'not at all'}: "
                "use its model and heads settings"
            )


def read_network(path: Path, name: str) -> dict[str, Tensor]:
    """Return the weights of the network `name` of a checkpoint, whole and on the CPU.

    `path` is a step folder, or an export of the format `heads` or `single`. Raises LvdError where
    it is neither, or torn.
    """
    prefix = f"{name}/"
    try:
        if (path / ONE_FILE).is_file():
            tensors = _read_one_file(path / ONE_FILE, prefix)
        else:
            tensors = {
                key: torch.empty(known["shape"], dtype=getattr(torch, known["dtype"]))
                for key, known in read_json(path / MANIFEST)["tensors"].items()
                if key.startswith(prefix)
            }
            read_tensors(path, tensors, together=False)
    except (
        *(OSError, ValueError, KeyError, TypeError, AttributeError),
        *(SafetensorError, CheckpointException),
    ) as error:
        reason = " ".join(str(error).split())[:200]
        if (path / "model.safetensors").is_file():
            reason = "it is a model folder, which has no heads: --init begins with one"
        raise LvdError(
            f"{path} is no whole checkpoint ({reason}): give the OUT of a run, a step-... folder, "
            "or what lvd-train export --format heads or single wrote"
        ) from error
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}


def _read_one_file(file: Path, prefix: str) -> dict[str, Tensor]:
    with safe_open(file, "pt") as saved:
        names = [name for name in saved.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name: saved.get_tensor(name) for name in names}


def _check_architecture(path: Path, network: Network, source: Path) -> None:
    """Raise LvdError where `path` is known to differ in what shapes don't show, as `num_heads`."""
    exported = (path / ONE_FILE).is_file()
    file = path / CONFIG if exported else path.resolve().parent.parent / "run.json"
    if not file.is_file():
        return
    try:
        recipe = read_json(file)["recipe"]
        model, size = recipe["model"], int(recipe["crops"]["global_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LvdError(
            f"continue_from {source}: {file} says nothing of its model: give one that lvd-train "
            "has written"
        ) from error
    settings = validate(ModelSettings, model, file=file, at="recipe.model")
    with torch.device("meta"):
        theirs = build_backbone(settings, image_size=size, masked=False)
    there, here = traits(theirs.vit), traits(network.backbone.vit)
    for name in there:
        if there[name] != here[name]:
            raise LvdError(
                f"continue_from {source}: its model has {name} {there[name]}, and this recipe "
                f"{here[name]}: use its model and heads settings"
            )
