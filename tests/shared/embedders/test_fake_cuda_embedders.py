"""Embedders as on a card: pixels go there, vectors come back, and nothing meets on the way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from fake_card import FakeCard, fake_card, on_card
from PIL import Image
from safetensors.torch import save_file

from shared.embedders.embedder import load, resolve_device
from shared.embedders.open_clip_embedder import build_open_clip
from shared.embedders.settings import EmbedderSettings, bundled_settings
from shared.embedders.timm_embedder import build_timm

TEXT = {"context_length": 8, "vocab_size": 99, "width": 64, "heads": 1, "layers": 1}
TOWERS = {
    "clip": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "clip, convolutional": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16},
    "clip of timm": {"timm_model_name": "test_vit", "timm_pool": "", "image_size": 160},
}


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCard]:
    monkeypatch.setattr("shared.embedders.embedder._torch_sees_gpu", lambda: True)
    with fake_card() as card:
        yield card


def of_timm(name: str, **settings: object) -> EmbedderSettings:
    return EmbedderSettings(kind="timm", model=name, pretrained=False, **settings)


def clip_folder(folder: Path, vision: dict) -> EmbedderSettings:
    """Write a small open_clip model with random weights, and return its settings."""
    model = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT}
    if "timm_model_name" in vision:
        model["custom_text"] = True
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.3]}
    config = {"model_cfg": model, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    network = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    return EmbedderSettings(kind="open_clip", model=f"local-dir:{folder}")


def embed(settings: EmbedderSettings, card: FakeCard) -> np.ndarray:
    """Return the vectors of three pictures, by way of all that stage one calls."""
    embedder = load(settings, threads=1)
    card.reads.clear()
    card.pageable.clear()
    pictures = [Image.new("RGB", (90, 70), (n, 50, 99)) for n in range(3)]
    vectors = embedder.embed([embedder.prepare(picture) for picture in pictures])
    assert vectors.shape == (3, embedder.dim)
    assert vectors.dtype == np.float32
    assert not card.pageable
    assert sum(card.reads.values()) == 1, "the vectors of a batch come back in one copy"
    return vectors


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext", "test_efficientnet"])
@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_a_model_of_timm_embeds_on_the_card(card: FakeCard, name: str, precision: str) -> None:
    settings = of_timm(name, precision=precision)
    found = resolve_device(settings)
    assert found.device == "cuda"
    assert found.precision == ("float16" if precision == "auto" else precision)
    embed(settings, card)


@pytest.mark.parametrize("tower", TOWERS)
def test_a_model_of_open_clip_embeds_on_the_card(
    card: FakeCard, tmp_path: Path, tower: str
) -> None:
    settings = clip_folder(tmp_path, TOWERS[tower])
    embed(settings, card)
    model, _ = build_open_clip(resolve_device(settings))
    assert on_card(model)


def test_the_bundled_model_embeds_on_the_card(card: FakeCard) -> None:
    embed(bundled_settings(), card)
    model, transform = build_timm(resolve_device(bundled_settings()))
    assert on_card(model)
    pixels = torch.zeros(2, 3, *transform.size, dtype=torch.uint8, device="cuda")
    assert model(transform.normalised(pixels)).dtype == torch.float32


def test_the_descriptor_needs_no_card(card: FakeCard) -> None:
    embedder = load(EmbedderSettings(kind="descriptor"), threads=1)
    vectors = embedder.embed([embedder.prepare(Image.new("RGB", (64, 64), "red"))])
    assert vectors.shape == (1, embedder.dim)
    assert card.reads == {}
