import json
import os
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from curate.calibration.edits import edits
from curate.sample.photographs import SEED_SUBJECTS, crops
from shared.embedders.embedder import identity, load, resolve
from shared.embedders.settings import BUNDLED, EmbedderSettings, bundled_settings

REPOSITORY = Path(__file__).parents[3]
LARGEST = {"bundled": 12_000_000, "bundled-copies": 8_000_000}
"""Bytes of their weights, at most."""
ORIGINALS = 20

BY_PLAIN_TIMM_AND_BY_THE_EMBEDDER = """
import sys
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

pictures, *folders = map(Path, sys.argv[1:])
images = [Image.open(path).convert("RGB") for path in sorted(pictures.iterdir())]
for folder in folders:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    with torch.inference_mode():
        vectors = model(torch.stack([transform(image) for image in images]))
    vectors = torch.nn.functional.normalize(vectors, dim=1).numpy()
    np.save(f"timm-{folder.name}.npy", vectors)
assert not {"shared", "train", "curate"} & set(sys.modules)

from shared.embedders.embedder import load
from shared.embedders.settings import BUNDLED, bundled_settings

asked = {"precision": "float32", "device": "cpu"}
for name, folder in BUNDLED.items():
    embedder = load(bundled_settings(name).model_copy(update=asked), 1)
    vectors = embedder.embed([embedder.prepare(image) for image in images])
    np.save(f"embedder-{folder.name}.npy", vectors)
"""


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    return [crop.image for crop in crops(SEED_SUBJECTS, ORIGINALS, "bundled")]


@pytest.fixture(scope="module")
def edited(photographs) -> list[list[Image.Image]]:
    """Seven edited copies of each photograph."""
    return [
        list(edits(image, np.random.default_rng(number)).values())
        for number, image in enumerate(photographs)
    ]


def test_a_fresh_process_offline_gets_the_same_vectors_from_plain_timm_and_the_embedder(
    photographs, tmp_path
):
    for place in ("pictures", "hub"):
        (tmp_path / place).mkdir()
    for number, image in enumerate(photographs[:6]):
        image.save(tmp_path / "pictures" / f"{number}.png")
    script = [sys.executable, "-c", BY_PLAIN_TIMM_AND_BY_THE_EMBEDDER]
    subprocess.run(
        [*script, str(tmp_path / "pictures"), *map(str, BUNDLED.values())],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
        cwd=tmp_path,
        check=True,
    )
    for folder in BUNDLED.values():
        files = (tmp_path / f"{by}-{folder.name}.npy" for by in ("timm", "embedder"))
        plain, ours = map(np.load, files)
        np.testing.assert_allclose(ours, plain, atol=1e-5)
        cosines = plain @ plain.T
        assert cosines[~np.eye(len(plain), dtype=bool)].max() < 0.999


@pytest.mark.parametrize("name", BUNDLED)
def test_it_finds_the_originals_of_edited_photographs_better_than_the_untrained_network(
    photographs, edited, name
):
    def share_found(**changes) -> float:
        """Return the share of edited copies whose nearest photograph is their original."""
        asked = {"precision": "float32", "device": "cpu", **changes}
        embedder = load(bundled_settings(name).model_copy(update=asked), 1)

        def embed(images: list[Image.Image]) -> np.ndarray:
            return embedder.embed([embedder.prepare(image) for image in images])

        originals = embed(photographs)
        copies = embed([copy for of_one in edited for copy in of_one])
        nearest = (copies @ originals.T).argmax(1).reshape(len(originals), -1)
        return float((nearest == np.arange(len(originals))[:, None]).mean())

    trained = share_found()
    untrained = share_found(pretrained=False)
    assert trained > 0.8
    assert trained > untrained + 0.05


@pytest.mark.parametrize("name", BUNDLED)
def test_its_settings_and_its_identity_hold_no_path(tmp_path, name):
    resolved = resolve(bundled_settings(name))
    assert resolved.model == f"builtin:{name}"
    shutil.copytree(BUNDLED[name], tmp_path / "copy")
    copied = EmbedderSettings(kind="timm", model=f"local-dir:{tmp_path / 'copy'}")
    assert identity(resolved) == identity(copied)
    assert str(BUNDLED[name]) not in json.dumps(identity(resolved))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"kind": "timm", "model": "builtin:bundled_copies"},
            r"builtin:bundled and builtin:bundled-copies, .*did you mean 'bundled-copies'",
        ),
        ({"kind": "open_clip", "model": "builtin:bundled"}, "of kind timm"),
        (
            {"kind": "timm", "model": "builtin:bundled", "pretrained": "a.safetensors"},
            "own weights",
        ),
    ],
)
def test_no_other_model_is_built_in(settings, problem):
    with pytest.raises(ValidationError, match=problem):
        EmbedderSettings(**settings)


@pytest.mark.parametrize("name", BUNDLED)
def test_all_its_files_reach_a_wheel_and_the_weights_are_small(name):
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    package = f"shared.{BUNDLED[name].name}"
    patterns = project["tool"]["setuptools"]["package-data"][package]
    files = {path.name for path in BUNDLED[name].iterdir() if path.is_file()}
    assert {"__init__.py", "config.json", "model.safetensors", "README.md"} <= files
    left_out = {
        name
        for name in files
        if not name.endswith(".py") and not any(fnmatch(name, pattern) for pattern in patterns)
    }
    assert left_out == set()
    assert (BUNDLED[name] / "model.safetensors").stat().st_size <= LARGEST[name]


@pytest.mark.parametrize("name", BUNDLED)
def test_stage_two_knows_it_by_its_name_and_can_start_from_it(name):
    import torch
    from safetensors.torch import load_file

    from train.export.source import read_backbone
    from train.frozen.loading import load_models
    from train.model.network import build_network
    from train.model.settings import HeadSettings, HeadsSettings
    from train.weights.init import load_backbone

    weights = load_file(BUNDLED[name] / "model.safetensors")
    for given, kept in ((name, True), (f"untrained:{name}", False)):
        (model,) = load_models([given], precision="float32", device="cpu")
        found = model.parts[0].module.state_dict()
        assert (
            torch.equal(found["blocks.0.attn.qkv.weight"], weights["blocks.0.attn.qkv.weight"])
            == kept
        )

    _, settings, *_ = read_backbone(BUNDLED[name], None, None)
    heads = HeadsSettings(dino=HeadSettings(prototypes=8, hidden=8, bottleneck=4))
    network = build_network(settings, heads, masked=False, sizes=[settings.image_size], seed=1)
    load_backbone(network, name)
    for key, value in network.backbone.vit.state_dict().items():
        assert torch.equal(value, weights[key]), key
