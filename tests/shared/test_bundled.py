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
from curate.calibration.stored import read_stored
from curate.sample.photographs import SEED_SUBJECTS, crops
from shared import bundled
from shared.embedders import EmbedderSettings, bundled_settings, identity, load, resolve

REPOSITORY = Path(__file__).parents[2]
LARGEST = 12_000_000
ORIGINALS = 30

BY_PLAIN_TIMM_AND_BY_THE_EMBEDDER = """
import sys
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

folder, pictures, out = map(Path, sys.argv[1:])
images = [Image.open(path).convert("RGB") for path in sorted(pictures.iterdir())]
model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
transform = create_transform(**resolve_model_data_config(model), is_training=False)
with torch.inference_mode():
    vectors = model(torch.stack([transform(image) for image in images]))
np.save(out / "timm.npy", torch.nn.functional.normalize(vectors, dim=1).numpy())
assert not {"shared", "train", "curate"} & set(sys.modules)

from shared.embedders import bundled_settings, load

embedder = load(bundled_settings().model_copy(update={"precision": "float32", "device": "cpu"}), 1)
np.save(out / "embedder.npy", embedder.embed([embedder.prepare(image) for image in images]))
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
    for name in ("pictures", "out", "hub"):
        (tmp_path / name).mkdir()
    for number, image in enumerate(photographs[:6]):
        image.save(tmp_path / "pictures" / f"{number}.png")
    places = (bundled.FOLDER, tmp_path / "pictures", tmp_path / "out")
    subprocess.run(
        [sys.executable, "-c", BY_PLAIN_TIMM_AND_BY_THE_EMBEDDER, *map(str, places)],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
        cwd=tmp_path,
        check=True,
    )
    plain, ours = (np.load(tmp_path / "out" / f"{name}.npy") for name in ("timm", "embedder"))
    np.testing.assert_allclose(ours, plain, atol=1e-5)
    cosines = plain @ plain.T
    assert cosines[~np.eye(len(plain), dtype=bool)].max() < 0.999


def test_it_finds_the_originals_of_edited_photographs_better_than_the_untrained_network(
    photographs, edited
):
    def share_found(**changes) -> float:
        """Return the share of edited copies whose nearest photograph is their original."""
        asked = {"precision": "float32", "device": "cpu", **changes}
        embedder = load(bundled_settings().model_copy(update=asked), 1)

        def embed(images: list[Image.Image]) -> np.ndarray:
            return embedder.embed([embedder.prepare(image) for image in images])

        originals = embed(photographs)
        nearest = np.stack([(embed(copies) @ originals.T).argmax(1) for copies in edited])
        return float((nearest == np.arange(len(originals))[:, None]).mean())

    trained = share_found()
    untrained = max(share_found(pretrained=False, seed=seed) for seed in range(2))
    assert trained > 0.8
    assert trained > untrained + 0.05


def test_its_thresholds_were_measured_with_its_weights():
    stored = read_stored(bundled_settings())
    assert stored.problem == ""
    assert None not in (stored.values.dedup, stored.values.retrieve)


def test_its_settings_and_its_identity_hold_no_path(tmp_path):
    resolved = resolve(bundled_settings())
    assert resolved.model == "builtin:bundled"
    shutil.copytree(bundled.FOLDER, tmp_path / "copy")
    copied = EmbedderSettings(kind="timm", model=f"local-dir:{tmp_path / 'copy'}")
    assert identity(resolved) == identity(copied)
    assert str(bundled.FOLDER) not in json.dumps(identity(resolved))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"kind": "timm", "model": "builtin:bundle"}, "the only built-in model"),
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


def test_all_its_files_reach_a_wheel_and_the_weights_are_small():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["shared.bundled"]
    files = {path.name for path in bundled.FOLDER.iterdir() if path.is_file()}
    assert {"config.json", "model.safetensors", "thresholds.json"} <= files
    left_out = {
        name
        for name in files
        if not name.endswith(".py") and not any(fnmatch(name, pattern) for pattern in patterns)
    }
    assert left_out == set()
    assert (bundled.FOLDER / "model.safetensors").stat().st_size <= LARGEST


def test_stage_two_knows_it_by_its_name_and_can_start_from_it():
    import torch
    from safetensors.torch import load_file

    from train.evaluation.frozen import load_models
    from train.export.source import read_backbone
    from train.model.init import load_backbone
    from train.model.network import build_network
    from train.model.settings import HeadSettings, HeadsSettings

    weights = load_file(bundled.FOLDER / "model.safetensors")
    for name, kept in (("bundled", True), ("untrained:bundled", False)):
        (model,) = load_models([name], precision="float32", device="cpu")
        found = model.parts[0].module.state_dict()
        assert (
            torch.equal(found["blocks.0.attn.qkv.weight"], weights["blocks.0.attn.qkv.weight"])
            == kept
        )

    _, settings, _ = read_backbone(bundled.FOLDER, None, None)
    heads = HeadsSettings(dino=HeadSettings(prototypes=8, hidden=8, bottleneck=4))
    network = build_network(settings, heads, masked=False, sizes=[settings.image_size], seed=1)
    load_backbone(network, "bundled")
    for name, value in network.backbone.vit.state_dict().items():
        assert torch.equal(value, weights[name]), name
