"""One optimiser step: the same for one process and two, however the batch is cut; and skipped whole."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import run_ranks
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

import train as package
from train.distributed.ranks import Ranks, process_group
from train.objectives.ibot_loss import mask_weights
from train.optimisation.schedules import Values
from train.recipe import Recipe
from train.step import GLOBAL_VIEWS, MicroBatch, Report, optimiser_step
from train.system import System, build_system

IMAGES, LOCAL_VIEWS, SIDE, LOCAL_SIDE, PATCH = 8, 3, 32, 16, 8
VALUES = Values(1e-3, 0.04, 0.9, 0.04, last_layer_frozen=False)
ALONE = Ranks(0, 1, 0, torch.device("cpu"))
STEPS = 2


def recipe(**changes) -> Recipe:
    head = {"prototypes": 48, "hidden": 32, "bottleneck": 16}
    settings = {
        "batch_size": IMAGES,
        "group_size": 2,
        "crops": {"global_size": SIDE, "local_size": LOCAL_SIDE, "local_views": LOCAL_VIEWS},
        "masks": {},
        "model": {
            "name": "vit_tiny_patch16_224",
            "patch_size": PATCH,
            "options": {"embed_dim": 24, "depth": 1, "num_heads": 2, "reg_tokens": 1},
            "layer_scale": 0.1,
        },
        "heads": {"dino": head, "ibot": head},
        "optimiser": {"clip": None},
        "parallel": {"precision": "float32", "device": "cpu"},
    }
    return Recipe.model_validate(settings | changes)


def micro_batch(images: slice, seed: int = 0) -> MicroBatch:
    """The views of some of the images of one global batch, crop-major, with two kinds of masks."""
    generator = torch.Generator().manual_seed(seed)
    patches = (SIDE // PATCH) ** 2
    global_views = torch.randn(GLOBAL_VIEWS, IMAGES, 3, SIDE, SIDE, generator=generator)
    local_views = torch.randn(LOCAL_VIEWS, IMAGES, 3, LOCAL_SIDE, LOCAL_SIDE, generator=generator)
    masks = torch.zeros(GLOBAL_VIEWS, IMAGES, patches, dtype=torch.bool)
    masks[0, :, :4] = True
    masks[1, ::3, 5:7] = True
    mine = masks[:, images].flatten(0, 1)
    index, weights = mask_weights(mine)
    return MicroBatch(
        global_views[:, images].flatten(0, 1),
        local_views[:, images].flatten(0, 1),
        mine,
        index,
        weights,
    )


def train(system: System, cuts: list[slice]) -> dict[str, object]:
    """Some steps on the same global batch cut in this way; what must not depend on the cut."""
    losses, gradients = [], {}
    for step in range(STEPS):
        batches = [micro_batch(cut, seed=step) for cut in cuts]
        report = optimiser_step(system, batches, VALUES, step)
        losses.append(report.losses)
        if step == 0:
            gradients = {n: whole(p.grad) for n, p in system.student.named_parameters()}
    teacher = {n: whole(p.detach()) for n, p in system.teacher.named_parameters()}
    return {"losses": losses, "gradients": gradients, "teacher": teacher, "norms": report.norms}


READS = {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::is_nonzero"}


class Traffic(TorchDispatchMode):
    """Counts what is read on the host, and what is sent, by the module of ours that asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        if function.name() in READS:
            self.reads[asker()] += 1
        if function.namespace in ("c10d", "_c10d_functional"):
            self.sent[asker()] += 1
        return function(*args, **(kwargs or {}))


def asker() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(Path(package.__file__).parent) and path.stem != "ranks":
            return path.stem
        frame = frame.f_back
    return "a test"


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


CUT = {"group_size": IMAGES, "objectives": {"infonce": 0.5}}
PROJECTED = {"objectives": {"infonce": 0.5}, "projector": {"hidden": 32, "width": 16}}


def in_each_process(folder: Path) -> None:
    with process_group("cpu") as ranks:
        rank = ranks.rank
        half = IMAGES // 2
        mine = slice(rank * half, rank * half + half)
        for name, strategy, extra in (
            ("ddp", "ddp", {}),
            ("fsdp", "fsdp", {}),
            ("fsdp-checkpointed", "fsdp", {"activation_checkpointing": True}),
            ("hsdp", "hsdp", {"shard_group": 1}),
            ("ddp-ema", "ddp", {}),
            ("ddp-projected", "ddp", {}),
            ("fsdp-projected", "fsdp", {}),
            ("ddp-cut", "ddp", {}),
            ("fsdp-cut", "fsdp", {}),
        ):
            changes = {"parallel": {"precision": "float32", "strategy": strategy, **extra}}
            if name.endswith("ema"):
                changes["objectives"] = {"centering": {"kind": "ema"}}
            if name.endswith("projected"):
                changes |= PROJECTED
            if name.endswith("cut"):
                changes |= CUT
            system = build_system(recipe(**changes), ranks)
            found = train(system, [mine])
            if name in ("ddp", "fsdp"):
                views = [micro_batch(mine)]
                with Traffic() as traffic:
                    optimiser_step(system, views, VALUES, STEPS, {"asked": rank})
                found |= {"reads": traffic.reads, "sent": traffic.sent}
            if rank == 0:
                torch.save(found, folder / f"{name}.pt")
        quarters = [slice(mine.start, mine.start + 2), slice(mine.start + 2, mine.stop)]
        system = build_system(recipe(accumulate=2), ranks)
        found = train(system, quarters)
        # An image with a number that is none, on the second process only.
        report = optimiser_step(system, [poisoned(mine, rank == 1)], VALUES, STEPS)
        found["skipped"] = report.skipped
        found["counts"] = optimiser_step(
            system, [micro_batch(mine)], VALUES, STEPS, {"asked": rank, "broken": 3}
        ).agreement.counts
        if rank == 0:
            torch.save(found, folder / "ddp-accumulated.pt")


