"""Distillation: a frozen teacher of another size sets the targets, the student's average is kept."""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from given_logits import given
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from small_run import (
    command,
    lines,
    run_command,
    run_here,
    run_twofold,
    started,
    write_config,
    write_shards,
)

from shared.storage.files import read_json
from train.cli import main
from train.data.crops import normalise
from train.distillation.anchors import AnchorHead, sample_anchors
from train.distillation.frozen_teacher import FrozenTeacher
from train.distributed.ranks import Ranks
from train.estimate import estimate
from train.export.formats import write_export
from train.objectives.ibot_loss import ibot_loss
from train.objectives.targets import Targets
from train.optimisation.schedules import Values
from train.preview import load_of
from train.recipe import Recipe
from train.step import GLOBAL_VIEWS, MicroBatch, optimiser_step
from train.student import new_network
from train.system import build_system, frozen_teacher
from train.weights.continuation import read_network
from train.weights.trained import find_trained

ALONE = Ranks(0, 1, 0, torch.device("cpu"))
VALUES = Values(1e-3, 0.04, 0.5, 0.04, last_layer_frozen=False)

STUDENT = {
    "patch_size": 16,
    "options": {"embed_dim": 16, "depth": 1, "num_heads": 2},
    "drop_path": 0,
}
"""Narrower, shallower and of coarser patches than the run of `small_run` that teaches it."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, a configuration with a recipe `student`, and the finished run of a teacher."""
    folder = tmp_path_factory.mktemp("distillation")
    write_shards(folder / "shards")
    write_config(
        folder,
        student={
            "like": "small",
            "masks": None,
            "model": STUDENT,
            "distillation": {"teacher": str(folder / "teacher")},
        },
    )
    asked = command(folder / "pipelines.yaml", folder / "shards", folder / "teacher")
    run_here([*asked, "--set", "steps=4", "--set", "checkpoints.every=2"])
    return folder


def distil(place: Path, out: Path, *more: str) -> list[str]:
    return command(place / "pipelines.yaml", place / "shards", out, *more, recipe="student")


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> Path:
    run_command(distil(place, place / "out"))
    return place / "out"


def recipe(place: Path, **changes: object) -> Recipe:
    tree = read_json(place / "teacher" / "run.json")["recipe"]
    student = tree["model"] | STUDENT
    settings = {
        "model": student,
        "masks": None,
        "distillation": {"teacher": str(place / "teacher")},
    }
    return Recipe.model_validate(tree | settings | changes)


def views(seed: int = 0, images: int = 4) -> MicroBatch:
    draw = torch.Generator().manual_seed(seed)
    patches = 4
    return MicroBatch(
        torch.randn(GLOBAL_VIEWS * images, 3, 32, 32, generator=draw),
        torch.randn(2 * images, 3, 16, 16, generator=draw),
        None,
        torch.arange(GLOBAL_VIEWS * images * patches),
        torch.full((GLOBAL_VIEWS * images * patches,), 1 / patches),
    )


def test_a_run_distils_into_a_student_of_another_size(place: Path, undisturbed: Path) -> None:
    losses = [line for line in lines(undisturbed) if "loss" in line]
    assert len(losses) == 12
    assert all(math.isfinite(line["loss"]) and line["ibot"] > 0 for line in losses)
    assert load_file(undisturbed / "model" / "model.safetensors")["pos_embed"].shape == (1, 5, 16)


@pytest.mark.parametrize("kind", ["run", "timm"])
def test_a_teacher_with_rounded_weights_says_what_it_says_whole(place: Path, kind: str) -> None:
    changes = {"parallel": {"precision": "bfloat16"}}
    if kind == "timm":
        changes["distillation"] = {"teacher": str(place / "teacher" / "model")}
    asked = recipe(place, **changes)
    kept = build_system(asked, ALONE).frozen_teacher
    whole = frozen_teacher(asked, (2, 2), ALONE.device)
    kept.load_state_dict(whole.state_dict())  # the anchors, which there are none of yet
    some = views()
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = (
            teacher(some.global_views, masked_index=some.index) for teacher in (kept, whole)
        )
    assert torch.equal(found.cls, expected.cls)
    for ours, theirs in zip(found.whole(), expected.whole(), strict=True):
        assert torch.equal(ours, theirs)
    assert kept.fingerprint == whole.fingerprint
    held, all_of_it = (sum(t.nbytes for t in m.encoder.parameters()) for m in (kept, whole))
    assert held < 0.6 * all_of_it
    student = new_network(asked, "meta")
    estimated = estimate(student, load_of(asked, student, 1, ALONE.device), whole)
    assert estimated.memory["frozen teacher"] == sum(t.nbytes for t in kept.state_dict().values())


