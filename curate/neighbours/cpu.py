"""Whether this machine's CPU finds the nearest vectors sooner through bfloat16 products."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

PAYS = 2 * 10**10
"""Multiplications of a unit from which a process imports torch: some of these later, that has paid."""
PAYS_IMPORTED = 10**9
FEWEST = 2_048
FEWEST_EACH = 256
"""Vectors of the base, in all and for each of the k nearest: among fewer, a bound that k groups of
scores give is a low one."""

CPUINFO = Path("/proc/cpuinfo")
FLAGS = {"avx512_bf16", "amx_bf16"}


@cache
def multiplies_bfloat16() -> bool:
    """Tell whether this CPU has instructions that multiply bfloat16, at several times the rate of float32."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), "")
    return not FLAGS.isdisjoint(flags.split())


def pays(queries: int, base: int, dim: int, k: int) -> bool:
    """Tell whether the `k` nearest of so many vectors are found sooner through a `CoarseIndex`."""
    if base < max(FEWEST, FEWEST_EACH * k) or not multiplies_bfloat16():
        return False
    return queries * base * dim >= (PAYS_IMPORTED if "torch" in sys.modules else PAYS)


def import_torch(multiplications: float) -> None:
    """Import torch, which multiplies bfloat16, where so much is to be done by calls of less each."""
    if multiplications >= PAYS and multiplies_bfloat16():
        import torch  # noqa: F401
