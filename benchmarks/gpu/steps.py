"""A recipe's training step: seconds, images/s, TFLOP/s and their share of the matrix rate, memory."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.gpu.section import Context, Row
from benchmarks.gpu.timing import lap, median_lap, peak_gib, reset_peak
from benchmarks.gpu.workload import Workload, flops_of_image, prepare
from train.step import to_device

WARMUP = 3
"""Steps behind the first one, in which the last shapes compile and the allocator settles."""
GOALS = {"vitl14": {"goal images/s": 240, "goal share": 0.4}, "vits16": {"goal images/s": 1200}}
"""On one H100, compiled or not, whichever is faster."""


def measure(context: Context, emit: Callable[[Row], None], name: str, compiled: bool) -> None:
    """Measure the steps of one recipe, each from a batch in pinned memory to the moved teacher."""
    workload = prepare(context, name, compiled=compiled)
    device, recipe = workload.device, workload.recipe
    warmup = sum(lap(workload.step, device) for _ in range(1 if context.quick else WARMUP))
    reset_peak(device)
    seconds = median_lap(
        workload.step, device, warmup=0, seconds=0.1 if context.quick else 6.0, least=3
    )
    rate = recipe.batch_size / seconds
    flops = flops_of_image(recipe, device)
    tflops = flops * rate / 1e12
    matrix_rate = context.best("rates", "tflops")
    emit(
        {
            "recipe": name,
            "mode": "compiled" if recipe.parallel.compile else "eager",
            "batch": recipe.batch_size,
            "step ms": 1e3 * seconds,
            "images/s": rate,
            "gflop an image": flops / 1e9,
            "tflops": tflops,
            "share of matrix rate": matrix_rate and tflops / matrix_rate,
            "peak GiB": peak_gib(device),
            "first step s": workload.first_step,
            "warm-up s": warmup,
            "to_device ms": 1e3 * _to_device(workload, on_device=False, context=context),
            "with colours ms": 1e3 * _to_device(workload, on_device=True, context=context),
            **GOALS.get(name, {}),
        }
    )


def _to_device(workload: Workload, *, on_device: bool, context: Context) -> float:
    """Return the seconds in which a batch becomes a step's tensors, which a step's time includes.

    `on_device` makes the colours there as well, as crops.device=gpu does; the steps above do not.
    """
    batch = workload.batches[0] if on_device else workload.next_batch()
    return median_lap(
        lambda: to_device(batch, workload.device),
        workload.device,
        warmup=1,
        seconds=0.05 if context.quick else 0.5,
        least=3,
    )