def test_a_run_in_bfloat16_distils_to_its_end_and_tells_its_rates(place: Path) -> None:
    asked = distil(place, place / "rounded", "--set", "parallel.precision=bfloat16")
    run_here([*asked, "--set", "steps=4"])
    assert read_json(place / "rounded" / "done.json") == {"steps": 4}
    assert '"tokens_per_second": ' in (place / "rounded" / "metrics.jsonl").read_text()


# "the teacher holds no gradients and no optimiser state"
def test_the_frozen_teacher_is_neither_trained_nor_saved(place: Path, undisturbed: Path) -> None:
    system = build_system(recipe(place, batch_size=4), ALONE)
    frozen = system.frozen_teacher
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    averaged = {name: tensor.clone() for name, tensor in system.teacher.state_dict().items()}
    optimiser_step(system, [views()], VALUES, 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in frozen.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in frozen.parameters())
    mine = {id(p) for p in frozen.parameters()}
    optimised = {id(p) for group in system.optimiser.param_groups for p in group["params"]}
    assert not mine & (optimised | {id(p) for p in system.teacher.parameters()})
    for name, tensor in system.teacher.state_dict().items():
        expected = 0.5 * averaged[name] + 0.5 * system.student.state_dict()[name]
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-7)
    names = read_json(undisturbed / "checkpoints" / "step-0000012" / "manifest.json")["tensors"]
    assert {name.partition("/")[0] for name in names} == {
        *("student", "teacher", "optimiser"),
    }


def test_the_targets_are_those_of_the_teachers_own_heads(place: Path) -> None:
    network = find_trained(place / "teacher").network("teacher")
    frozen = build_system(recipe(place, model=network_settings(place)), ALONE).frozen_teacher
    batch = views(images=2).global_views
    index = torch.tensor([0, 3, 17, 40])
    ours, theirs = frozen(batch, masked_index=index), network(batch, masked_index=index)
    torch.testing.assert_close(ours.cls_logits, theirs.cls_logits)
    torch.testing.assert_close(ours.patch_logits, theirs.patch_logits)


def test_a_step_folder_teaches_by_its_own_heads(place: Path, tmp_path: Path) -> None:
    steps = sorted((place / "teacher" / "checkpoints").glob("step-*"))
    assert len(steps) > 1
    export = tmp_path / "heads"
    write_export(place / "teacher", export, "heads")
    batch, index = views(images=2).global_views, torch.tensor([0, 3, 17, 40])
    seen = []
    for source in (*steps, export):
        changes = {"model": network_settings(place), "distillation": {"teacher": str(source)}}
        frozen = build_system(recipe(place, **changes), ALONE).frozen_teacher
        network = find_trained(source).network("teacher")
        ours, theirs = frozen(batch, masked_index=index), network(batch, masked_index=index)
        torch.testing.assert_close(ours.cls_logits, theirs.cls_logits)
        torch.testing.assert_close(ours.patch_logits, theirs.patch_logits)
        seen.append(ours.cls_logits)
    assert not torch.equal(seen[0].whole(), seen[1].whole())
    torch.testing.assert_close(seen[-1], seen[-2])


def network_settings(place: Path) -> dict:
    return read_json(place / "teacher" / "run.json")["recipe"]["model"] | {"drop_path": 0}


