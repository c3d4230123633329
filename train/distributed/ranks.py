"""The processes of one run: who I am, and the few things that all of them agree on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from shared.errors import LvdError
from train.distributed.watchdog import record_collectives

TIMEOUT = 1800.0
"""Seconds that a process waits for the others in a collective. One that died is noticed at once, by
torchrun; for what takes the first process longer there is `train.distributed.heartbeat`."""


@dataclass(frozen=True)
class Ranks:
    """This process's place among the processes of the run."""

    rank: int
    world: int
    local_rank: int
    """Its number on its own machine."""
    device: torch.device
    local_world: int = 1
    """Processes of its machine."""

    @property
    def first(self) -> bool:
        """Whether this is the process that writes logs and model folders."""
        return self.rank == 0


@contextmanager
def process_group(device: str = "auto", timeout: float = TIMEOUT) -> Iterator[Ranks]:
    """Join the other processes that torchrun started, and leave them at the end.

    `device` is `auto`, `cpu` or `cuda`; each process of a machine takes the GPU of its local rank.
    A collective that takes longer than `timeout` seconds fails.
    Flags travel by gloo on either device, so that agreeing on them never waits for a GPU. One
    process alone makes no group. torchrun gives each of several processes one thread unless told
    otherwise, which would leave most cores idle on the CPU: one thread is taken as torchrun's
    word, and becomes the machine's cores divided by its processes; `OMP_NUM_THREADS` of 2 or more
    stays. Raises LvdError where the device is not there.
    """
    ranks = _ranks(device)
    if ranks.device.type == "cuda":
        torch.cuda.set_device(ranks.device)
    if ranks.world == 1:
        yield ranks
        return
    on_gpu = ranks.device.type == "cuda"
    if not on_gpu and os.environ.get("OMP_NUM_THREADS") == "1":
        torch.set_num_threads(max(1, _cores() // _from_environment("LOCAL_WORLD_SIZE", 1)))
    record_collectives()
    dist.init_process_group(
        backend="cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        device_id=ranks.device if on_gpu else None,
        timeout=timedelta(seconds=timeout),
    )
    try:
        yield ranks
    finally:
        leave_group()


def leave_group() -> None:
    """Leave the other processes, if not done yet."""
    if dist.is_initialized():
        dist.destroy_process_group()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return `tensor` after replacing its content by the sum over all processes."""
    if dist.is_initialized():
        dist.all_reduce(tensor, dist.ReduceOp.SUM)
    return tensor


def max_over_ranks(tensor: Tensor) -> Tensor:
    """Return `tensor` after replacing its content by the largest of all processes, elementwise."""
    if dist.is_initialized():
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor


def from_all_ranks(tensor: Tensor) -> tuple[list[Tensor], int]:
    """Return the tensors of all processes, of one shape, by rank, and this process's rank."""
    if not dist.is_initialized():
        return [tensor], 0
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return parts, dist.get_rank()


def any_rank(flag: bool) -> bool:
    """Return on every process whether `flag` is true on at least one."""
    return bool(max_over_ranks(torch.tensor(int(flag))))


def barrier() -> None:
    """Wait until every process is here."""
    any_rank(False)


def _ranks(device: str) -> Ranks:
    local_rank = _from_environment("LOCAL_RANK", 0)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        found = torch.cuda.device_count()
        if local_rank >= found:
            raise LvdError(
                f"process {local_rank} of this machine has no GPU (there are {found}): start at "
                "most one process for each, or set the device to cpu"
            )
        device = f"cuda:{local_rank}"
    return Ranks(
        rank=_from_environment("RANK", 0),
        world=_from_environment("WORLD_SIZE", 1),
        local_rank=local_rank,
        device=torch.device(device),
        local_world=_from_environment("LOCAL_WORLD_SIZE", 1),
    )


def _from_environment(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
