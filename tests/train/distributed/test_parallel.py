"""Two processes compute what one does, however the network is spread, recomputed or compiled."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forked import run_ranks
from given_logits import given
from pydantic import ValidationError
from torch import Tensor
from torch._dynamo.utils import counters
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.utils.flop_counter import FlopCounterMode

from shared.errors import LvdError
from train.distributed.parallelise import (
    autocast,
    parallelise,
    prepare_frozen,
    resolve_precision,
    sync_gradients,
)
from train.distributed.ranks import Ranks, process_group, sum_over_ranks
from train.distributed.settings import ParallelSettings
from train.model.network import Network, build_network, make_teacher
from train.model.settings import HeadSettings, HeadsSettings, ModelSettings
from train.objectives.centering import SinkhornKnopp

IMAGES, SIDE, LOCAL_SIDE, PATCH = 8, 32, 16, 8
CPU = torch.device("cpu")
ALONE = Ranks(0, 1, 0, CPU)
CASES = {
    "auto": {},
    "fsdp": {"strategy": "fsdp"},
    "fsdp, checkpointed": {"strategy": "fsdp", "activation_checkpointing": True},
    "ddp, compiled": {"strategy": "ddp", "compile": True},
    "fsdp, selective, compiled": {
        "strategy": "fsdp",
        "activation_checkpointing": "selective",
        "compile": True,
    },
    "hsdp, whole": {"strategy": "hsdp", "shard_group": 1},
}


def new_networks(drop_path: float = 0.0, depth: int = 2) -> tuple[Network, Network]:
    head = HeadSettings(prototypes=49, hidden=32, bottleneck=16)
    model = ModelSettings(
        name="vit_tiny_patch16_224",
        patch_size=PATCH,
        options={"embed_dim": 24, "depth": depth, "num_heads": 2, "reg_tokens": 1},
        layer_scale=0.1,
        drop_path=drop_path,
    )
    heads = HeadsSettings(dino=head, ibot=head)
    student = build_network(model, heads, masked=True, sizes=[SIDE, LOCAL_SIDE], seed=0)
    return student, make_teacher(student)


def loss_of(network: torch.nn.Module, images: slice) -> Tensor:
    """A loss of everything the student returns, whose mean over equal parts is that of the whole."""
    generator = torch.Generator().manual_seed(1)
    crops = torch.randn(2, IMAGES, 3, SIDE, SIDE, generator=generator)[:, images].flatten(0, 1)
    local = torch.randn(3, IMAGES, 3, LOCAL_SIDE, LOCAL_SIDE, generator=generator)[:, images]
    masks = torch.rand(2, IMAGES, (SIDE // PATCH) ** 2, generator=generator) < 0.4
    masks = masks[:, images].flatten(0, 1)
    index = masks.flatten().nonzero().squeeze(1)
    out = network(crops, local.flatten(0, 1), masks, index)
    of_patches = (4 * out.patch_logits.whole().float()).logsumexp(-1).sum() / len(crops)
    of_views = (4 * out.cls_logits.whole().float()).logsumexp(-1).mean()
    return of_views + of_patches + out.cls.float().pow(3).mean()


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def error(ours: Tensor, theirs: Tensor) -> float:
    return ((whole(ours) - theirs).norm() / theirs.norm()).item()


def backward(called: torch.nn.Module, cuts: list[slice], precision: torch.dtype) -> float:
    """Gradients of the mean over the cuts, as `train.step` gets them; the loss of all processes."""
    total = torch.zeros(())
    for number, cut in enumerate(cuts):
        with sync_gradients(called, last=number == len(cuts) - 1):
            with autocast(precision, CPU):
                loss = loss_of(called, cut) / len(cuts)
            loss.backward()
        total += loss.detach()
    return total.item()


def compare(settings: ParallelSettings, ranks: Ranks, parts: int = 1) -> dict:
    """How far student and teacher are from plain ones on the whole batch, and where they lie."""
    precision = resolve_precision(settings, CPU)
    depth = 1 if settings.compile else 2  # seconds a block
    plain, plain_teacher = new_networks(depth=depth)
    expected = backward(plain, [slice(0, IMAGES)], precision)
    student, teacher = new_networks(depth=depth)
    names = list(dict(student.named_parameters()))
    called, called_teacher = parallelise(student, teacher, settings, ranks)
    size = IMAGES // (ranks.world * parts)
    cuts = [
        slice((ranks.rank * parts + part) * size, (ranks.rank * parts + part + 1) * size)
        for part in range(parts)
    ]
    pictures = torch.ones(2, 3, SIDE, SIDE)
    with torch.no_grad(), autocast(precision, CPU):
        seen, expected_logits = (
            each(pictures).cls_logits for each in (called_teacher, plain_teacher)
        )
        taught = error(seen.whole(), expected_logits.whole())
        called(pictures)  # a forward pass that no backward pass follows, as of a skipped step
    loss = backward(called, cuts, precision)
    loss = sum_over_ranks(torch.tensor(loss)).item() / ranks.world
    parameters = dict(student.named_parameters())
    held = sum(
        p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in parameters.values()
    )
    return {
        "loss": abs(loss / expected - 1),
        "gradients": {
            name: error(parameters[name].grad, p.grad) for name, p in plain.named_parameters()
        },
        "teacher": taught,
        "same names": list(parameters) == names,
        "held": held / sum(p.numel() for p in plain.parameters()),
        "both sharded": all(
            isinstance(p, DTensor) == settings.sharded
            for network in (student, teacher)
            for p in network.parameters()
        ),
    }


def counted(work: Callable[[], object]) -> dict[str, int]:
    """How often `work` calls each collective."""
    with CommDebugMode() as mode:
        work()
    return {str(packet).removeprefix("c10d."): n for packet, n in mode.get_comm_counts().items()}


def collectives(ranks: Ranks) -> dict:
    """What a pass of a sharded student and teacher, and Sinkhorn-Knopp, ask of the other processes."""
    settings = ParallelSettings(precision="float32", strategy="fsdp")
    student, teacher = parallelise(*new_networks(), settings, ranks)
    pictures = torch.ones(2, 3, SIDE, SIDE)
    steps = {
        "student": lambda: backward(student, [slice(0, 4)], torch.float32),
        "teacher": lambda: teacher(pictures, masked_index=torch.tensor([1, 2])),
        "teacher, CLS alone": lambda: teacher(pictures),
        "Sinkhorn-Knopp": lambda: SinkhornKnopp(3).targets([given(torch.randn(4, 16))] * 2, 0.05),
        "Sinkhorn-Knopp of cosines": lambda: SinkhornKnopp(3).targets(
            [given(torch.eye(4))._replace(bound=1.0)] * 2, 0.05
        ),
    }
    student(pictures)  # the first pass also prepares
    ahead = {way: gathered_ahead(student, way) for way in ("forward", "backward")}
    return {name: counted(work) for name, work in steps.items()} | {"ahead": ahead}


def gathered_ahead(network: torch.nn.Module, way: str) -> dict[str, list[str]]:
    """The units that each unit of a sharded network gathers ahead in a pass this way, by name."""
    units = {
        unit._get_fsdp_state(): name
        for name, unit in network.named_modules()
        if isinstance(unit, FSDPModule)
    }
    named = {
        name: [units[other] for other in getattr(unit, f"_states_to_{way}_prefetch")]
        for unit, name in units.items()
    }
    return {name: others for name, others in named.items() if others}


def in_each_process(folder: Path) -> None:
    # Inductor takes a minute or more to compile for the CPU; what it does to FSDP's hooks, to
    # checkpointing and to gradients is decided before it.
    torch.compile = functools.partial(torch.compile, backend="aot_eager")
    with process_group("cpu") as ranks:
        found = {
            name: compare(ParallelSettings(precision="float32", **case), ranks)
            for name, case in CASES.items()
        }
        found["collectives"] = collectives(ranks)
        for strategy in ("ddp", "fsdp"):
            settings = ParallelSettings(precision="float32", strategy=strategy)
            found[f"{strategy}, accumulated"] = compare(settings, ranks, parts=2)
            settings = ParallelSettings(precision="bfloat16", strategy=strategy)
            found[f"{strategy}, bfloat16"] = compare(settings, ranks)
    if ranks.first:
        (folder / "found.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("parallel")
    run_ranks(in_each_process, folder, folder=folder)
    return json.loads((folder / "found.json").read_text())


def in_each_of_four(folder: Path) -> None:
    with process_group("cpu") as ranks:
        settings = ParallelSettings(precision="float32", strategy="hsdp", shard_group=2)
        found = {
            "one micro-batch": compare(settings, ranks),
            "accumulated": compare(settings, ranks, parts=2),
        }
        student, _ = parallelise(*new_networks(), settings, ranks)
        found["collectives"] = [
            counted(lambda last=last: half_of_a_step(student, last)) for last in (False, True)
        ]
        settings = ParallelSettings(strategy="hsdp", shard_group=3)
        with pytest.raises(LvdError) as raised:
            parallelise(*new_networks(), settings, ranks)
        found["refused"] = str(raised.value)
    if ranks.first:
        (folder / "found.json").write_text(json.dumps(found))


def half_of_a_step(student: torch.nn.Module, last: bool) -> None:
    with sync_gradients(student, last):
        loss_of(student, slice(0, 2)).backward()


@pytest.fixture(scope="module")
def four_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("hsdp")
    run_ranks(in_each_of_four, folder, folder=folder, ranks=4)
    return json.loads((folder / "found.json").read_text())


UNITS = 5
"""Of `new_networks`: two blocks, two heads, and what is left."""


def test_a_step_gathers_each_unit_once_a_pass_and_reduces_it_once(two_processes: dict) -> None:
    counts = two_processes["collectives"]
    assert counts["student"] == {"_allgather_base_": 2 * UNITS, "_reduce_scatter_base_": UNITS}
    assert counts["teacher"] == {"_allgather_base_": UNITS}
    assert counts["teacher, CLS alone"] == {"_allgather_base_": UNITS - 1}  # no iBOT head


def test_a_unit_gathers_the_next_one_ahead_in_both_passes(two_processes: dict) -> None:
    first, second = (f"backbone.vit.blocks.{number}" for number in range(2))
    assert two_processes["collectives"]["ahead"] == {
        "forward": {"": [first], first: [second], second: ["dino_head"]},
        "backward": {"ibot_head": ["dino_head"], "dino_head": [second], second: [first]},
    }


def test_sinkhorn_knopp_agrees_on_the_highest_logits_and_once_an_iteration(
    two_processes: dict,
) -> None:
    assert two_processes["collectives"]["Sinkhorn-Knopp"] == {"allreduce_": 1 + 3}
    assert two_processes["collectives"]["Sinkhorn-Knopp of cosines"] == {"allreduce_": 3}


# pitfall 12
@pytest.mark.parametrize("case", ["one micro-batch", "accumulated"])
def test_copies_of_shares_have_the_gradients_of_one_process(
    four_processes: dict, case: str
) -> None:
    found = four_processes[case]
    assert found["loss"] < 1e-5
    assert found["teacher"] < 1e-5
    assert max(found["gradients"].values()) < 1e-4
    assert found["held"] < 0.6
    assert found["both sharded"]
    assert found["same names"]


def test_copies_of_shares_average_with_the_last_micro_batch_alone(four_processes: dict) -> None:
    first, last = four_processes["collectives"]
    gathered = {"_allgather_base_": 2 * UNITS, "_reduce_scatter_base_": UNITS}
    assert first == gathered
    assert last == {**gathered, "allreduce_": UNITS}


def test_processes_that_do_not_fit_in_groups_are_refused(four_processes: dict) -> None:
    assert "4 processes cannot be cut in groups of 3" in four_processes["refused"]


# pitfall 12
@pytest.mark.parametrize("case", [*CASES, "ddp, accumulated", "fsdp, accumulated"])
def test_two_processes_have_the_gradients_of_one(two_processes: dict, case: str) -> None:
    found = two_processes[case]
    assert found["loss"] < 1e-5
    assert found["teacher"] < 1e-5
    for name, wrong in found["gradients"].items():
        assert wrong < 1e-4, name


# pitfall 12
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_in_bfloat16_they_differ_by_its_rounding(two_processes: dict, strategy: str) -> None:
    found = two_processes[f"{strategy}, bfloat16"]
    assert found["loss"] < 1e-2
    assert found["teacher"] < 1e-5
    for name, wrong in found["gradients"].items():
        assert wrong < 5e-2, name


# pitfall 12
@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("fsdp")])
def test_fsdp_shards_student_and_teacher_alike(two_processes: dict, case: str) -> None:
    assert two_processes[case]["both sharded"]
    assert two_processes[case]["held"] < 0.6


def test_several_processes_hold_whole_networks_unless_told_otherwise(two_processes: dict) -> None:
    for case in ("auto", "ddp, accumulated"):
        assert two_processes[case]["both sharded"]
        assert two_processes[case]["held"] == 1


@pytest.mark.parametrize("case", CASES)
def test_parameters_keep_their_names(two_processes: dict, case: str) -> None:
    assert two_processes[case]["same names"]


@pytest.mark.parametrize("strategy", ["auto", "ddp", "fsdp", "hsdp"])
def test_one_process_calls_the_plain_networks(strategy: str) -> None:
    student, teacher = new_networks()
    called = parallelise(student, teacher, ParallelSettings(strategy=strategy), ALONE)
    assert called == (student, teacher)


@pytest.mark.parametrize("checkpointing", [True, "selective"])
def test_recomputed_blocks_draw_the_same_stochastic_depth(checkpointing: bool | str) -> None:
    gradients = []
    for setting in (False, checkpointing):
        student, teacher = new_networks(drop_path=0.5)
        settings = ParallelSettings(activation_checkpointing=setting)
        called, _ = parallelise(student, teacher, settings, ALONE)
        torch.manual_seed(3)
        backward(called, [slice(0, IMAGES)], torch.float32)
        gradients.append([p.grad for p in student.parameters()])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*gradients, strict=True))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_selective_checkpointing_computes_no_linear_layer_again(precision: torch.dtype) -> None:
    multiplied = {}
    for setting in (False, "selective", True):
        student, teacher = new_networks()
        settings = ParallelSettings(activation_checkpointing=setting)
        called, _ = parallelise(student, teacher, settings, ALONE)
        with FlopCounterMode(display=False) as counter:
            backward(called, [slice(0, IMAGES)], precision)
        multiplied[setting] = counter.get_flop_counts()["Global"]
    aten = torch.ops.aten
    for linear in (aten.mm, aten.addmm):
        plain, selective, whole = (multiplied[name][linear] for name in (False, "selective", True))
        assert selective == plain
        assert (whole > plain) == (linear is aten.addmm)  # the layers of the forward pass


def test_checkpointed_blocks_keep_less_for_the_backward_pass() -> None:
    kept = []
    for checkpointed in (False, True):
        student, teacher = new_networks()
        settings = ParallelSettings(activation_checkpointing=checkpointed)
        called, _ = parallelise(student, teacher, settings, ALONE)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, saved=saved: saved.append(t.nbytes) or t, lambda t: t
        ):
            loss_of(called, slice(0, IMAGES))
        kept.append(sum(saved))
    assert kept[1] < kept[0] / 2


def test_the_blocks_of_a_frozen_teacher_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    _, teacher = new_networks()
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda call, **_: compiled.append(call) or call)
    settings = ParallelSettings(compile=True)
    prepare_frozen(teacher, teacher.backbone, settings, torch.float32)
    assert [call.__self__ for call in compiled] == list(teacher.backbone.vit.blocks)
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}


def test_another_number_of_masked_patches_takes_the_same_graphs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As of masks that are not exact, and of a process that has a part of a group."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    networks = parallelise(*new_networks(depth=1), ParallelSettings(compile=True), ALONE)
    pictures = torch.ones(2, 3, SIDE, SIDE)
    made = []
    for masked in (5, 9, 14):
        for network in networks:
            logits = network(pictures, masked_index=torch.arange(masked)).patch_logits
            assert len(logits.vectors) == masked
        made.append(counters["stats"]["unique_graphs"])
    assert made == [2, 2, 2]


def test_the_precision_that_is_asked_for_is_taken() -> None:
    cuda = torch.device("cuda")
    for name, expected in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        settings = ParallelSettings(precision=name)
        assert {resolve_precision(settings, d) for d in (CPU, cuda)} == {expected}
    assert resolve_precision(ParallelSettings(), cuda) == torch.bfloat16


def test_a_cpu_takes_bfloat16_where_it_has_instructions_for_it() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    has = "avx512_bf16" in flags or "amx_tile" in flags
    assert resolve_precision(ParallelSettings(), CPU) == (torch.bfloat16 if has else torch.float32)


def test_autocast_is_for_products_only() -> None:
    with autocast(torch.bfloat16, CPU):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    with autocast(torch.float32, CPU):
        exact = torch.ones(2, 2) @ torch.ones(2, 2)
    assert (product.dtype, exact.dtype) == (torch.bfloat16, torch.float32)


def test_an_unknown_strategy_is_refused() -> None:
    with pytest.raises(ValidationError, match="strategy"):
        ParallelSettings(strategy="zero")
