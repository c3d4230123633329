"""Starts `lvd-train` with allocator and threads set as it needs them: `torchrun -m` is given it too.

glibc returns and maps large blocks again on every step of training on a CPU, and the page faults
cost more than the arithmetic of small models. Its settings are read when a process starts, so this
one starts itself anew with them. Nothing but the standard library is imported before that.

OpenMP's threads wait by spinning for one another. Where something else wants the processors, loader
processes or another job, those spin that could work: a small model then trains 30 times slower.

One of several processes ends without taking its interpreter down. Caches of DTensor keep the group
of an FSDP run, and so the threads of gloo, beyond its end; one of them that lets go of a tensor
while the interpreter ends aborts the process ("terminate called without an active exception").
"""

from __future__ import annotations

import atexit
import os
import sys
from typing import NoReturn

ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "17179869184"}
THREADS = "OMP_WAIT_POLICY"


def main() -> None:
    """Run the command line in a process whose allocator keeps what it has once obtained.

    A variable that the user has set, `LD_PRELOAD` (jemalloc and others) included, is left alone.
    """
    os.environ.setdefault(THREADS, "PASSIVE")
    chosen = any(name in os.environ for name in (*ALLOCATOR, "LD_PRELOAD", "GLIBC_TUNABLES"))
    if sys.platform == "linux" and not chosen:
        # -P: a folder called `train` where the user happens to be must not stand for this package.
        command = [sys.executable, "-P", "-m", "train.launch", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **ALLOCATOR})
    from train.cli import main as command_line

    try:
        command_line(prog_name="lvd-train")
    except SystemExit as end:
        if os.environ.get("WORLD_SIZE", "1") != "1" and isinstance(end.code, int):
            _leave(end.code)
        raise


def _leave(status: int) -> NoReturn:
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
