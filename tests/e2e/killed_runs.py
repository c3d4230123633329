"""Runs of `lvd-curate` in processes of their own that are killed, at a moment that a test names."""

import os
import signal
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from forked import forked

from curate.cli import main

CHANGES = {"os.rename": 1, "os.link": 1, "os.mkdir": 0, "os.remove": 0, "os.rmdir": 0}
"""What changes a folder, as Python's audit hooks name it, and which of its arguments says where."""


def run_killed(
    arguments: Sequence[str], root: Path, *, at: str = "*", count: int = 1, log: Path | None = None
) -> int:
    """Run, and SIGKILL the process before the `count`-th change below `root` that `at` matches.

    Returns the exit status: -9, or that of a run which ended before. `log` gets what it says.
    """
    call = (list(arguments), str(root), at, count)
    with forked(_run, *call, log=log or Path(os.devnull)) as process:
        return process.wait(300)


def _run(arguments: list[str], root: str, at: str, count: int) -> None:
    left = count

    def watch(event: str, args: tuple) -> None:
        nonlocal left
        if event == "open":
            path = args[0] if args[1] and set(args[1]) & set("wax+") else None
        else:
            path = args[CHANGES[event]] if event in CHANGES else None
        if not isinstance(path, (str, os.PathLike)) or not str(path).startswith(root + "/"):
            return
        below = str(path)[len(root) + 1 :]
        if below.startswith("work/status/") or ".status.json" in below:
            return  # written by a clock
        if fnmatch(below, at):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    main(arguments, prog_name="lvd-curate")
