import json

import pytest
import timm
import torch
from safetensors.torch import save_file

from shared.errors import LvdError
from train.model.model_folder import write_model_folder
from train.model.network import Network, build_network
from train.model.positions import resample_positions
from train.model.settings import HeadSettings, HeadsSettings, ModelSettings
from train.weights import init
from train.weights.init import load_backbone

HEADS = HeadsSettings(dino=HeadSettings(prototypes=8, hidden=8, bottleneck=4))
OPTIONS = {"embed_dim": 32, "depth": 2, "num_heads": 2}
SETTINGS = ModelSettings(
    name="vit_small_patch14_reg4_dinov2", patch_size=8, options=OPTIONS, layer_scale=0.5
)


def network(settings: ModelSettings = SETTINGS, size: int = 32, seed: int = 1) -> Network:
    return build_network(settings, HEADS, masked=True, sizes=[size], seed=seed)


def changed(**settings) -> ModelSettings:
    return SETTINGS.model_copy(update=settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "model"
    write_model_folder(network().backbone.state_dict(), SETTINGS, 32, path)
    return path


def test_a_model_folder_gives_its_weights_and_nothing_else_changes(folder):
    given, started, before = network(), network(seed=2), network(seed=2)
    load_backbone(started, str(folder))
    for name, value in started.state_dict().items():
        same_as = given if name.startswith("backbone.vit.") else before
        assert torch.equal(value, same_as.state_dict()[name]), name


@pytest.mark.parametrize("size", [16, 48])
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_position_embeddings_are_resized_to_the_recipes_grid_in_its_mode(folder, size, mode):
    started = network(changed(position_mode=mode), size, seed=2)
    load_backbone(started, str(folder))
    table = network().backbone.vit.pos_embed
    expected = resample_positions(table, (size // 8, size // 8), (4, 4), prefix=0, mode=mode)
    torch.testing.assert_close(started.backbone.vit.pos_embed, expected, check_device=False)


def test_the_patch_embedding_is_resampled_to_another_patch_size(folder):
    """A smooth image of half the size, cut in patches of half the size, gives about the same."""
    given, started = network(), network(changed(patch_size=4), 16, seed=2)
    load_backbone(started, str(folder))
    coarse = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    large, small = (
        torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic", antialias=True)
        for side in (32, 16)
    )
    expected = given.backbone.vit.patch_embed(large)
    found = started.backbone.vit.patch_embed(small)
    assert (found - expected).square().mean() < 0.05 * expected.square().mean()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (changed(options=OPTIONS | {"num_heads": 4}), "num_heads 2, not 4$"),
        (changed(options=OPTIONS | {"embed_dim": 16, "depth": 3}), "embed_dim 32, not 16; depth 2"),
        (changed(options=OPTIONS | {"mlp_ratio": 3.0}), r"mlp.fc1.bias is of shape \(128,\)"),
        (changed(options=OPTIONS | {"qkv_bias": False}), "attn.qkv.bias is of .* be not there"),
        (changed(name="vit_small_patch14_dinov2"), "reg_tokens 4, not 0; no_embed_class True"),
        (changed(name="vit_giant_patch14_reg4_dinov2"), "feed-forward Mlp, not GluMlp"),
        (
            changed(
                name="vit_small_patch16_224",
                layer_scale=None,
                options=OPTIONS | {"reg_tokens": 4, "no_embed_class": True},
            ),
            "LayerScale True, not False",
        ),
    ],
)
def test_another_architecture_is_refused_by_what_differs(folder, settings, problem):
    started = network(settings)
    before = {name: value.clone() for name, value in started.state_dict().items()}
    with pytest.raises(LvdError, match=problem) as raised:
        load_backbone(started, str(folder))
    assert "\n" not in str(raised.value)
    assert str(folder) in str(raised.value)
    for name, value in started.state_dict().items():
        assert torch.equal(value, before[name])


def test_damaged_folders_are_refused_in_one_line(folder, tmp_path):
    config, weights = (
        (folder / name).read_bytes() for name in ("config.json", "model.safetensors")
    )

    def error(config: bytes, weights: bytes) -> str:
        (tmp_path / "config.json").write_bytes(config)
        (tmp_path / "model.safetensors").write_bytes(weights)
        with pytest.raises(LvdError) as raised:
            load_backbone(network(), str(tmp_path))
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert "cannot be read" in error(config, weights[:-100])
    assert "timm cannot build" in error(b"{", weights)
    assert "timm cannot build" in error(b'{"architecture": "vit_nothing"}', weights)
    resnet = {"architecture": "resnet18", "pretrained_cfg": {}}
    assert "no Vision Transformer" in error(json.dumps(resnet).encode(), weights)
    with pytest.raises(LvdError, match="no model folder at"):
        load_backbone(network(), str(tmp_path / "nowhere"))
    with pytest.raises(LvdError, match="say timm:vit_small_patch16_224"):
        load_backbone(network(), "vit_small_patch16_224")


def test_timms_weights_lose_their_classifier_and_are_resized(monkeypatch, tmp_path):
    name = "vit_tiny_patch16_224.augreg_in21k"
    published = timm.create_model(name.partition(".")[0], num_classes=5)
    save_file(published.state_dict(), tmp_path / "model.safetensors")
    asked = []

    def fetch(repository: str, file: str, *, model: str):
        asked.append((repository, file, model))
        return tmp_path / file

    monkeypatch.setattr(init, "fetch", fetch)
    started = network(ModelSettings(name="vit_tiny_patch16_224"), 64)
    load_backbone(started, f"timm:{name}")
    assert asked == [(f"timm/{name}", "model.safetensors", f"timm:{name}")]
    found = started.backbone.vit.state_dict()
    expected = published.state_dict()
    table = resample_positions(expected.pop("pos_embed"), (4, 4), (14, 14), prefix=1)
    torch.testing.assert_close(found.pop("pos_embed"), table)
    assert {f"{key}" for key in expected} - set(found) == {"head.weight", "head.bias"}
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("vit_smal_patch16_224", "did you mean 'vit_small_patch16_224'"),
        ("vit_small_patch14_dinov2.imagenet", "no such weights; of .* timm knows lvd142m"),
        ("vit_huge_patch14_gap_224.in1k_ijepa", "no such weights"),
        ("vit_giant_patch14_224", "timm knows none"),
    ],
)
def test_weights_that_the_hub_does_not_have_are_refused(name, problem):
    with pytest.raises(LvdError, match=problem):
        load_backbone(network(), f"timm:{name}")


def test_a_hub_that_cannot_be_reached_is_said_without_stage_ones_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(LvdError, match=r"HF_HUB_OFFLINE is set.*or give a model folder") as raised:
        load_backbone(network(), "timm:vit_small_patch14_reg4_dinov2.lvd142m")
    assert "embedder" not in str(raised.value)
