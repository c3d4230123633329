"""The parts of a recipe's step and its longest kernels, by torch's profiler."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.section import Context, Row
from benchmarks.gpu.timing import synchronise
from benchmarks.gpu.workload import prepare
from train.step import PARTS

LONGEST = 10
STEPS = 2
WARMUP = 3
NAME_LENGTH = 90


def measure(context: Context, emit: Callable[[Row], None], name: str, compiled: bool) -> None:
    """List the longest kernels of a step; on a CPU, the longest operators, in their own time."""
    workload = prepare(context, name, compiled=compiled)
    device = workload.device
    for _ in range(1 if context.quick else WARMUP):
        workload.step()
    on_card = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_card else [])]
    synchronise(device)
    # A backward pass in a thread of autograd's own lies outside of what the profiler calls `backward`.
    alone = torch.autograd.set_multithreading_enabled(False)
    with alone, profile(activities=activities) as profiler:
        for _ in range(STEPS):
            workload.step()
        synchronise(device)
    kind = DeviceType.CUDA if on_card else DeviceType.CPU
    events = [
        (event.self_device_time_total if on_card else event.self_cpu_time_total, event)
        for event in profiler.key_averages()
        if event.device_type == kind and not _is_mark(event)
    ]
    whole = sum(microseconds for microseconds, _ in events)
    if not whole:
        raise RuntimeError("the profiler saw no kernels")
    emit({"kernel": "all", "ms a step": whole / 1e3 / STEPS, "share": 1.0})
    for microseconds, event in sorted(events, key=lambda pair: -pair[0])[:LONGEST]:
        emit(
            {
                "kernel": event.key[:NAME_LENGTH],
                "calls a step": event.count / STEPS,
                "ms a step": microseconds / 1e3 / STEPS,
                "share": microseconds / whole,
            }
        )
    parts = {
        event.key: event
        for event in profiler.key_averages()
        if event.key in PARTS and event.device_type == kind
    }
    for name in PARTS:
        long = parts[name].device_time_total if on_card else parts[name].cpu_time_total
        emit(
            {
                "kernel": f"part: {name}",
                "calls a step": parts[name].count / STEPS,
                "ms a step": long / 1e3 / STEPS,
                "share": long / whole,
            }
        )


def _is_mark(event) -> bool:
    """Tell the marks that contain kernels, inductor's `## Call CompiledFxGraph` among them."""
    return bool(event.is_user_annotation) or event.key.startswith("## ") or event.key in PARTS
