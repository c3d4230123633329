"""Starts a backbone from given weights: a model folder, or timm's weights on the hub."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import resample_patch_embed
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from shared.embedders.embedder import settings_for_folder
from shared.embedders.hub import fetch
from shared.embedders.settings import BUNDLED, LOCAL
from shared.errors import LvdError, nearest
from train.model.backbone import Backbone
from train.model.model_folder import WEIGHTS
from train.model.network import Network

HUB = "timm:"


def load_backbone(network: Network, source: str) -> None:
    """Load weights into the backbone of `network`; heads and mask token stay as they are.

    `source` and errors are those of `backbone_weights`.
    """
    network.backbone.vit.load_state_dict(backbone_weights(network.backbone, source))


def backbone_weights(backbone: Backbone, source: str) -> dict[str, Tensor]:
    """Return weights for the `vit` of a backbone, which may be on the device `meta`, on the CPU.

    `source` is a model folder (config.json and model.safetensors), a bundled model's name, or
    `timm:NAME` for the weights that timm has on the hub. Position embeddings and patch embedding are resampled to
    the sizes of the network. Raises LvdError where weights are missing or of another architecture.
    """
    if source.startswith(HUB):
        name = source.removeprefix(HUB)
        file = _downloaded(name, source)
    else:
        name, file = _in_folder(BUNDLED.get(source) or Path(source).expanduser())
    try:
        with torch.device("meta"):
            donor = timm.create_model(name, num_classes=0)
    except (KeyError, TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise LvdError(
            f"--init {source}: timm cannot build what its config describes ({_line(error)}); give "
            "a folder as lvd-train writes it"
        ) from error
    if not isinstance(donor, VisionTransformer):
        raise LvdError(
            f"--init {source} is a {type(donor).__name__}, no Vision Transformer of timm"
        )
    _check_same_architecture(donor, backbone.vit, source)
    try:
        weights = load_file(file)
    except (SafetensorError, OSError) as error:
        raise LvdError(f"--init {source}: {file} cannot be read ({_line(error)})") from error
    state = _fitted(checkpoint_filter_fn(weights, donor), donor, backbone)
    _check_complete(state, backbone.vit.state_dict(), source)
    return state


def _in_folder(folder: Path) -> tuple[str, Path]:
    if not folder.exists() and timm.is_model(folder.name.partition(".")[0]):
        raise LvdError(f"--init {folder}: no such folder; say {HUB}{folder} for timm's weights")
    if settings_for_folder(folder).kind != "timm":
        raise LvdError(f"--init {folder} holds an open_clip model: give a folder of a timm model")
    return f"{LOCAL}{folder}", folder / WEIGHTS


def _downloaded(name: str, source: str) -> Path:
    """Return the local path of the hub's weights, from the cache if they are there."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        hint = nearest(architecture, timm.list_models("*vit*"))
        raise LvdError(f"--init {source}: timm has no model {architecture!r}{hint}")
    known = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    given = bool(known) and (not tag or tag in known)
    config = timm.models.get_pretrained_cfg(name) if given else None
    repository = None if config is None else config.hf_hub_id
    if repository is None:
        raise LvdError(
            f"--init {source}: the hub has no such weights; of {architecture} timm knows "
            f"{', '.join(known) or 'none'}"
        )
    try:
        return fetch(repository, WEIGHTS, model=source)
    except LvdError as error:
        reason = str(error).removeprefix("embedder ").partition(";")[0]  # its remedy is stage one's
        raise LvdError(
            f"--init: {reason}; set HF_HOME to a cache that holds its weights, or give a model "
            "folder"
        ) from error


def _check_same_architecture(
    theirs: VisionTransformer, ours: VisionTransformer, source: str
) -> None:
    """Raise LvdError that names what differs, of what shapes show and of what they don't."""
    there, here = traits(theirs), traits(ours)
    differing = [
        f"{name} {there[name]}, not {here[name]}" for name in here if there[name] != here[name]
    ]
    if differing:
        raise LvdError(
            f"--init {source} is another architecture than model.name and model.options say: it "
            f"has {'; '.join(differing)}"
        )


def traits(vit: VisionTransformer) -> dict[str, object]:
    """Return what makes two networks compute different things, shown by weights' shapes or not."""
    block = vit.blocks[0]
    return {
        "embed_dim": vit.embed_dim,
        "depth": len(vit.blocks),
        "num_heads": getattr(block.attn, "num_heads", None),
        "reg_tokens": vit.num_reg_tokens,
        "no_embed_class": vit.no_embed_class,
        "LayerScale": hasattr(block.ls1, "gamma"),
        "the feed-forward": type(block.mlp).__name__,
        "the activation": type(getattr(block.mlp, "act", None)).__name__,
        "the norms' epsilon": getattr(block.norm1, "eps", None),
    }


def _fitted(
    state: dict[str, Tensor], donor: VisionTransformer, backbone: Backbone
) -> dict[str, Tensor]:
    """Return the weights without a classifier, resampled to the backbone's grid and patches."""
    fitted = {name: value for name, value in state.items() if not name.startswith("head.")}
    if (table := fitted.get("pos_embed")) is not None:
        fitted["pos_embed"] = backbone.resampled(
            table, donor.patch_embed.grid_size, backbone.vit.patch_embed.grid_size
        )
    if (kernel := fitted.get("patch_embed.proj.weight")) is not None:
        fitted["patch_embed.proj.weight"] = resample_patch_embed(kernel, [backbone.patch] * 2)
    return fitted


def _check_complete(theirs: dict[str, Tensor], ours: dict[str, Tensor], source: str) -> None:
    for name in sorted(theirs.keys() | ours.keys()):
        there, here = (
            f"of shape {tuple(state[name].shape)}" if name in state else "not there"
            for state in (theirs, ours)
        )
        if there != here:
            raise LvdError(
                f"--init {source} does not fit the model: {name} is {there} and must be {here}; "
                "correct model.name and model.options, or give other weights"
            )


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
