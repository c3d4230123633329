"""What was measured where: the card, its driver, the libraries, the commit."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable

import timm
import torch
import torchvision

from benchmarks.gpu.section import ROOT, Context, Row


def measure(context: Context, emit: Callable[[Row], None]) -> None:
    """Emit one row; RuntimeError where the device is not there."""
    row: Row = {
        "device": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "commit": _commit(),
    }
    if context.device == "cuda":
        if not torch.cuda.is_available():
            raise RuntimeError("torch sees no card: --device cpu --quick runs without one")
        card = torch.cuda.get_device_properties(0)
        row |= {
            "device": card.name,
            "GiB": card.total_memory / 2**30,
            "multiprocessors": card.multi_processor_count,
            "CUDA": torch.version.cuda,
            "cuDNN": torch.backends.cudnn.version(),
            "float32 products": torch.get_float32_matmul_precision(),
        }
    emit(row)


def _commit() -> str | None:
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
