"""Gives memory that was freed back to the system."""

from __future__ import annotations

import ctypes
from contextlib import suppress

import pyarrow as pa


def release_memory() -> None:
    """Give back to the system what Arrow and the C library keep of what was freed.

    What lies free between arrays of other sizes stays the process's own otherwise, and grows from one
    unit to the next.
    """
    pa.default_memory_pool().release_unused()
    with suppress(AttributeError, OSError):  # of C libraries other than glibc
        ctypes.CDLL(None).malloc_trim(0)
