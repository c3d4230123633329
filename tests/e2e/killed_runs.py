"""Runs of `lvd-curate` in processes of their own that are killed, at a moment that a test names."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from curate.cli import main

SERVER = multiprocessing.get_context("forkserver")
"""Its processes are forked from one that has imported the pipeline, and started nothing."""
CHANGES = {"os.rename": 1, "os.link": 1, "os.mkdir": 0, "os.remove": 0, "os.rmdir": 0}
"""What changes a folder, as Python's audit hooks name it, and which of its arguments says where."""


def run_killed(
    arguments: Sequence[str], root: Path, *, at: str = "*", count: int = 1, log: Path | None = None
) -> int:
    """Run, and SIGKILL the process before the `count`-th change below `root` that `at` matches.

    Returns the exit status: -9, or that of a run which ended before. `log` gets what it says.
    """
    SERVER.set_forkserver_preload(
        ["curate.pipeline", "curate.cli.run", "curate.report.summary", "faiss", "skimage.feature"]
    )
    process = SERVER.Process(target=_run, args=(list(arguments), str(root), at, count, log))
    process.start()
    process.join(300)
    status = process.exitcode
    process.kill()
    assert status is not None, "the run hangs"
    return status


def _run(arguments: list[str], root: str, at: str, count: int, log: Path | None) -> None:
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

    output = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    sys.addaudithook(watch)
    main(arguments, prog_name="lvd-curate")
