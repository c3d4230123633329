"""Writes below a cache that several processes share, and that any of them may be killed at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
from jaxtyping import Float16
from numpy.lib import format as npy

from shared.errors import LvdError
from shared.storage import locks


@contextmanager
def scratch_folder(cache: Path) -> Iterator[Path]:
    """Give this process a folder below `cache` for what is not whole yet, on the same file system.

    What killed processes have left there goes first. Raises LvdError where nothing can be written.
    """
    folder = cache / "unfinished"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LvdError(
            f"--cache {cache} cannot be written ({error.strerror}): name another folder"
        ) from error
    with locks.scratch_folder(folder) as own:
        yield own


class GrowingArray:
    """A float16 .npy file to which rows are appended, however many there will be.

    A context manager: behind it the file is whole.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._shape: tuple[int, ...] = (0,)

    def __enter__(self) -> GrowingArray:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.seek(0)
        self._write_header()  # as long as before: numpy leaves room in it for any number of rows
        self._file.close()

    def append(self, rows: Float16[np.ndarray, "n ..."]) -> None:
        """Write rows of the same shape as those before."""
        if self._file.tell() == 0:
            self._shape = (0, *rows.shape[1:])
            self._write_header()
        self._file.write(np.ascontiguousarray(rows, "<f2").data)
        self._shape = (self._shape[0] + len(rows), *self._shape[1:])

    def _write_header(self) -> None:
        known = {"descr": "<f2", "fortran_order": False, "shape": self._shape}
        npy.write_array_header_1_0(self._file, known)
