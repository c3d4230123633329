import json
import subprocess
import sys
import threading

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from timm.data import create_transform, resolve_data_config

from shared.embedders.embedder import load, settings_for_folder
from shared.embedders.evaluation_transform import square
from train.model import model_folder
from train.model.backbone import Backbone, build_backbone
from train.model.model_folder import write_model_folder
from train.model.settings import ModelSettings

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2}
SETTINGS = {
    "plain": ModelSettings(name="vit_small_patch16_224", options=TINY, drop_path=0.2),
    "dinov2": ModelSettings(name="vit_base_patch14_dinov2", options=TINY, image_size=56),
    "registers": ModelSettings(
        name="vit_small_patch14_reg4_dinov2", patch_size=8, options=TINY, layer_scale=0.3
    ),
    "swiglu": ModelSettings(name="vit_giant_patch14_dinov2", patch_size=16, options=TINY),
    "options": ModelSettings(
        name="vit_small_patch16_224.augreg_in21k",
        patch_size=4,
        options=TINY | {"reg_tokens": 2, "mlp_ratio": 3.0, "qk_norm": True, "act_layer": "silu"},
    ),
}
PLAIN_TIMM = """
import sys
sys.modules["wandb"] = None  # timm imports it where it can, for half a second
import numpy as np, timm, torch
images = torch.from_numpy(np.load(sys.argv[1]))
for folder in sys.argv[2:]:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    side = model.pretrained_cfg["input_size"][-1]
    with torch.inference_mode():
        pooled = model(images[..., :side, :side]).numpy()
        tokens = model.forward_features(images).numpy()
    np.savez(folder + "/found.npz", pooled=pooled, tokens=tokens)
assert not {"train", "shared", "curate"} & set(sys.modules)
"""


def backbone(settings: ModelSettings, seed: int = 1) -> Backbone:
    torch.manual_seed(seed)
    made = build_backbone(settings, image_size=32, masked=True).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def test_plain_timm_in_a_fresh_process_gives_the_same_features(tmp_path):
    images = torch.randn(2, 3, 112, 112)
    np.save(tmp_path / "images.npy", images.numpy())
    for name, settings in SETTINGS.items():
        write_model_folder(backbone(settings).state_dict(), settings, 32, tmp_path / name)
    folders = [str(tmp_path / name) for name in SETTINGS]
    command = [sys.executable, "-I", "-c", PLAIN_TIMM, str(tmp_path / "images.npy"), *folders]
    subprocess.run(command, check=True)
    for name, settings in SETTINGS.items():
        found = np.load(tmp_path / name / "found.npz")
        made, side = backbone(settings), settings.image_size or 32
        with torch.inference_mode():
            cls, _ = made(images[..., :side, :side])
            large_cls, patches = made(images)
        tokens = torch.from_numpy(found["tokens"])
        torch.testing.assert_close(torch.from_numpy(found["pooled"]), cls)
        torch.testing.assert_close(tokens[:, 0], large_cls)
        torch.testing.assert_close(tokens[:, made.prefix_tokens :], patches)


def test_stage_one_embeds_with_it_as_the_backbone_would(tmp_path):
    settings = SETTINGS["registers"]
    write_model_folder(backbone(settings).state_dict(), settings, 32, tmp_path / "model")
    chosen = settings_for_folder(tmp_path / "model").model_copy(
        update={"precision": "float32", "device": "cpu"}
    )
    embedder = load(chosen, 1)
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    prepared = embedder.prepare(Image.fromarray(pixels))
    np.testing.assert_array_equal(prepared, pixels)  # crop_pct 1: the recipe's size is not resized
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = (torch.from_numpy(pixels).float() / 255 - mean) / std
    with torch.inference_mode():
        cls, _ = backbone(settings)(normalised.permute(2, 0, 1)[None])
    expected = torch.nn.functional.normalize(cls, dim=1).numpy()
    np.testing.assert_allclose(embedder.embed([prepared]), expected, atol=1e-5)


