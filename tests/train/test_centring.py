"""A centred export differs from what was trained by a shift, and its mean is zero by plain timm."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file
from small_run import write_shards
from timm.data import create_transform, resolve_data_config

from shared.errors import LvdError
from train.export import centring
from train.export.command import export
from train.export.formats import write_export


def tokens(folder: Path, shards: Path) -> torch.Tensor:
    """What plain timm gives for the pictures of all shards, in float64."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config({}, model=model))
    pictures = []
    for shard in sorted(shards.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    picture = Image.open(io.BytesIO(tar.extractfile(member).read()))
                    pictures.append(transform(picture.convert("RGB")))
    with torch.inference_mode():
        return model(torch.stack(pictures)).double()


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
    with pytest.raises(LvdError, match="leave --network, --size and --centre away"):
        write_export(sharded_run, tmp_path / "out", "heads", centre=str(broken))
