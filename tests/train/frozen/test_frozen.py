import shutil

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small_models import REGISTERS, TINY, clip_folder, run_folder, timm_folder
from small_run import RECIPE
from timm.data import create_transform, resolve_data_config

from shared.errors import LvdError
from train.frozen.loading import load_models
from train.frozen.names import parse_names
from train.model.model_folder import write_model_folder
from train.weights.trained import find_trained

CLIP = {"layers": 2, "width": 64, "patch_size": 8}
SIGLIP = {"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"}


def load(name, **options):
    (model,) = load_models([str(name)], **({"precision": "float32", "device": "cpu"} | options))
    (part,) = model.parts
    return part


def pixels(height, width=None, count=3, seed=0):
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, 256, (count, height, width or height, 3), dtype=np.uint8)
    return torch.from_numpy(drawn).permute(0, 3, 1, 2)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def refusal(*names, **options):
    with pytest.raises(LvdError) as raised:
        load_models([str(name) for name in names], **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return timm_folder(tmp_path_factory.mktemp("timm"), **REGISTERS)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return clip_folder(tmp_path_factory.mktemp("clip"), **CLIP)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    own = {"position_offset": 0.1, "position_antialias": False}
    model = RECIPE["model"] | own | {"options": REGISTERS_OPTIONS}
    return run_folder(tmp_path_factory.mktemp("run") / "out", RECIPE | {"model": model})


REGISTERS_OPTIONS = {"embed_dim": 24, "depth": 2, "num_heads": 2, "reg_tokens": 2}


# pitfall 14
def test_tokens_of_a_timm_model_are_those_of_timm_behind_cls_and_registers(folder):
    model = load(folder)
    plain = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    images = model.normalised(pixels(32))
    found = model.tokens(pixels(32), blocks=2)
    with torch.no_grad():
        close(found.pooled, plain(images))
        last = plain.forward_features(images)
        close(found.patches.flatten(1, 2), last[:, 3:])
        seen = plain.get_intermediate_layers(images, 2, return_prefix_tokens=True, norm=True)
    close(found.cls, torch.stack([prefix[:, 0] for _, prefix in seen], dim=1))
    assert found.patches.shape == (3, 4, 4, 24)
    assert {some.dtype for some in found} == {torch.float32}
    assert model.vit is model.module
    assert model.tokens(pixels(32), blocks=99).cls.shape == (3, 3, 24)


def test_what_a_model_needs_is_what_its_config_says(folder, clip):
    needs = load(folder).needs
    assert (needs.size, needs.interpolation, needs.crop) == (32, "bilinear", 0.8)
    assert (needs.mean, needs.std) == ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    assert (needs.pooling, needs.patch, needs.registers) == ("token", 8, 2)
    needs = load(clip).needs
    assert (needs.size, needs.mean, needs.crop) == (32, (0.5, 0.4, 0.3), 1.0)
    assert (needs.pooling, needs.patch, needs.registers) == ("token, projected", 8, 0)
    (joined,) = load_models([f"{folder}+pixels"])
    first, second = joined.notes
    assert first.startswith(f"{folder}: 32 px, bilinear, crop 0.8; mean 0.5 0.4 0.3")
    assert "2 registers" in first
    assert second.startswith("pixels: 32 px")


def test_images_are_prepared_as_the_models_own_transform_does(folder):
    model = load(folder)
    plain = timm.create_model(f"local-dir:{folder}", pretrained=True)
    transform = create_transform(**resolve_data_config(model=plain), is_training=False)
    picture = Image.fromarray(pixels(60, 90, count=1)[0].permute(1, 2, 0).numpy())
    prepared = torch.tensor(model.prepare(picture)).permute(2, 0, 1)
    torch.testing.assert_close(model.normalised(prepared[None])[0], transform(picture))


# pitfall 13
@pytest.mark.parametrize("size", [48, 24])
def test_position_embeddings_of_another_size_are_timms(folder, size):
    plain = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=size).eval()
    for model in (load(folder, size=size), load(folder)):
        found = model.tokens(pixels(size))
        with torch.no_grad():
            expected = plain.forward_features(model.normalised(pixels(size)))
        close(found.patches.flatten(1, 2), expected[:, 3:])
        close(found.cls[:, 0], expected[:, 0])
    assert load(folder, size=size).needs.size == size
    assert model.tokens(pixels(size, 40)).patches.shape == (3, size // 8, 5, 24)


@pytest.mark.parametrize(
    ("name", "pooling", "patch", "has_cls"),
    [
        ("test_vit2", "avg", 16, False),  # a register, no CLS token
        ("test_vit3", "map", 16, False),
        ("test_resnet", "avg", None, False),
        ("test_convnext", "avg", None, False),
        ("test_efficientnet", "avg", None, False),
        ("test_vit_relpos", "avg", None, False),
        ("hiera_tiny_224", "its own", None, False),
        ("deit_tiny_distilled_patch16_224", "token", 16, True),
        ("eva02_tiny_patch14_224", "avg", 14, True),
    ],
)
def test_networks_of_other_kinds_give_their_own_pooled_features_and_last_map(
    name, pooling, patch, has_cls
):
    model = load(f"untrained:{name}")
    side = model.needs.size
    found = model.tokens(pixels(side, count=1))
    with torch.no_grad():
        close(found.pooled, model.module(model.normalised(pixels(side, count=1))))
    assert (model.needs.pooling, model.needs.patch) == (pooling, patch)
    assert (found.cls is not None) == has_cls
    assert found.patches.shape[1] == found.patches.shape[2] == side // (patch or 32) or not patch
    assert found.patches.ndim == 4


def test_tokens_of_open_clips_own_towers_are_open_clips(clip):
    model = load(clip)
    plain, transform = open_clip.create_model_from_pretrained(f"local-dir:{clip}")
    images = model.normalised(pixels(32))
    found = model.tokens(pixels(32), blocks=2)
    plain.visual.output_tokens = True
    with torch.no_grad():
        pooled, patches = plain.eval().visual(images)
    close(found.pooled, pooled)
    close(found.patches.flatten(1, 2), patches)
    assert found.cls.shape == (3, 2, 64)
    close(found.cls[:, 1] @ plain.visual.proj, pooled)
    picture = Image.fromarray(pixels(50, 70, count=1)[0].permute(1, 2, 0).numpy())
    prepared = torch.tensor(model.prepare(picture)).permute(2, 0, 1)
    torch.testing.assert_close(model.normalised(prepared[None])[0], transform(picture))
    assert model.vit is None


def test_open_clips_own_towers_take_any_size_that_patches_divide(clip):
    of_32, of_48 = load(clip), load(clip, size=48)
    assert of_48.needs.size == 48
    for found, expected in zip(of_32.tokens(pixels(48)), of_48.tokens(pixels(48)), strict=True):
        close(found, expected)
    assert of_32.tokens(pixels(48, 16)).patches.shape == (3, 6, 2, 64)
    close(of_32.tokens(pixels(32)).pooled, load(clip).tokens(pixels(32)).pooled)  # as it was


def test_timms_towers_inside_open_clip_keep_their_weights_at_another_size(tmp_path):
    folder = clip_folder(tmp_path, **SIGLIP | {"image_size": 160})
    model = load(folder)
    plain, _ = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    with torch.no_grad():
        expected = plain.eval().encode_image(model.normalised(pixels(160)))
    found = model.tokens(pixels(160))
    close(found.pooled, expected)
    assert (model.needs.pooling, model.needs.registers, found.cls) == ("map", 1, None)
    assert model.vit is model.module.trunk
    plain.visual.set_input_size(96)
    for other in (load(folder, size=96), model):
        with torch.no_grad():
            close(other.tokens(pixels(96)).pooled, plain.encode_image(model.normalised(pixels(96))))


def test_a_run_its_checkpoint_and_its_model_folder_are_one_model(trained, tmp_path):
    backbone = find_trained(trained).network("teacher").backbone
    write_model_folder(
        backbone.state_dict(), find_trained(trained).recipe.model, 32, tmp_path / "m"
    )
    places = (trained, trained / "checkpoints" / "step-0000005", tmp_path / "m")
    models = [load(place) for place in places]
    with torch.no_grad():
        cls, patches = backbone(models[0].normalised(pixels(32)))
    for model in models:
        found = model.tokens(pixels(32))
        close(found.pooled, cls)
        close(found.patches.flatten(1, 2), patches)
        assert model.needs == models[0].needs
    assert models[0].fingerprint == models[1].fingerprint


def test_a_run_is_resized_as_its_recipe_says(trained):
    model, backbone = load(trained, size=48), find_trained(trained).network("teacher").backbone
    with torch.no_grad():
        cls, patches = backbone(model.normalised(pixels(48)))
    close(model.tokens(pixels(48)).pooled, cls)
    close(model.tokens(pixels(48)).patches.flatten(1, 2), patches)
    assert (model.needs.size, model.needs.patch, model.needs.registers) == (48, 8, 2)


def test_untrained_is_the_same_network_with_weights_from_the_seed(folder, clip, trained):
    before = torch.random.get_rng_state()
    for place in (folder, clip, trained):
        with_weights = load(place).tokens(pixels(32)).pooled
        first, again, other = (load(f"untrained:{place}", seed=seed) for seed in (0, 0, 1))
        found = first.tokens(pixels(32)).pooled
        assert found.shape == with_weights.shape
        assert not torch.allclose(found, with_weights)
        assert torch.equal(found, again.tokens(pixels(32)).pooled)
        assert not torch.allclose(found, other.tokens(pixels(32)).pooled)
        assert first.needs == load(place).needs
        assert first.fingerprint == again.fingerprint != other.fingerprint
    assert torch.equal(before, torch.random.get_rng_state())


def test_pixels_are_the_pixels(folder):
    model = load("pixels", precision="bfloat16", size=64)
    found = model.tokens(pixels(32))
    assert torch.equal(found.pooled, model.normalised(pixels(32)).flatten(1))
    assert (found.cls, found.patches) == (None, None)


def test_reduced_precision_gives_nearly_the_same_features_as_float32(folder):
    exact, reduced = load(folder).tokens(pixels(32)), load(folder, precision="bfloat16")
    for some, other in zip(exact, reduced.tokens(pixels(32)), strict=True):
        assert other.dtype == torch.float32
        assert torch.cosine_similarity(some.flatten(1), other.flatten(1)).min() > 0.99
    many = reduced.tokens(pixels(32 * 8, count=1)).patches  # other forms of attention
    alike = torch.cosine_similarity(load(folder).tokens(pixels(32 * 8, count=1)).patches, many, -1)
    assert alike.mean() > 0.99


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_an_error_that_names_the_model(tmp_path, value):
    folder = timm_folder(tmp_path, **TINY)
    state = load_file(folder / "model.safetensors")
    state["blocks.1.mlp.fc2.bias"][3] = value
    save_file(state, folder / "model.safetensors")
    with pytest.raises(LvdError, match=rf"{folder} gives features that are not finite"):
        load(folder).tokens(pixels(32))


def test_sizes_that_a_model_cannot_take_are_one_line(folder, clip, trained):
    with pytest.raises(LvdError, match=r"36 x 32 px cannot be cut in patches of 8 px"):
        load(folder).tokens(pixels(36, 32))
    with pytest.raises(LvdError, match=r"test_vit_relpos takes 160 x 160 px and no 96 x 96"):
        load("untrained:test_vit_relpos").tokens(pixels(96))
    assert "give 16 to 4096 px" in refusal(folder, size=8)
    for name in (folder, clip, trained):
        message = refusal(name, size=36)
        assert f"--model {name}: 36 x 36 px cannot be cut in patches of 8 px" in message


def test_the_fingerprint_follows_what_decides_the_features_and_nothing_else(folder, tmp_path):
    model = load(folder)
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert load(moved).fingerprint == model.fingerprint
    others = [load(folder, size=48), load(folder, precision="bfloat16")]
    config = (folder / "config.json").read_text()
    (moved / "config.json").write_text(config.replace("0.25", "0.26"))
    others.append(load(moved))
    (moved / "config.json").write_text(config)
    state = load_file(moved / "model.safetensors")
    state["norm.bias"][0] += 1e-3
    save_file(state, moved / "model.safetensors")
    others.append(load(moved))
    assert len({model.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_models_are_loaded_once_and_joined_in_their_order(folder):
    first, second, again = load_models([f"pixels+{folder}", str(folder), "pixels"])
    assert [part.name for part in first.parts] == ["pixels", str(folder)]
    assert second.parts[0] is first.parts[1]
    assert again.parts[0] is first.parts[0]
    assert second.fingerprint == second.parts[0].fingerprint
    assert len({first.fingerprint, second.fingerprint, again.fingerprint}) == 3


@pytest.mark.parametrize(
    ("given", "kind", "model", "tag"),
    [
        ("vit_small_patch14_dinov2.lvd142m", "timm", "vit_small_patch14_dinov2.lvd142m", None),
        ("timm:resnet18", "timm", "resnet18", None),
        ("hf-hub:timm/resnet18.a1_in1k", "timm", "hf-hub:timm/resnet18.a1_in1k", None),
        ("ViT-B-32:openai", "open_clip", "ViT-B-32", "openai"),
        ("open_clip:ViT-B-32:openai", "open_clip", "ViT-B-32", "openai"),
        ("open_clip:hf-hub:timm/SigLIP", "open_clip", "hf-hub:timm/SigLIP", None),
        ("untrained:open_clip:RN50", "open_clip", "RN50", None),
        ("pixels", "pixels", "pixels", None),
    ],
)
def test_a_name_says_where_its_model_is_to_be_had(given, kind, model, tag):
    (name,) = parse_names(given)
    assert (name.kind, name.model, name.tag) == (kind, model, tag)
    assert name.trained == (not given.startswith("untrained:"))
    assert [part.given for part in parse_names(f"{given} + pixels")] == [given, "pixels"]


def test_a_folder_whose_name_holds_a_plus_is_one_model(tmp_path):
    folder = timm_folder(tmp_path / "a+b", **TINY)
    assert load(folder).name == str(folder)


def test_what_is_no_model_is_answered_in_one_line_with_a_remedy(tmp_path, trained, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    torn = tmp_path / "out"
    shutil.copytree(trained, torn)
    (torn / "checkpoints" / "step-0000005" / "manifest.json").unlink()
    for name, said in (
        (tmp_path, "model.safetensors"),
        (tmp_path / "nowhere", "there is no such folder"),
        (torn, "no whole checkpoint"),
        (torn / "checkpoints" / "step-0000005", "no whole checkpoint"),
        ("vit_smal_patch14_dinov2", "did you mean 'vit_small_patch14_dinov2'"),
        ("ViT-B-32", "say ViT-B-32:TAG, of openai"),
        ("ViT-B-32:openia", "did you mean 'openai'"),
        ("open_clip:ViT-B-32", "it has openai"),
        ("vit_small_patch14_dinov2.lvd142m", "set HF_HOME to a cache"),
        ("ViT-B-32:openai", "give a model folder"),
        ("pixels+", "names no model"),
        ("untrained:pixels", "names no model"),
    ):
        message = refusal(name)
        assert said in message
        assert "--embedder" not in message
        assert str(name).partition("+")[0] in message
