"""Times work on a device: laps between synchronised clocks, warm-up apart, and memory at its peak."""

from __future__ import annotations

import resource
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def lap(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that the work takes on an idle device, to its end there."""
    synchronise(device)
    began = perf_counter()
    work()
    synchronise(device)
    return perf_counter() - began


def median_lap(
    work: Callable[[], object],
    device: torch.device,
    *,
    warmup: int,
    seconds: float,
    least: int = 5,
    most: int = 50,
) -> float:
    """Return the median seconds of a call: of at least `least` laps, for about `seconds`."""
    for _ in range(warmup):
        lap(work, device)
    laps: list[float] = []
    while len(laps) < least or (sum(laps) < seconds and len(laps) < most):
        laps.append(lap(work, device))
    return median(laps)


def reset_peak(device: torch.device) -> None:
    """Count the device's peak memory from here on; a process's own cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float:
    """Return the most that torch held on the card, or that the process held in all on a CPU, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
