"""Runs the project's own commands as child processes, which stop when this process stops or dies.

`lvd-curate loop` and `demo` consist of whole commands of both stages. Each command goes on after a
kill by itself, so whoever runs them only has to start them again.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import IO

from shared.commands import STOP_AT_EOF
from shared.errors import LvdError
from shared.progress import say

STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Signals that ask this process to stop."""
FIRST_SIGNAL = {"lvd-curate": signal.SIGINT}
"""The signal that asks a program to stop; the default is SIGTERM, at which training saves first."""
SAVING = 600
"""Seconds that a child has to end after it was asked to: torchrun's processes save meanwhile."""
TORCHRUN = {"OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SAVING)}
"""Environment of torchrun where it is not set: without the first torchrun prints a long warning,
without the second it kills its processes after 30 seconds."""
KILL_MARGIN = 30
"""Seconds beyond SAVING before a child is killed, so that torchrun can end its processes itself."""
STOPPED = 130
"""Exit status of a command that has already said that it was stopped."""
RESUMES = ": the same command goes on from there"
"""The usual note behind an error."""
LAST_LINES = 1.0
"""Seconds to wait for stderr after the child's end: its own children may keep the pipe open."""


def run_child(
    command: Sequence[str],
    *,
    log: Path,
    title: str,
    hold: Sequence[int | None] = (),
    note: str = "",
) -> None:
    """Print `title`, run `command`, and wait for its end.

    The first word of `command` is a program beside this Python. On a terminal the child writes to
    stderr itself; elsewhere each line of its stderr is printed and appended to `log`. Its stdout is
    appended to `log`. The file descriptors `hold` stay open in the child: a lock on one lasts until
    the child ends, even when this process is killed.

    Raises LvdError, which names the log and ends with `note`, when the child fails;
    KeyboardInterrupt, or SystemExit if the child has reported it, when this process was asked to
    stop.
    """
    say("")
    say(title)
    program = Path(sys.executable).with_name(command[0])
    if not program.exists():
        raise LvdError(
            f"no {command[0]} in {program.parent}: install the project there (make setup)"
        )
    terminal = sys.stderr.isatty()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab", buffering=0) as stream, _received_signals() as received:
        stream.write(f"$ {shlex.join(command)}\n".encode())
        process = subprocess.Popen(
            [str(program), *command[1:]],
            env={**(TORCHRUN if command[0] == "torchrun" else {}), **os.environ, STOP_AT_EOF: "1"},
            stdin=subprocess.PIPE,  # ends when this process dies
            stdout=stream,
            stderr=None if terminal else subprocess.PIPE,
            pass_fds=tuple(held for held in hold if held is not None),
            process_group=0,  # Ctrl-C reaches this process alone, which passes it on
        )
        copying = Thread(target=_copy_lines, args=(process.stderr, log), daemon=True)
        if not terminal:
            copying.start()
        assert process.stdin is not None  # a pipe
        with process.stdin:
            status = _wait(process, received, FIRST_SIGNAL.get(command[0], signal.SIGTERM))
        if not terminal:
            copying.join(LAST_LINES)
    if received:
        raise SystemExit(STOPPED) if status == STOPPED else KeyboardInterrupt
    if status:
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        where = "the cause is printed above" if terminal else f"its log is {log}"
        raise LvdError(f"{title}: {command[0]} failed ({how}), {where}{note}")


@contextlib.contextmanager
def _received_signals() -> Iterator[list[int]]:
    """Yield a list that grows by each signal of STOP this process receives.

    A handler is installed even where the signal was ignored, as SIGINT is in background jobs: a
    child inherits an ignored signal, and could not be asked to stop by it. SIGHUP stays ignored
    under nohup.
    """
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in STOP}
    if before[signal.SIGHUP] is signal.SIG_IGN:
        del before[signal.SIGHUP]
    try:
        for number in before:
            signal.signal(number, lambda number, _: received.append(number))
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(process: subprocess.Popen[bytes], received: Sequence[int], gently: signal.Signals) -> int:
    """Return the child's status at its end.

    The first signal received asks the child to stop; the second, or its time running out, kills it.
    """
    sent, deadline = 0, float("inf")
    while True:
        if sent < len(received) or time.monotonic() > deadline:
            process.send_signal(signal.SIGKILL if sent else gently)
            sent += 1
            deadline = time.monotonic() + SAVING + KILL_MARGIN
        # A signal that arrives just before a blocking wait is handled after it, so none blocks.
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=0.1)


def _copy_lines(source: IO[bytes], log: Path) -> None:
    """Copy each line of `source` to stderr and to the end of `log`."""
    with source, log.open("ab", buffering=0) as stream:
        for line in source:
            stream.write(line)
            with contextlib.suppress(OSError, ValueError):  # stderr may be closed: the log goes on
                sys.stderr.write(line.decode(errors="replace"))
                sys.stderr.flush()
