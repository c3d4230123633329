"""The files of an index folder: removed once no run has opened them for long."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from time import time, time_ns

KEPT_DAYS = 30
"""For so long what no run opens is kept. What is gone is made again when it is asked for."""

_OURS = re.compile(r"[0-9a-f]{16}(\.files)?\.arrow|[0-9a-f]{32}\.parquet|\.[0-9a-f]{16,32}\..*")
"""Tables by the fingerprint of their data, and what a killed run left half-written."""


def note_use(paths: Iterable[Path]) -> None:
    """Take the present time as that at which these files were last read, where that may be said."""
    now = time_ns()
    for path in paths:
        with contextlib.suppress(OSError):
            os.utime(path, ns=(now, path.stat().st_mtime_ns))


def remove_unused(folder: Path) -> None:
    """Remove what of an index nobody has used for `KEPT_DAYS`, and no file that is of others.

    A run that has mapped such a file goes on with it.
    """
    oldest = time() - KEPT_DAYS * 86_400
    with contextlib.suppress(OSError):  # another run may be at it, or only allowed to read
        for path in folder.iterdir():
            about = path.stat()
            if _OURS.fullmatch(path.name) and max(about.st_atime, about.st_mtime) < oldest:
                path.unlink()