class Coordinates(torch.nn.Module):
    """Says of each patch of 4 px at which row and column of pixels its middle is."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        count, _, height, width = images.shape
        rows, columns = torch.meshgrid(
            torch.arange(2.0, height, 4), torch.arange(2.0, width, 4), indexing="ij"
        )
        patches = torch.stack([rows, columns], dim=-1)
        return images.flatten(1)[:, :2], patches.expand(count, *patches.shape)


@pytest.mark.parametrize("grid", [(2, 4), (8, 4), (3, 3)])
def test_patches_are_resampled_where_they_are(grid: tuple[int, int]) -> None:
    encoder = Coordinates()
    teacher = FrozenTeacher(encoder, encoder, torch.nn.Identity(), None, patch=4, grid=grid)
    _, patches = teacher.tokens(torch.zeros(1, 3, 64, 64))
    rows, columns = patches.unflatten(1, grid)[0].movedim(-1, 0)
    inner = (slice(1, -1), slice(None)) if grid[0] > 2 else (slice(None), slice(None))
    middles = [(torch.arange(side) + 0.5) * 64 / side for side in grid]
    atol = 64 / min(grid) / 8  # at the border, bilinear weights have fewer patches to weigh
    torch.testing.assert_close(rows, middles[0][:, None].expand(grid), rtol=0, atol=atol)
    torch.testing.assert_close(columns[inner], middles[1].expand(grid)[inner], rtol=0, atol=atol)


def test_views_are_resized_to_whole_patches_of_the_teacher() -> None:
    seen = []

    def encode(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(tuple(images.shape[-2:]))
        return Coordinates()(images)

    teacher = FrozenTeacher(
        torch.nn.Identity(), encode, torch.nn.Identity(), None, patch=14, grid=(4, 4)
    )
    teacher.tokens(torch.zeros(1, 3, 64, 32))
    assert seen == [(70, 28)]


def test_at_all_places_the_patch_loss_is_the_mean_over_patches_and_views() -> None:
    batch = views(images=2)
    draw = torch.Generator().manual_seed(0)
    logits, asked = (torch.randn(16, 6, generator=draw, dtype=torch.float64) for _ in range(2))
    asked = asked.softmax(dim=1)
    expected = -(asked * (logits / 0.1).log_softmax(dim=1)).sum(dim=1).mean()
    targets = Targets(asked.float(), torch.ones(6))
    found = ibot_loss(given(logits.float()), targets, batch.weights, crops=4, temperature=0.1)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_an_anchor_head_gives_cosines_seen_from_the_anchors_mean() -> None:
    generator = np.random.default_rng(0)
    tokens, asked = generator.normal(3, 1, (5, 8)), generator.normal(3, 1, (4, 8))
    centred, seen = tokens - tokens.mean(0), asked - tokens.mean(0)
    expected = (seen / np.linalg.norm(seen, axis=1, keepdims=True)) @ (
        centred / np.linalg.norm(centred, axis=1, keepdims=True)
    ).T
    head = AnchorHead(8, 5)
    head.anchor_at(torch.from_numpy(tokens).float())
    found = head(torch.from_numpy(asked).float()).whole()
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("counts", [(5, 0), (5, 12), (3, 100), (9, 2)])
def test_anchors_are_as_many_as_asked_for_and_tokens_of_the_views(counts: tuple[int, int]) -> None:
    batches = [
        torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(n)) for n in range(9)
    ]

    def encode(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images[:, :, 0, 0], images.flatten(2).transpose(1, 2)[:, :20]

    cls, patches = sample_anchors(encode, iter(batches), counts, 1, ALONE)
    again = sample_anchors(encode, iter(batches), counts, 1, ALONE)
    assert (len(cls), len(patches)) == counts
    assert torch.equal(cls, again[0])
    assert torch.equal(patches, again[1])
    known = {tuple(row) for batch in batches for row in encode(batch)[1].flatten(0, 1).tolist()}
    assert {tuple(row) for row in patches.tolist()} <= known
    assert len({tuple(row) for row in patches.tolist()}) == counts[1]


# pitfall 15
def test_a_killed_distillation_goes_on_as_if_nothing_had_been(
    place: Path, undisturbed: Path
) -> None:
    asked = distil(place, place / "killed")
    deadline = time.monotonic() + 120
    with started(asked, place / "killed.log") as process:
        while not (place / "killed" / "checkpoints" / "step-0000004").exists():
            assert process.poll() is None, process.log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.said(-signal.SIGKILL)
    run_command(asked)
    assert lines(place / "killed") == lines(undisturbed)


def test_two_processes_distil_as_one(place: Path, tmp_path: Path) -> None:
    told = []
    run_here(distil(place, tmp_path / "one", "--set", "steps=3"))
    run_twofold(distil(place, tmp_path / "two", "--set", "steps=3"), tmp_path)
    for name in ("one", "two"):
        told.append([line["loss"] for line in lines(tmp_path / name) if "loss" in line])
    assert told[0] == pytest.approx(told[1], rel=1e-3)


def test_another_teacher_is_refused_on_resuming(place: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(place / "teacher", teacher)
    asked = distil(place, tmp_path / "out", "--set", f"distillation.teacher={teacher}")
    run_here([*asked, "--set", "steps=4"])
    shutil.rmtree(teacher / "checkpoints" / "step-0000004")  # step 2 is now its newest
    for more, said in (
        (["--set", "steps=6"], "other weights"),
        (["--set", f"distillation.teacher={place / 'teacher'}"], "holds a run with distillation"),
    ):
        result = CliRunner().invoke(main, [*asked, *more])
        assert result.exit_code == 2
        assert said in result.output.splitlines()[-1]


@pytest.fixture(scope="module")
def foreign(place: Path) -> Path:
    """A model folder of timm's: another normalisation, registers, patches of 8 px, no heads."""
    torch.manual_seed(7)
    arguments = {"img_size": 40, "embed_dim": 24, "depth": 2, "num_heads": 2, "reg_tokens": 2}
    arguments |= {"patch_size": 8}
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **arguments)
    folder = place / "foreign"
    folder.mkdir()
    save_file(vit.state_dict(), folder / "model.safetensors")
    config = {"input_size": [3, 40, 40], "mean": [0.5] * 3, "std": [0.25] * 3, "num_classes": 0}
    about = {"architecture": "vit_tiny_patch16_224", "num_classes": 0, "model_args": arguments}
    (folder / "config.json").write_text(json.dumps({**about, "pretrained_cfg": config}))
    return folder


