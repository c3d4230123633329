"""NCCL on one process: its sums, and student and teacher spread by DDP and by FSDP over one card."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from small_step import system_on, train
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from train.distributed.ranks import any_rank, barrier, max_over_ranks, sum_over_ranks
from train.distributed.watchdog import record_collectives, recorded_collectives
from train.persistence.checkpoints import save
from train.snapshot import restore, snapshot

pytestmark = pytest.mark.gpu

STEPS = range(3)


@pytest.fixture(autouse=True)
def _loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process needs no network, nor a host name that resolves."""
    for backend in ("GLOO", "NCCL"):
        monkeypatch.setenv(f"{backend}_SOCKET_IFNAME", "lo")


@contextmanager
def group(device: torch.device, folder: Path) -> Iterator[None]:
    """A group of this process alone, with the backends of `train.distributed.ranks`."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    record_collectives()
    dist.init_process_group(
        backend="cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        init_method=f"file://{folder / 'rendezvous'}",
        rank=0,
        world_size=1,
        device_id=device if on_gpu else None,
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def test_sums_are_made_on_the_card_and_flags_beside_it(
    device: torch.device, tmp_path: Path
) -> None:
    with group(device, tmp_path):
        total = sum_over_ranks(torch.tensor([1.0, 2.0], device=device))
        assert total.tolist() == [1.0, 2.0]
        assert max_over_ranks(torch.tensor([-5], device=device)).tolist() == [-5]
        assert total.device == device
        assert any_rank(True)
        assert not any_rank(False)
        barrier()


def test_a_hung_run_would_tell_the_collectives_of_the_card(
    device: torch.device, tmp_path: Path
) -> None:
    backend = "nccl" if device.type == "cuda" else "gloo"
    with group(device, tmp_path):
        sum_over_ranks(torch.ones(3, device=device)).tolist()
        recorded = recorded_collectives()[backend]["entries"]
    assert recorded[-1]["profiling_name"] == f"{backend}:all_reduce"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_spread_network_trains_as_a_whole_one(
    device: torch.device, tmp_path: Path, strategy: str, precision: str
) -> None:
    parallel = {"precision": precision, "strategy": strategy}
    expected = train(system_on(device, parallel=parallel), STEPS)
    with group(device, tmp_path):
        system = system_on(device, parallel=parallel)
        assert isinstance(system.student_called, DistributedDataParallel) == (strategy == "ddp")
        spread = {isinstance(p, DTensor) for p in system.student.parameters()}
        assert spread == {strategy == "fsdp"}
        found = train(system, STEPS)
        path = save(tmp_path / "checkpoints", 3, snapshot(system, 3, {}), 1, system.ranks)
        resumed = system_on(device, parallel=parallel)
        assert restore(resumed, {}, path) == 3
        again, further = (train(s, [3])[0].losses for s in (resumed, system))
    # FSDP's weights travel in bfloat16 on a card, where autocast would have cast them.
    allowed = 1e-3 if precision == "float32" else 1e-2
    for ours, theirs in zip(found, expected, strict=True):
        assert not ours.skipped
        assert ours.losses == pytest.approx(theirs.losses, rel=allowed, abs=1e-5)
    assert again == pytest.approx(further, rel=1e-3, abs=1e-5)
