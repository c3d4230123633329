"""The card's own rates: what a matrix product and a copy reach, which other figures are shares of."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.gpu.section import Context, Row
from benchmarks.gpu.timing import median_lap

PRODUCTS = ((4096, 4096, 4096), (8192, 8192, 8192), (16384, 8192, 8192), (65536, 4096, 1024))
"""Rows, columns and depth; the last one is ViT-L's first MLP layer on 255 views of 257 tokens."""
QUICK_PRODUCTS = ((128, 128, 128), (256, 256, 256))
REPEATED = 10
"""Calls of one lap, so that starting them costs little of it."""


def measure(context: Context, emit: Callable[[Row], None]) -> None:
    """Measure bfloat16 matrix products of random numbers, and copies on the device and to it."""
    device = torch.device(context.device)
    torch.manual_seed(0)
    for rows, columns, depth in QUICK_PRODUCTS if context.quick else PRODUCTS:
        left, right = (
            torch.randn(shape, device=device, dtype=torch.bfloat16)
            for shape in ((rows, depth), (depth, columns))
        )
        out = torch.empty(rows, columns, device=device, dtype=torch.bfloat16)
        seconds = _one(lambda a=left, b=right, o=out: torch.mm(a, b, out=o), context)
        emit(
            {
                "what": "bfloat16 matrix product",
                "size": f"{rows} x {depth} x {columns}",
                "ms": 1e3 * seconds,
                "tflops": 2 * rows * columns * depth / seconds / 1e12,
            }
        )
    nbytes = 2**20 if context.quick else 2**31
    source = torch.randint(256, (nbytes,), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    _emit_copy("copy on the device, read and written", source, target, 2 * nbytes, context, emit)
    if device.type == "cuda":
        host = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
        target = torch.empty_like(host, device=device)
        _emit_copy("copy from pinned memory", host, target, host.nbytes, context, emit)


def _emit_copy(
    what: str,
    source: torch.Tensor,
    target: torch.Tensor,
    moved: int,
    context: Context,
    emit: Callable[[Row], None],
) -> None:
    seconds = _one(lambda: target.copy_(source, non_blocking=True), context)
    row = {"what": what, "size": f"{source.nbytes / 2**20:.0f} MiB", "ms": 1e3 * seconds}
    emit(row | {"gb_per_second": moved / seconds / 1e9})


def _one(call: Callable[[], object], context: Context) -> float:
    """Return the seconds of one call: the median of laps of several, behind two laps of warm-up."""

    def several() -> None:
        for _ in range(REPEATED):
            call()

    seconds = 0.05 if context.quick else 1.0
    return median_lap(several, torch.device(context.device), warmup=2, seconds=seconds) / REPEATED
