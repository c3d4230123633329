"""The shipped second stages, high resolution and distillation, on the runs that they go on from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from small_run import lines, run_here, write_shards
from timm.layers import resample_abs_pos_embed

from train.frozen.loading import load_models

SHIPPED = Path(__file__).parents[2] / "pipelines.yaml"
SHORT = (
    "batch_size=8",
    "group_size=8",
    "crops.local_views=2",
    "accumulate=1",
    "model.options.depth=1",
    "steps=2",
    "parallel.precision=float32",
    "data.workers=0",
    "looks.times=0",
    "knn.every=null",
)
STILL = ("steps=1", "optimiser.base_lr=1.0e-12", "optimiser.min_lr=0", "teacher.momentum=[1,1]")


def stage(recipe: str, shards: Path, out: Path, *changes: str) -> Path:
    given = [text for change in (*SHORT, *changes) for text in ("--set", change)]
    asked = ["run", "--config", str(SHIPPED), "--recipe", recipe]
    run_here([*asked, "--shards", str(shards), "--out", str(out), *given])
    return out


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("stages") / "shards")


@pytest.fixture(scope="module", params=["tiny", "cifar"])
def first(request: pytest.FixtureRequest, shards: Path) -> tuple[str, Path]:
    return request.param, stage(request.param, shards, shards.parent / request.param)


@pytest.fixture(scope="module")
def larger(first: tuple[str, Path], shards: Path) -> Path:
    """The OUT of the shipped stage at high resolution, whose weights do not move."""
    name, before = first
    out = shards.parent / f"{name}-highres"
    return stage(f"{name}-highres", shards, out, f"continue_from={before}", *STILL)


def table(out: Path) -> torch.Tensor:
    return load_file(out / "model" / "model.safetensors")["pos_embed"]


def test_a_high_resolution_stage_goes_on_and_saves_a_model_at_its_size(
    first: tuple[str, Path], larger: Path
) -> None:
    name, before = first
    config = json.loads((larger / "model" / "config.json").read_text())
    size = config["pretrained_cfg"]["input_size"][-1]
    assert size == {"tiny": 96, "cifar": 48}[name]
    side = size // config["model_args"]["patch_size"]
    resized = resample_abs_pos_embed(table(before), [side, side], num_prefix_tokens=1)
    torch.testing.assert_close(table(larger), resized)
    ours, theirs = (lines(folder) for folder in (larger, before))
    end = [line for line in theirs if "loss" in line][-1]
    begin = next(line for line in ours if "loss" in line)
    for loss in ("dino", "ibot"):  # the heads went on too: it does not begin where it once did
        assert begin[loss] == pytest.approx(end[loss], rel=0.1)


def test_position_embeddings_are_resized_alike_in_training_eval_export_and_timm(
    first: tuple[str, Path], larger: Path, tmp_path: Path
) -> None:
    _, before = first
    size = json.loads((larger / "model" / "config.json").read_text())["model_args"]["img_size"]
    source = f"local-dir:{before / 'model'}"
    model = timm.create_model(source, pretrained=True, img_size=size)
    torch.testing.assert_close(table(larger), model.state_dict()["pos_embed"])
    for source in (before, before / "model"):
        (found,) = load_models([str(source)], size=size, device="cpu")
        torch.testing.assert_close(found.parts[0].vit.pos_embed, model.pos_embed)
    run_here(["export", str(before), "--out", str(tmp_path / "export"), "--size", str(size)])
    exported = load_file(tmp_path / "export" / "model.safetensors")
    torch.testing.assert_close(exported["pos_embed"], model.state_dict()["pos_embed"])


def test_a_shipped_student_is_distilled_from_its_larger_sibling(
    first: tuple[str, Path], shards: Path, tmp_path: Path
) -> None:
    name, before = first
    teacher = f"distillation.teacher={before}"
    out = stage(f"{name}-distilled", shards, tmp_path / "out", teacher)
    assert table(out).shape[-1] < table(before).shape[-1]
    assert all(line["loss"] == line["loss"] for line in lines(out) if "loss" in line)


def test_larger_patches_go_on_with_the_tokens_of_smaller_ones(
    first: tuple[str, Path], shards: Path, tmp_path: Path
) -> None:
    name, before = first
    arguments = json.loads((before / "model" / "config.json").read_text())["model_args"]
    patch, size = 2 * arguments["patch_size"], 2 * arguments["img_size"]
    changes = (
        *(f"continue_from={before}", f"model.patch_size={patch}", f"crops.global_size={size}"),
        *(f"crops.local_size={size // 2}", *STILL),
    )
    out = stage(name, shards, tmp_path / "out", *changes)
    small, large = (
        timm.create_model(f"local-dir:{folder / 'model'}", pretrained=True).eval()
        for folder in (before, out)
    )
    images = torch.randn(2, 3, patch // 2, patch // 2, generator=torch.manual_seed(0))
    up = torch.nn.functional.interpolate(images, size=patch, mode="bicubic", antialias=True)
    with torch.inference_mode():
        one, other = small.patch_embed.proj(images), large.patch_embed.proj(up)
    torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
    ours, theirs = lines(out), lines(before)
    end = [line for line in theirs if "loss" in line][-1]
    begin = next(line for line in ours if "loss" in line)
    for loss in ("dino", "ibot"):
        assert begin[loss] == pytest.approx(end[loss], rel=0.1)
