"""Starts the processes of a loader, so that they end when, and only when, the training process does."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from shared.errors import LvdError

Made = TypeVar("Made")

_HELD_BACK = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_SHORT_FOLDER = "/tmp"
_LONGEST_SOCKET = "pymp-12345678/listener-12345678"
_SOCKET_BYTES = 107


def made_by_workers(
    dataset: Dataset[Made | str], *, workers: int, prefetch: int, pin_memory: bool = False
) -> Iterator[Made]:
    """Return what `dataset` makes, in its order, by so many processes (0: here), started at once.

    Each is `prefetch` ahead. Where the dataset makes a line of text, that is raised as LvdError, and
    so is the death of a worker.
    """
    loader = DataLoader(
        dataset,
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        multiprocessing_context=worker_context([type(dataset).__module__]) if workers else None,
        worker_init_fn=start_worker,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # else it draws from the global one
    )
    return _without_lines(iter(loader))


def worker_context(preload: Sequence[str]) -> BaseContext:
    """Return the context that starts workers, from a server that has imported `preload`.

    A terminal's Ctrl-C and Slurm's SIGTERM and SIGUSR1 go to all processes of a job, but are meant
    for the training process, which finishes its step and saves. The server and its workers are
    therefore born with these signals blocked; a worker obeys SIGTERM from the training process.
    """
    atexit.unregister(kill_workers)
    atexit.register(kill_workers)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    _choose_socket_folder()
    resource_tracker.ensure_running()  # first, because starting it unblocks some of the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def kill_workers() -> None:
    """Kill the server and the workers that are left at the end of this process.

    A worker that is starting, or that the server still has to start, would miss the semaphores that
    go with this process, and say so by a traceback.
    """
    workers = multiprocessing.active_children()  # without the server, they would pass for ended
    server = getattr(forkserver._forkserver, "_forkserver_pid", None)
    if server is not None:
        with suppress(ProcessLookupError):
            os.kill(server, signal.SIGKILL)
    for worker in workers:
        worker.kill()


def _choose_socket_folder() -> None:
    """Keep the sockets of worker processes in /tmp where those of TMPDIR would have no room.

    The kernel takes no longer path of a socket than 107 bytes. Raises LvdError.
    """
    if len(os.fsencode(Path(tempfile.gettempdir()) / _LONGEST_SOCKET)) <= _SOCKET_BYTES:
        return
    usual, tempfile.tempdir = tempfile.tempdir, _SHORT_FOLDER
    try:
        get_temp_dir()  # it stays where it was made first, in the workers too
    except OSError as error:
        raise LvdError(
            f"workers have no folder for their sockets ({error}): set TMPDIR to a short path that "
            "can be written"
        ) from None
    finally:
        tempfile.tempdir = usual


def start_worker(_: int) -> None:
    """Prepare a worker process: to be called in it before its first task."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    for task in (_leave_with_parent, _leave_when_parent_says):
        threading.Thread(target=task, daemon=True).start()


def _leave_with_parent() -> None:
    # torch's workers watch the process that forked them: here the server, which outlives its user.
    _parent().join()
    os._exit(1)


def _leave_when_parent_says() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != _parent().pid:
        pass
    os._exit(1)


def _parent() -> BaseProcess:
    parent = multiprocessing.parent_process()
    assert parent is not None  # of a worker
    return parent


def _without_lines(loaded: Iterator[Made | str]) -> Iterator[Made]:
    while True:
        try:
            made = next(loaded)
        except StopIteration:
            return
        except (RuntimeError, ConnectionError, EOFError) as error:
            # Of a worker that dies while it sends, only the broken connection is known at first.
            if isinstance(error, RuntimeError) and "exited unexpectedly" not in str(error):
                raise
            raise LvdError(
                "a process that loads images died, as when memory or /dev/shm runs out: lower "
                "data.workers or data.prefetch, and run the same command again to go on from the "
                "last checkpoint"
            ) from error
        if isinstance(made, str):
            raise LvdError(made)
        yield made


def _as_it_is(made: Made) -> Made:
    return made
