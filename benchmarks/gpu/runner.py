"""Runs sections one after the other, each in a process of its own, until the minutes are used.

A section that raises, dies or hangs costs itself alone: the device's memory and a broken CUDA
context go with its process.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic

from benchmarks.gpu.report import Report, heading, table
from benchmarks.gpu.section import Context, NothingToMeasureError, Row, Section

DONE, FAILED, STOPPED, SKIPPED = "done", "failed", "stopped", "skipped"
PRELOAD = ("torch", "torchvision", "timm", "train.loop")
"""Imported once, in the server that the sections' processes are forked from."""


def run_sections(
    sections: Sequence[Section],
    context: Context,
    report: Report,
    *,
    until: float,
    log: Path,
    say: Callable[[str], None] = print,
    preload: Sequence[str] = PRELOAD,
) -> int:
    """Run the sections until the clock `monotonic` reads `until`, and return an exit status.

    That is 0 where all were run or had nothing to measure, 1 where one failed or took longer than
    its `most`, and else 3: the minutes did not suffice for all.

    A section whose `needs` do not fit in what is left is skipped. One that is still at work after
    its `most` seconds, or when the time is up, is stopped, and its rows stay. What sections print
    goes to the file `log`.
    """
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(list(preload))
    failed = short = False
    caches = 0
    for section in sections:
        began = monotonic()
        left = until - began
        if left < section.needs:
            reason = (
                f"needs {section.needs:.0f} s, and {max(0, left):.0f} s of the minutes are left"
            )
            report.set(section.name, status=SKIPPED, reason=reason)
            short = True
        else:
            report.set(section.name, status="running")
            cache = context.scratch / f"compiled-{caches}"
            informed = replace(context, rows=report.rows, cache=cache)
            status, reason = _run(
                processes, section, informed, report, min(left, section.most), log
            )
            caches += status not in (DONE, SKIPPED)  # a killed compiler leaves half of a file
            if status == STOPPED and left <= section.most:
                reason, short = "the minutes are used", True
            else:
                failed |= status in (FAILED, STOPPED)
            seconds = round(monotonic() - began, 1)
            report.set(section.name, status=status, reason=reason, seconds=seconds)
        say(_told(section.name, report))
    return 1 if failed else 3 if short else 0


def _run(
    processes: multiprocessing.context.BaseContext,
    section: Section,
    context: Context,
    report: Report,
    seconds: float,
    log: Path,
) -> tuple[str, str]:
    """Return the status of the section and the reason for it, rows added meanwhile."""
    receiver, sender = processes.Pipe(duplex=False)
    process = processes.Process(target=_work, args=(section, context, sender, log))
    ends = monotonic() + seconds
    process.start()
    sender.close()
    try:
        while receiver.poll(max(0.0, ends - monotonic())):
            kind, content = receiver.recv()
            if kind != "row":
                return kind, content
            report.add(section.name, content)
        return STOPPED, f"still at work after {seconds:.0f} s"
    except EOFError:
        process.join()
        return FAILED, f"its process died ({_cause(process.exitcode)}): see {log.name}"
    finally:
        receiver.close()
        _end(process)


def _work(section: Section, context: Context, sender: Connection, log: Path) -> None:
    """Run one section in its own process group, so that what it started ends with it."""
    os.setsid()
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(context.cache)
    with log.open("ab", buffering=0) as file:
        file.write(f"\n== {section.name}\n".encode())
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())

    def emit(row: Row) -> None:
        json.dumps(row, allow_nan=False)  # what is no JSON is this section's failure
        sender.send(("row", row))

    try:
        section.run(context, emit)
        sender.send((DONE, ""))
    except NothingToMeasureError as reason:
        sender.send((SKIPPED, str(reason)))
    except BaseException as error:
        traceback.print_exc()
        sender.send((FAILED, traceback.format_exception_only(error)[-1].strip().splitlines()[0]))
    sys.stdout.flush()


def _leave_with_parent() -> None:
    multiprocessing.parent_process().join()
    os.killpg(0, signal.SIGKILL)


def _end(process: multiprocessing.process.BaseProcess) -> None:
    """Let a process that has said its last word end by itself, or kill it with its group."""
    process.join(1.0)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit status {code}"


def _told(name: str, report: Report) -> str:
    section = report.sections[name]
    return "\n".join(["", f"{name}: {heading(section)}", *table(section["rows"])])
