"""What an embedder is made of on export, held against plain timm: a mean of zero, regions.

Centring shifts what the network gives, and does nothing else; an embedder is one more block.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import small_run
import timm
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file
from small_run import write_shards
from timm.data import create_transform, resolve_data_config

from shared.errors import LvdError
from train.evaluation.attention_maps import cls_attention
from train.evaluation.frozen import load_models
from train.export import centring
from train.export.command import export
from train.export.formats import write_export
from train.model.backbone import build_backbone
from train.model.model_folder import write_model_folder
from train.model.settings import ModelSettings


def tokens(folder: Path, shards: Path, *, pooled: bool = True) -> torch.Tensor:
    """What plain timm gives for the pictures of all shards, or its tokens before the last norm."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config({}, model=model))
    pictures = []
    for shard in sorted(shards.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    picture = Image.open(io.BytesIO(tar.extractfile(member).read()))
                    pictures.append(transform(picture.convert("RGB")))
    if not pooled:
        model.norm = torch.nn.Identity()
    with torch.inference_mode():
        images = torch.stack(pictures)
        return (model(images) if pooled else model.forward_features(images)).double()


def test_centring_takes_the_mean_away_and_nothing_else(sharded_run: Path, tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards")
    plain, centred = tmp_path / "plain", tmp_path / "centred"
    write_export(sharded_run, plain, "timm")
    arguments = [str(sharded_run), "--out", str(centred), "--centre", str(shards)]
    result = CliRunner().invoke(export, arguments)
    assert result.exit_code == 0, result.output
    assert "centred" in result.output
    before, after = tokens(plain, shards), tokens(centred, shards)
    mean = before.mean(0)
    assert mean.norm() > 0.1
    torch.testing.assert_close(after, before - mean, atol=1e-5, rtol=0)
    one, other = (load_file(folder / "model.safetensors") for folder in (plain, centred))
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == ["norm.bias"]


def test_a_broken_image_is_left_out_of_the_mean(
    sharded_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(centring, "_BATCH", 7)
    folder = tmp_path / "plain"
    write_export(sharded_run, folder, "timm")
    whole = write_shards(tmp_path / "whole")
    broken = write_shards(tmp_path / "broken", {4: b"\xff\xd8\xff torn"})
    place = 12 + 4 // 3  # number 4 is the second one of shard 1, behind shard 0's twelve
    rest = np.delete(tokens(folder, whole).numpy(), place, axis=0).mean(0)
    found = centring.mean_token(folder, str(broken)).numpy()
    np.testing.assert_allclose(found, rest, atol=1e-5)


def test_nothing_to_take_a_mean_of_is_said_in_one_line(sharded_run: Path, tmp_path: Path) -> None:
    broken = write_shards(tmp_path / "broken", dict.fromkeys(range(36), b"\xff\xd8\xff torn"))
    with pytest.raises(LvdError, match="none of the images can be decoded"):
        write_export(sharded_run, tmp_path / "out", "timm", centre=str(broken))
    assert not (tmp_path / "out").exists()
    with pytest.raises(LvdError, match="leave --network, --size, --centre and"):
        write_export(sharded_run, tmp_path / "out", "heads", centre=str(broken))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twice as many images as the model has dimensions, and more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_run, "IMAGES", 128)
        return write_shards(tmp_path_factory.mktemp("many") / "shards")


@pytest.fixture(scope="module")
def five_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose heads go through the regions and begin again, with an odd MLP."""
    options = {"embed_dim": 20, "depth": 2, "num_heads": 5, "mlp_ratio": 2.13}
    settings = ModelSettings(name="vit_tiny_patch16_224", patch_size=8, options=options)
    torch.manual_seed(0)
    backbone = build_backbone(settings, image_size=32, masked=False)
    for name, parameter in backbone.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, 0, 0.2)
    folder = tmp_path_factory.mktemp("five") / "model"
    write_model_folder(backbone.state_dict(), settings, 32, folder)
    return folder


@pytest.mark.parametrize("source", ["sharded_run", "five_heads"])
def test_plain_timm_gives_what_the_formula_says(
    source: str, many: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    trained = request.getfixturevalue(source)
    plain, made = tmp_path / "plain", tmp_path / "made"
    write_export(trained, plain, "timm")
    arguments = [str(trained), "--out", str(made), "--embedder", str(many)]
    result = CliRunner().invoke(export, arguments)
    assert result.exit_code == 0, result.output
    found, before = tokens(made, many), tokens(plain, many, pooled=False)
    model = timm.create_model(f"local-dir:{made}", pretrained=True).eval().double()
    block, width, narrow = model.blocks[-1], model.num_features, before.shape[-1]
    heads = block.attn.num_heads
    assert width == narrow + 8 * heads
    turn = block.attn.proj.weight.detach()
    matrix, bias = block.mlp.fc2.weight.detach()[:, :width], block.mlp.fc2.bias.detach()
    values = block.attn.qkv.weight.detach()[2 * width :, :narrow].view(heads, -1, narrow)

    def normed(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.layer_norm(values, values.shape[-1:], eps=model.norm.eps)

    side = model.patch_embed.grid_size[0]
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, side).double()] * 2, indexing="ij")
    places = [-4 * (x**2 + y**2), -3 * y, 3 * y, 4 * (x**2 - y**2)]
    places = [place.flatten() - place.mean() for place in places]
    cls, prefix = before[:, 0], model.num_prefix_tokens
    joined = torch.nn.functional.pad(cls - cls.mean(1, keepdim=True), (0, width - narrow))
    typical = float(model.pos_embed.detach()[0, prefix, narrow] / places[0][0] / 0.01)
    assert typical == pytest.approx(float(before[0, prefix:].std(-1).mean()), rel=0.5)
    read = []
    for head in range(heads):
        logits = torch.nn.functional.pad(places[head % 4], (prefix, 0))
        logits = logits * typical / before.std(-1, correction=0)
        region = torch.einsum("np,npd->nd", logits.softmax(-1), normed(before))
        read.append(region @ values[head].T)
    joined = joined + torch.cat(read, 1) @ turn.T
    expected = normed(joined + normed(joined) @ matrix.T + bias)
    near = torch.nn.functional.cosine_similarity(found, expected)
    assert near.min() > 0.999
    assert torch.linalg.matrix_rank(turn, rtol=1e-5) == width // 2
    unit = torch.nn.functional.normalize(found, dim=1)
    cosines = (unit @ unit.T)[~torch.eye(len(unit), dtype=torch.bool)]
    assert abs(cosines.mean()) < 0.1  # spread about zero
    taken = torch.cat([values[head, :, :] for head in range(0, heads, 4)])
    assert torch.linalg.matrix_rank(taken, rtol=1e-6) == min(narrow, len(taken))  # no axis twice


def test_the_block_says_the_same_in_bfloat16(sharded_run: Path, many: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    write_export(sharded_run, made, "timm", embedder=str(many))
    exact = tokens(made, many)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = tokens(made, many)
    assert torch.nn.functional.cosine_similarity(exact, coarse).mean() > 0.8


def test_edited_views_find_their_pictures_better_than_before(
    sharded_run: Path, many: Path, tmp_path: Path
) -> None:
    write_export(sharded_run, tmp_path / "plain", "timm")
    write_export(sharded_run, tmp_path / "made", "timm", embedder=str(many))
    pictures = [Image.open(io.BytesIO(small_run.draw(number))) for number in range(100, 140)]
    darker = [picture.point(lambda level: level * 0.7) for picture in pictures]

    def found(folder: Path) -> float:
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        transform = create_transform(**resolve_data_config({}, model=model))
        with torch.inference_mode():
            ours, theirs = (
                torch.nn.functional.normalize(model(torch.stack(list(map(transform, side)))), dim=1)
                for side in (darker, pictures)
            )
        return float(((ours @ theirs.T).argmax(1) == torch.arange(len(pictures))).float().mean())

    assert found(tmp_path / "made") > found(tmp_path / "plain") + 0.1


def test_attention_is_that_of_the_last_block_which_looks(
    sharded_run: Path, many: Path, tmp_path: Path
) -> None:
    write_export(sharded_run, tmp_path / "plain", "timm")
    write_export(sharded_run, tmp_path / "both", "timm", embedder=str(many))
    pixels = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.manual_seed(0)).to(torch.uint8)
    names = [str(tmp_path / name) for name in ("plain", "both")]
    maps = [
        cls_attention(model.parts[0], pixels)
        for model in load_models(names, device="cpu", precision="float32")
    ]
    torch.testing.assert_close(maps[0], maps[1], atol=1e-3, rtol=0)
    assert maps[0].std() > 0


def test_too_few_images_and_gated_blocks_are_said_in_one_line(
    sharded_run: Path, many: Path, tmp_path: Path
) -> None:
    few = str(write_shards(tmp_path / "few"))
    with pytest.raises(LvdError, match="name at least 80"):
        write_export(sharded_run, tmp_path / "out", "timm", embedder=few)
    with pytest.raises(LvdError, match="leave --centre away"):
        write_export(sharded_run, tmp_path / "out", "timm", embedder=few, centre=few)
    options = {"embed_dim": 24, "depth": 1, "num_heads": 2}
    gated = ModelSettings(name="vit_giant_patch14_dinov2", patch_size=16, options=options)
    state = build_backbone(gated, image_size=32, masked=False).state_dict()
    write_model_folder(state, gated, 32, tmp_path / "gated")
    with pytest.raises(LvdError, match="plain MLPs with biases"):
        write_export(tmp_path / "gated", tmp_path / "out", "timm", embedder=str(many))
    options = {**options, "num_heads": 2, "qk_norm": True}
    normed = ModelSettings(name="vit_tiny_patch16_224", patch_size=16, options=options)
    state = build_backbone(normed, image_size=32, masked=False).state_dict()
    write_model_folder(state, normed, 32, tmp_path / "normed")
    with pytest.raises(LvdError, match=r"--embedder: .*norm.* cannot be widened: leave it away"):
        write_export(tmp_path / "normed", tmp_path / "out", "timm", embedder=str(many))
    assert not (tmp_path / "out").exists()