def test_a_model_without_heads_teaches_by_anchors(place: Path, foreign: Path) -> None:
    system = build_system(recipe(place, distillation={"teacher": str(foreign)}), ALONE)
    frozen = system.frozen_teacher
    pictures = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    vit = timm.create_model(f"local-dir:{foreign}", pretrained=True, dynamic_img_size=True).eval()
    with torch.no_grad():
        theirs = vit.forward_features((pictures / 255 - 0.5) / 0.25)
    cls, patches = frozen.tokens(normalise(pictures))
    torch.testing.assert_close(cls, theirs[:, 0], rtol=1e-4, atol=1e-4)
    assert patches.shape == (6, 4, 24)  # 16 patches of 8 px, on the student's grid of 16 px
    means = theirs[:, 3:].mean(dim=1)
    torch.testing.assert_close(patches.mean(dim=1), means, rtol=0, atol=0.2)
    frozen.take_anchors(cycle([normalise(pictures)]), 0, ALONE)
    logits = frozen(normalise(pictures), masked_index=torch.arange(24))
    own = logits.cls_logits.whole()[:, :6].diagonal()
    torch.testing.assert_close(own, torch.ones(6), rtol=0, atol=1e-5)
    assert logits.patch_logits.whole().shape == (24, 32)
    assert logits.cls_logits.whole().max() <= 1 + 1e-5


def test_anchors_are_kept_with_the_run(place: Path, foreign: Path, tmp_path: Path) -> None:
    shorter = [*distil(place, tmp_path / "out"), "--set", f"distillation.teacher={foreign}"]
    run_here([*shorter, "--set", "steps=4"])
    folder = tmp_path / "out" / "checkpoints"
    anchors = read_network(folder / "step-0000004", "distillation/anchors/dino")
    assert anchors["anchors"].shape == (32, 24)
    assert anchors["anchors"].abs().sum() > 0
    run_here([*shorter, "--set", "steps=8"])
    later = read_network(folder / "step-0000008", "distillation/anchors/dino")
    assert all(torch.equal(later[name], anchors[name]) for name in anchors)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"masks": {}}, "masks nothing"),
        ({"model": {"name": "vit_tiny_patch16_224", "drop_path": 0.1}}, "drop_path=0"),
        ({"distillation": {"teacher": ""}}, "teacher"),
    ],
)
def test_a_distillation_masks_nothing_and_drops_nothing(
    place: Path, change: dict, said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        recipe(place, **change)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("heads.dino.prototypes=16", "heads.dino.prototypes=32"),
        ("heads.ibot.prototypes=16", "heads.ibot.prototypes=32"),
        ("distillation.teacher=nowhere/else", "nowhere"),
        ("distillation.teacher=pixels", "CLS"),
    ],
)
def test_a_teacher_that_does_not_fit_is_one_line(
    place: Path, tmp_path: Path, setting: str, said: str
) -> None:
    result = CliRunner().invoke(main, distil(place, tmp_path / "out", "--set", setting))
    assert result.exit_code == 2, result.output
    (line,) = result.output.strip().splitlines()
    assert said in line


def test_a_dry_run_counts_the_frozen_teacher(place: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, distil(place, tmp_path / "out", "--dry-run"))
    assert result.exit_code == 0, result.output
    assert "frozen teacher" in result.output
    assert not (tmp_path / "out").exists()