def poisoned(cut: slice, poison: bool) -> MicroBatch:
    batch = micro_batch(cut)
    if poison:
        batch.global_views[0, 0, 0, 0] = torch.nan
    return batch


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("two")
    run_ranks(in_each_process, folder, folder=folder)
    return {path.stem: torch.load(path, weights_only=True) for path in folder.glob("*.pt")}


@pytest.fixture(scope="module")
def one_process() -> dict[str, object]:
    return train(build_system(recipe(), ALONE), [slice(0, IMAGES)])


def assert_same(found: dict, expected: dict) -> None:
    for ours, theirs in zip(found["losses"], expected["losses"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    for name, gradient in expected["gradients"].items():
        torch.testing.assert_close(
            found["gradients"][name], gradient, rtol=1e-3, atol=2e-6, msg=lambda m, n=name: n + m
        )
    for name, weight in expected["teacher"].items():
        torch.testing.assert_close(found["teacher"][name], weight, rtol=1e-3, atol=2e-4)


# pitfall 12
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "fsdp-checkpointed", "hsdp"])
def test_two_processes_train_as_one(two_processes: dict, one_process: dict, strategy: str) -> None:
    assert_same(two_processes[strategy], one_process)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_projector_of_two_processes_trains_as_that_of_one(
    two_processes: dict, strategy: str
) -> None:
    alone = train(build_system(recipe(**PROJECTED), ALONE), [slice(0, IMAGES)])
    assert "projector.mlp.0.weight" in alone["gradients"]
    assert_same(two_processes[f"{strategy}-projected"], alone)


# pitfall 5
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_group_that_lies_on_two_processes_trains_as_on_one(
    two_processes: dict, strategy: str
) -> None:
    assert_same(
        two_processes[f"{strategy}-cut"],
        train(build_system(recipe(**CUT), ALONE), [slice(0, IMAGES)]),
    )


# pitfall 12
def test_the_centre_of_two_processes_is_that_of_one(two_processes: dict) -> None:
    alone = build_system(recipe(objectives={"centering": {"kind": "ema"}}), ALONE)
    assert_same(two_processes["ddp-ema"], train(alone, [slice(0, IMAGES)]))


# pitfall 20
@pytest.mark.parametrize(
    "cuts", [[slice(0, 4), slice(4, 8)], [slice(i, i + 2) for i in (0, 2, 4, 6)]]
)
def test_accumulated_micro_batches_train_as_the_whole_batch(
    one_process: dict, cuts: list[slice]
) -> None:
    system = build_system(recipe(accumulate=len(cuts)), ALONE)
    assert_same(train(system, cuts), one_process)


# pitfall 20
def test_accumulation_on_two_processes_trains_as_one(
    two_processes: dict, one_process: dict
) -> None:
    assert_same(two_processes["ddp-accumulated"], one_process)


# pitfall 12
def test_a_step_that_one_process_must_skip_is_skipped_by_all(two_processes: dict) -> None:
    assert two_processes["ddp-accumulated"]["skipped"]


def test_counts_are_those_of_all_processes(two_processes: dict) -> None:
    assert two_processes["ddp-accumulated"]["counts"] == {"asked": 1, "broken": 6}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_step_agrees_in_one_collective_and_asks_the_device_nothing(
    two_processes: dict, strategy: str
) -> None:
    found = two_processes[strategy]
    assert found["sent"]["agreement"] == 1
    # The rest are gradients and weights, sent in the passes that the step calls, and centerings.
    assert set(found["sent"]) <= {"agreement", "centering", "step", "network", "backbone"}
    assert set(found["reads"]) <= {"cross_entropy"}, "which asks on a CPU alone"


UNTAUGHT = {
    "objectives": {"dino": 0, "ibot": 0, "infonce": 1, "koleo": 2},
    "masks": None,
    "heads": None,
}
PROJECTOR = {"hidden": 32, "width": 16}


def untaught_batch(images: slice) -> MicroBatch:
    batch = micro_batch(images)
    return MicroBatch(batch.global_views, batch.local_views, None, None, None)


