"""Model folders and a run's OUT with networks so small that tests can look through them."""

import json
from pathlib import Path

import open_clip
import timm
import torch
from safetensors.torch import save_file

from train.distributed.ranks import Ranks
from train.model.network import make_teacher
from train.persistence.checkpoints import save
from train.persistence.run_folder import RunFolder
from train.recipe import Recipe
from train.student import new_network

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
REGISTERS = TINY | {"reg_tokens": 2, "init_values": 0.5}


def timm_folder(folder: Path, name: str = "vit_tiny_patch16_224", seed: int = 7, **options) -> Path:
    """Write a model of timm with random weights, which its config wants at 32 px."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(name, num_classes=0, **options)
        for parameter in model.parameters():  # zeros, ones and small values would hide mistakes
            torch.nn.init.normal_(parameter, std=0.2)
    save_file(model.state_dict(), folder / "model.safetensors")
    known = {"num_classes": 0, "input_size": [3, 32, 32], "crop_pct": 0.8}
    known |= {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "interpolation": "bilinear"}
    config = {"architecture": name, "num_classes": 0, "model_args": options}
    (folder / "config.json").write_text(json.dumps(config | {"pretrained_cfg": known}))
    return folder


def clip_folder(folder: Path, seed: int = 3, **vision) -> Path:
    """Write a model of open_clip with random weights, for 32 px unless `vision` says otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    text = {"context_length": 8, "vocab_size": 99, "width": 64, "heads": 1, "layers": 1}
    config = {
        "model_cfg": {
            "embed_dim": 20,
            "vision_cfg": {"image_size": 32, **vision},
            "text_cfg": text,
        },
        "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.3]},
    }
    if "timm_model_name" in vision:
        config["model_cfg"]["custom_text"] = True
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


WITH_TOKENS = (
    *("run", "vit", "vit, average", "eva", "beit", "clip", "clip of timm"),
    *("untrained", "bundled"),
)
"""The kinds of `write_models` that have CLS and patch tokens."""


def write_models(root: Path) -> dict[str, str]:
    """Write a model of each kind that evaluation reads, and return their names by kind."""
    from small_run import RECIPE

    odd_heads = TINY | {"num_heads": 3}
    without_cls = TINY | {"class_token": False, "global_pool": "avg"}
    of_timm = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"}
    folders = {
        "run": run_folder(root / "run", RECIPE),
        "vit": timm_folder(root / "vit", **REGISTERS),
        "vit, average": timm_folder(root / "average", **TINY, global_pool="avg"),
        "eva": timm_folder(root / "eva", "eva02_tiny_patch14_224", **odd_heads),
        "beit": timm_folder(root / "beit", "beit_base_patch16_224", **TINY),
        "clip": clip_folder(root / "clip", layers=2, width=64, patch_size=8),
        "clip of timm": clip_folder(root / "clip-timm", **of_timm, image_size=160),
        "vit without CLS": timm_folder(root / "patches", **without_cls),
        "convolutional": timm_folder(root / "convolutional", "test_resnet"),
        "clip, convolutional": clip_folder(root / "rn", layers=[1, 1, 1, 1], width=16),
    }
    (folders["run"] / "model").mkdir()
    others = {"untrained": "untrained:test_vit", "bundled": "bundled", "pixels": "pixels"}
    return {kind: str(folder) for kind, folder in folders.items()} | others


def run_folder(out: Path, recipe: dict) -> Path:
    """Write the OUT of a run of `recipe` that has taken no step yet; student and teacher differ."""
    validated = Recipe.model_validate(recipe)
    run = RunFolder(out)
    out.mkdir()
    run.begin(validated, "images", 1)
    student = new_network(validated)
    teacher = make_teacher(student)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for parameter in teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    state = {"student": dict(student.state_dict()), "teacher": dict(teacher.state_dict())}
    save(run.checkpoints, 5, state, 1, Ranks(0, 1, 0, torch.device("cpu")))
    return out
