"""Tiny model folders as timm and open_clip write them."""

import json
from pathlib import Path

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2}


def make_timm_folder(folder: Path, seed: int = 7, labels: tuple[str, ...] = ()) -> Path:
    """Write a ViT of 64 px with random weights, and a classifier of as many classes as labels."""
    import timm
    import torch
    from safetensors.torch import save_file

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(
            "vit_tiny_patch16_224", num_classes=len(labels), img_size=64, **TINY
        )
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": len(labels),
        "model_args": {"img_size": 64, **TINY},
        "pretrained_cfg": {"num_classes": len(labels), "input_size": [3, 64, 64], "crop_pct": 0.9},
    }
    if labels:
        config["label_names"] = labels
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def make_open_clip_folder(folder: Path, seed: int = 3, vocabulary: int = 99) -> Path:
    """Write a CLIP of 64 px with random weights; texts want a `vocabulary` of 49,408."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    text = {"context_length": 8, "vocab_size": vocabulary, "width": 64, "heads": 1, "layers": 1}
    config = {
        "model_cfg": {
            "embed_dim": 24,
            "vision_cfg": {"image_size": 64, "layers": 1, "width": 64, "patch_size": 16},
            "text_cfg": text,
        },
        "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.3]},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder
