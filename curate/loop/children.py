"""Runs the project's own commands as child processes: shown, logged, and gone when we are.

`lvd-curate loop` and `demo` are made of whole commands of both stages, which know how to go on
after a kill; whoever runs them needs no more than to start them again.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import fcntl
import os
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread, current_thread, main_thread
from types import FrameType
from typing import IO

from shared.errors import LvdError
from shared.progress import say

STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""What asks us to stop."""
GENTLY = {"lvd-curate": signal.SIGINT}
"""How programs are told; others by SIGTERM, at which training saves first."""
TORCHRUN = {"OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600"}
"""What torchrun is given unless it is set: the first it would set itself, and say so at length; the
second is how many seconds its processes have to save before they are killed, else 30."""
STOPPED = 130
"""The status of a command that has said itself that it was stopped."""
PR_SET_PDEATHSIG = 1
PAINTED = re.compile(r".*(?:\r(?!$)|\x1b\[2?K)|\x1b\[[0-9;?]*[A-Za-z]|\r")
"""What stands before a line's last text, and what moves or colours on a terminal."""
BAR, UP = "\x1b[2K", "\x1b[1A"
"""What a bar begins its next picture with, and what paints over its last one."""
LAST_WORDS = 1.0
"""Seconds that are given to what still holds the child's stderr when the child has ended."""


def run_child(
    command: Sequence[str], *, log: Path, title: str, hold: Sequence[int] = (), note: str = ""
) -> None:
    """Run `command`, whose first word is a program beside this Python, and wait for its end.

    `title` is said first. What the child says on stderr is shown, as a bar where we have a
    terminal, and goes to the end of `log`, as does its stdout. The file descriptors `hold` stay
    open in it: a lock on one lasts until the child has ended, even where we are killed. It is
    stopped when we are asked to, and on Linux when we die.

    Raises LvdError, which names the log and ends with `note`, when it fails; KeyboardInterrupt when
    it was stopped, or SystemExit where it has said so itself.
    """
    say("")
    say(title)
    words = [_program(command[0]), *command[1:]]
    more = TORCHRUN if command[0] == "torchrun" else {}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab", buffering=0) as stream, _Stop(command[0]) as stop:
        stream.write(f"$ {shlex.join(command)}\n".encode())
        ours, theirs = _stderr()
        process = subprocess.Popen(
            words,
            env={**more, **os.environ},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=theirs,
            pass_fds=tuple(hold),
            process_group=0,  # Ctrl-C reaches us alone, and we tell the child
            preexec_fn=_prepared(),
        )
        os.close(theirs)
        shown = Thread(target=_show, args=(ours, log), daemon=True)
        shown.start()
        stop.child = process
        status = _ended(process)
        shown.join(LAST_WORDS)
    if stop.asked:
        raise SystemExit(STOPPED) if status == STOPPED else KeyboardInterrupt
    if status:
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        raise LvdError(f"{title}: {command[0]} failed ({how}), its log is {log}{note}")


def _ended(process: subprocess.Popen) -> int:
    """Return the child's status at its end.

    A signal that arrives just before a blocking wait begins is only heard behind it, so none blocks.
    """
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=1)


class _Stop:
    """While entered, hears what asks us to stop and hands it on: the second time, as SIGKILL."""

    def __init__(self, program: str) -> None:
        self.asked = False
        self._gently = GENTLY.get(program, signal.SIGTERM)
        self._child: subprocess.Popen | None = None
        self._before: dict[int, object] = {}

    @property
    def child(self) -> subprocess.Popen | None:
        return self._child

    @child.setter
    def child(self, process: subprocess.Popen) -> None:
        self._child = process
        if self.asked:
            process.send_signal(self._gently)

    def __enter__(self) -> _Stop:
        for number in STOP if current_thread() is main_thread() else ():
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and `&` have it
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._child is not None:
            self._child.send_signal(signal.SIGKILL if self.asked else self._gently)
        self.asked = True


def _program(name: str) -> str:
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise LvdError(f"no {name} in {path.parent}: install the project there (make setup)")
    return str(path)


def _prepared() -> Callable[[], None]:
    """Return what a child does before it becomes its program, so that it ends when we do."""
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
    parent = os.getpid()

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # where we were started to ignore it
        if prctl is not None:
            prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:  # it has died already
                os._exit(1)

    return prepare


def _stderr() -> tuple[int, int]:
    """Return where the child's stderr is read and written: a terminal where ours is one."""
    if not sys.stderr.isatty():
        return os.pipe()
    ours, theirs = os.openpty()
    modes = termios.tcgetattr(theirs)
    modes[1] &= ~termios.OPOST  # our own terminal turns \n into \r\n
    termios.tcsetattr(theirs, termios.TCSANOW, modes)
    size = os.get_terminal_size(sys.stderr.fileno())
    cells = struct.pack("HHHH", size.lines, size.columns, 0, 0)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, cells)
    return ours, theirs


def _show(source: int, place: Path) -> None:
    """Copy what comes from `source` to our stderr, and its finished lines to the file `place`.

    Both are this thread's own: a process that the child leaves behind may keep it for a while.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    begun = picture = ""
    with place.open("ab", buffering=0) as log, os.fdopen(source, "rb", buffering=0) as stream:
        while data := _read(stream):
            text = decoder.decode(data)
            with contextlib.suppress(OSError, ValueError):  # ours may be gone: the log goes on
                sys.stderr.write(text)
                sys.stderr.flush()
            *lines, begun = (begun + text).split("\n")
            for line in lines:
                if UP not in line:
                    log.write(picture.encode())
                picture = f"{PAINTED.sub('', line)}\n"
                if BAR not in line or UP in line:  # else the next line may paint over it
                    log.write(picture.encode())
                    picture = ""
            begun = begun[begun.rfind("\r", 0, -1) + 1 :]
        log.write((picture + PAINTED.sub("", begun)).encode())


def _read(stream: IO[bytes]) -> bytes:
    with contextlib.suppress(OSError):  # a terminal whose other end is closed
        return stream.read(2**16)
    return b""
