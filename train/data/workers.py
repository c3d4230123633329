"""Starts the processes of a loader, so that they end when, and only when, the training process does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext

_HELD_BACK = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def worker_context(preload: Sequence[str]) -> BaseContext:
    """Return the context that starts workers, from a server that has imported `preload`.

    A terminal's Ctrl-C and Slurm's SIGTERM and SIGUSR1 go to all processes of a job, but are meant
    for the training process, which finishes its step and saves. The server and its workers are
    therefore born with these signals blocked; a worker obeys SIGTERM from the training process.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    resource_tracker.ensure_running()  # first, because starting it unblocks some of the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def start_worker(_: int) -> None:
    """Prepare a worker process: to be called in it before its first task."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    for task in (_leave_with_parent, _leave_when_parent_says):
        threading.Thread(target=task, daemon=True).start()


def _leave_with_parent() -> None:
    # torch's workers watch the process that forked them: here the server, which outlives its user.
    multiprocessing.parent_process().join()
    os._exit(1)


def _leave_when_parent_says() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != multiprocessing.parent_process().pid:
        pass
    os._exit(1)