def test_the_folder_says_how_to_prepare_images_and_holds_no_mask_token(tmp_path):
    settings = SETTINGS["dinov2"]
    write_model_folder(backbone(settings).state_dict(), settings, 224, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["architecture"] == "vit_base_patch14_dinov2"
    assert config["num_classes"] == config["pretrained_cfg"]["num_classes"] == 0
    assert config["model_args"] == TINY | {"img_size": 56, "dynamic_img_size": True}
    wanted = {"input_size": [3, 56, 56], "interpolation": "bicubic", "crop_pct": 1.0}
    assert config["pretrained_cfg"].items() >= wanted.items()
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as weights:
        assert "mask_token" not in weights.keys()  # noqa: SIM118
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float32}  # noqa: SIM118
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_the_same_weights_give_the_same_bytes(tmp_path):
    settings = SETTINGS["plain"]
    for name in ("one", "other"):
        write_model_folder(backbone(settings).state_dict(), settings, 32, tmp_path / name)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


def test_a_reader_finds_one_whole_version_while_others_are_written(tmp_path):
    settings = SETTINGS["plain"]
    versions = [backbone(settings, seed).state_dict() for seed in (1, 2)]
    marks = {version["vit.norm.weight"][0].item() for version in versions}
    write_model_folder(versions[0], settings, 32, tmp_path / "model")
    done, seen, problems = threading.Event(), set(), []

    def read() -> None:
        while not done.is_set():
            try:
                json.loads((tmp_path / "model" / "config.json").read_text())
                weights = load_file(tmp_path / "model" / "model.safetensors")
                seen.add(weights["norm.weight"][0].item())
            except Exception as error:
                problems.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(40):
        write_model_folder(versions[number % 2], settings, 32, tmp_path / "model")
    done.set()
    reader.join()
    assert problems == []
    assert seen == marks


def test_a_folder_of_another_model_is_replaced_whole(tmp_path):
    for name in ("plain", "swiglu"):
        settings = SETTINGS[name]
        write_model_folder(backbone(settings).state_dict(), settings, 32, tmp_path / "model")
        config = json.loads((tmp_path / "model" / "config.json").read_text())
        weights = load_file(tmp_path / "model" / "model.safetensors")
        assert config["architecture"] == settings.name
        assert set(weights) == set(backbone(settings).vit.state_dict())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_what_fails_or_is_killed_half_way_leaves_the_old_folder_and_is_swept(tmp_path, monkeypatch):
    settings = SETTINGS["plain"]
    write_model_folder(backbone(settings).state_dict(), settings, 32, tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()

    def fail(*_):
        raise OSError("disk on fire")

    with monkeypatch.context() as broken:
        broken.setattr(model_folder, "sync_tree", fail)
        with pytest.raises(OSError, match="on fire"):
            write_model_folder(backbone(settings, 2).state_dict(), settings, 32, tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    (tmp_path / ".model.999999").mkdir()
    (tmp_path / ".model.999999" / "model.safetensors").write_bytes(b"half")
    write_model_folder(backbone(settings, 2).state_dict(), settings, 32, tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_others_may_read_the_weights(tmp_path):
    made = backbone(SETTINGS["plain"])
    write_model_folder(made.state_dict(), SETTINGS["plain"], 32, tmp_path / "model")
    modes = {path.stat().st_mode for path in (tmp_path / "model").iterdir()}
    assert len(modes) == 1
    assert modes.pop() & 0o444 == 0o444


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_timm_sees_whole_images_as_the_recipe_says(tmp_path, crop_mode):
    settings = SETTINGS["plain"].model_copy(update={"crop_mode": crop_mode})
    write_model_folder(backbone(settings).state_dict(), settings, 32, tmp_path / "model")
    model = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
    theirs = create_transform(**resolve_data_config({}, model=model))
    ramp = np.linspace(0, 255, 90 * 40 * 3).reshape(40, 90, 3).astype(np.uint8)
    ramp[:, :10] = 255  # seen only where the whole image is
    ours = square(32, crop_mode)
    pixels = torch.from_numpy(ours.prepare(Image.fromarray(ramp)).copy()).permute(2, 0, 1)
    seen = theirs(Image.fromarray(ramp))
    torch.testing.assert_close(ours.normalised(pixels[None])[0], seen, atol=1e-6, rtol=0)
    assert bool((pixels[:, :, 0] == 255).all()) == (crop_mode == "squash")