@pytest.mark.parametrize("projector", [None, PROJECTOR])
def test_a_step_without_heads_asks_no_teacher_and_averages_one(projector: dict | None) -> None:
    system = build_system(recipe(**UNTAUGHT, projector=projector), ALONE)
    before = moving_parts(system)
    system.teacher_called = None  # a call of it would fail
    report = optimiser_step(system, [untaught_batch(slice(0, IMAGES))], VALUES, 0)
    assert set(report.losses) == {"infonce", "koleo", "loss"}
    assert report.losses["loss"] == pytest.approx(
        report.losses["infonce"] + 2 * report.losses["koleo"], rel=1e-5
    )
    assert report.targets == []
    moved = moving_parts(system)
    names = ["backbone.vit.blocks.0.mlp.fc1.weight"]
    for name in names + (["projector.mlp.0.weight"] if projector else []):
        assert not torch.equal(moved[f"teacher/{name}"], before[f"teacher/{name}"]), name


def test_infonce_is_the_same_however_the_batch_is_cut() -> None:
    found = []
    for cuts in ([slice(0, 8)], [slice(0, 4), slice(4, 8)]):
        changes = UNTAUGHT | {"projector": PROJECTOR, "accumulate": len(cuts)}
        system = build_system(recipe(**changes), ALONE)
        for step in range(STEPS):
            report = optimiser_step(system, [untaught_batch(cut) for cut in cuts], VALUES, step)
        found.append(report.losses)
    assert found[0] == pytest.approx(found[1], rel=1e-4)


# pitfalls 10 and 16
def test_a_step_that_is_not_finite_moves_nothing() -> None:
    system = build_system(recipe(objectives={"centering": {"kind": "ema"}}), ALONE)
    optimiser_step(system, [micro_batch(slice(0, 4))], VALUES, 0)
    before = moving_parts(system)
    report = optimiser_step(system, [poisoned(slice(0, 4), True)], VALUES, 1)
    assert report.skipped
    assert report.losses["loss"] != report.losses["loss"]
    for name, tensor in moving_parts(system).items():
        assert torch.equal(tensor, before[name]), name
    report = optimiser_step(system, [micro_batch(slice(0, 4))], VALUES, 2)
    assert not report.skipped
    assert any(not torch.equal(t, before[n]) for n, t in moving_parts(system).items())


def moving_parts(system: System) -> dict[str, torch.Tensor]:
    moments = {
        f"{number}/{name}": tensor
        for number, state in enumerate(system.optimiser.state.values())
        for name, tensor in state.items()
    }
    states = {
        f"{owner}/{name}": tensor
        for owner in ("student", "teacher", "dino_centering", "ibot_centering")
        if getattr(system, owner) is not None
        for name, tensor in getattr(system, owner).state_dict().items()
    }
    return {name: tensor.detach().clone() for name, tensor in (moments | states).items()}


# pitfall 6
def test_the_reported_loss_is_the_optimised_one() -> None:
    weights = {"dino": 0.7, "ibot": 1.3, "koleo": 0.2}
    system = build_system(recipe(objectives=weights), ALONE)
    name, parameter = next(
        (n, p) for n, p in system.student.named_parameters() if n.endswith("mlp.0.bias")
    )
    start = {n: p.detach().clone() for n, p in system.student.named_parameters()}
    place, nudge = 3, 1e-2

    def reported(change: float) -> tuple[Report, float]:
        with torch.no_grad():
            for n, p in system.student.named_parameters():
                p.copy_(start[n])
            parameter[place] += change
        still = Values(0.0, 0.0, 1.0, 0.04, last_layer_frozen=False)
        report = optimiser_step(system, [micro_batch(slice(0, IMAGES))], still, 0)
        return report, parameter.grad[place].item()

    report, slope = reported(0.0)
    parts = sum(weight * report.losses[part] for part, weight in weights.items())
    assert report.losses["loss"] == pytest.approx(parts, rel=1e-6)
    above, below = reported(nudge)[0], reported(-nudge)[0]
    difference = above.losses["loss"] - below.losses["loss"]
    assert slope == pytest.approx(difference / (2 * nudge), rel=0.05, abs=1e-5), name


# pitfall 2
def test_the_teacher_never_sees_a_mask_and_the_student_does() -> None:
    system = build_system(recipe(), ALONE)
    seen = {}

    def noting(name: str, module: torch.nn.Module) -> None:
        def hook(_: object, views: tuple, options: dict) -> None:
            masks = options["masks"]
            masked = masks is not None and bool(masks.any())
            seen.setdefault(name, []).append([len(views), masked])

        module.register_forward_pre_hook(hook, with_kwargs=True)

    noting("student", system.student.backbone)
    noting("teacher", system.teacher.backbone)
    optimiser_step(system, [micro_batch(slice(0, IMAGES))], VALUES, 0)
    # One call of each, with two sizes of views and with one.
    assert seen == {"student": [[2, True]], "teacher": [[1, False]]}
    assert not system.teacher.training
    assert system.student.training
