"""Embedders on a card give the CPU's vectors, to the rounding of their precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from shared.embedders.embedder import load
from shared.embedders.settings import EmbedderSettings, bundled_settings

pytestmark = pytest.mark.gpu

MODELS = {
    "ViT": EmbedderSettings(kind="timm", model="test_vit", pretrained=False),
    "convolutional": EmbedderSettings(kind="timm", model="test_resnet", pretrained=False),
    "bundled": bundled_settings(),
}


def vectors(settings: EmbedderSettings, device: str, precision: str) -> np.ndarray:
    embedder = load(
        settings.model_copy(update={"device": device, "precision": precision}),
        threads=torch.get_num_threads(),
    )
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)
    pictures = [Image.fromarray(c).resize((200, 160), Image.Resampling.BICUBIC) for c in coarse]
    return embedder.embed([embedder.prepare(picture) for picture in pictures])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("precision", "least"), [("float32", 0.9999), ("float16", 0.999), ("bfloat16", 0.995)]
)
def test_vectors_are_those_of_the_cpu(
    device: torch.device, model: str, precision: str, least: float
) -> None:
    ours = vectors(MODELS[model], device.type, precision)
    theirs = vectors(MODELS[model], "cpu", "float32")
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, rtol=1e-5)
    assert (ours * theirs).sum(axis=1).min() > least
