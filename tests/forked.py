"""Processes that are forked from one that has imported torch: real ones, without those seconds.

Their server is the one of Python's `forkserver`, which the loader's workers come from too.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from train.data import workers
from train.data.workers import start_worker, worker_context

TESTS = Path(__file__).parent
_started: list[int] = []


def server() -> BaseContext:
    """Return the context of processes that are forked from a server with everything imported."""
    if forkserver._forkserver._forkserver_pid not in (None, *_started):
        forkserver._forkserver._stop()  # a loader's, which knows the loader alone
    with pytest.MonkeyPatch.context() as patch:
        for folder in (TESTS, TESTS.parent):  # this project's `train` before the tests' folder
            patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        context = worker_context(["forked_server"])
    _started.append(forkserver._forkserver._forkserver_pid)
    return context


@dataclass(frozen=True)
class Forked:
    """A process at work, and the file that gets what it says."""

    process: BaseProcess
    log: Path

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while it is at work."""
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal to this process alone."""
        os.kill(self.process.pid, number)

    def wait(self, seconds: float = 240) -> int:
        """Wait for its end and return the exit status."""
        self.process.join(seconds)
        status = self.process.exitcode
        assert status is not None, f"still at work after {seconds} s\n{self.log.read_text()}"
        return status

    def said(self, status: int = 0) -> str:
        """Wait for its end, which must be with this status; return what it has said."""
        found, said = self.wait(), self.log.read_text()
        assert found == status, f"{found}\n{said}"
        return said


@contextmanager
def forked(
    function: Callable[..., Any], *arguments: Any, log: Path, **environment: str
) -> Iterator[Forked]:
    """Run an importable function in a process of its own, which is killed when the context ends."""
    process = server().Process(target=_call, args=(function, arguments, log, environment))
    process.start()
    try:
        yield Forked(process, log)
    finally:
        process.kill()
        process.join()


def forked_command(module: str, arguments: Sequence[str], log: Path, **environment: str):
    """Run the command `main` of a module in a process of its own: see `forked`."""
    return forked(run_main, module, list(arguments), log=log, **environment)


def run_ranks(
    function: Callable[..., Any], *arguments: Any, folder: Path, ranks: int = 2
) -> list[str]:
    """Run a function in processes with the environment that torchrun gives; return what they say."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    all_ranks = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    all_ranks |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    with ExitStack() as stack:
        started = []
        for rank in range(ranks):
            own = {**all_ranks, "RANK": rank, "LOCAL_RANK": rank}
            log = folder / f"rank-{rank}.log"
            texts = {name: str(value) for name, value in own.items()}
            started.append(stack.enter_context(forked(function, *arguments, log=log, **texts)))
        return [process.said() for process in started]


def _call(
    function: Callable[..., Any], arguments: tuple, log: Path, environment: dict[str, str]
) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())  # see worker_context
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ |= environment
    os.fsync = lambda descriptor: None  # as in the process of the tests
    _share_server(environment)
    function(*arguments)


def _share_server(environment: dict[str, str]) -> None:
    """Let workers of this process come from the server that it comes from itself.

    As `ensure_running` says of itself; but it starts another, which would import everything again.
    The server does not know this environment: a loader's workers are given it.
    """
    forkserver.ensure_running = forkserver._forkserver.ensure_running = lambda: None
    workers.start_worker = partial(_start_worker, environment)


def _start_worker(environment: dict[str, str], number: int) -> None:
    os.environ |= environment
    start_worker(number)


def run_main(module: str, arguments: list[str]) -> None:
    """Run the command `main` of a module, and exit as it does."""
    import_module(module).main(arguments)
