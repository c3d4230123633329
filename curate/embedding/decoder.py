"""Decodes untrusted images so that one that kills, hangs or bloats its decoder costs its row only.

Images are decoded in threads of the worker. Some get a process of their own, with limits on its
processor time and memory, which gives their picture or the reason why there is none:
- an image that was being decoded when a worker died: a journal on disk names it to the next try
  of the part, whether the executor or, after the death of an inline run, the user makes that try;
- an image that takes over `seconds`: its thread is left behind, and keeps no process from ending;
- an image that runs out of memory;
- every image of a process that left `MOST_LEFT_BEHIND` threads behind.
The images under way in one `Decoder` have at most `max_pixels` together, by their headers.
"""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from PIL import Image

from curate.embedding.journal import Journal
from shared.pictures.images import Header, ImageError, decode

T = TypeVar("T")

MOST_LEFT_BEHIND = 4
PIXEL_BYTES = 48
"""Memory that a pixel may take; a wide grey picture takes most while it is scaled to 8 bits."""
BASE_BYTES = 1 << 30
"""Memory that a decoder may take beside its pixels."""

MOST_WAIT = 600.0
"""Seconds to wait for a process that uses no processor time, or starts on a busy machine."""

_LEFT_BEHIND = "decoder left behind"


class Decoder:
    """Decodes the images of one part; `decode` may be called from any number of threads."""

    def __init__(self, journal: Journal, *, max_pixels: int, seconds: float) -> None:
        self._journal = journal
        self._max_pixels, self._seconds = max_pixels, seconds
        self._idle: list[_Thread] = []
        self._pixels = 0
        self._fewer_pixels = threading.Condition()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._idle:
            thread.stop()

    def decode(self, key: str, data: bytes, header: Header, reduce_to: int | None) -> Image.Image:
        """Return `shared.pictures.images.decode` of an image; raise ImageError, whatever becomes of it."""
        pixels = min(header.width * header.height, self._max_pixels)
        with self._room_for(pixels):
            if not self._journal.is_suspect(key) and _left_behind() < MOST_LEFT_BEHIND:
                with self._journal.trying(key):
                    try:
                        return self._in_thread(data, reduce_to)
                    except TimeoutError:
                        pass
                    except ImageError as error:
                        if not isinstance(error.__cause__, MemoryError):
                            raise
            return decode_apart(
                data,
                max_pixels=self._max_pixels,
                reduce_to=reduce_to,
                seconds=self._seconds,
                memory=BASE_BYTES + PIXEL_BYTES * pixels,
            )

    @contextmanager
    def _room_for(self, pixels: int) -> Iterator[None]:
        with self._fewer_pixels:
            self._fewer_pixels.wait_for(lambda: self._pixels + pixels <= self._max_pixels)
            self._pixels += pixels
        try:
            yield
        finally:
            with self._fewer_pixels:
                self._pixels -= pixels
                self._fewer_pixels.notify_all()

    def _in_thread(self, data: bytes, reduce_to: int | None) -> Image.Image:
        """Decode in a thread that can be left behind; raise TimeoutError where it was."""
        try:
            thread = self._idle.pop()
        except IndexError:
            thread = _Thread()
        try:
            return thread.run(
                lambda: decode(data, max_pixels=self._max_pixels, reduce_to=reduce_to),
                self._seconds,
            )
        finally:
            if not thread.is_left_behind:
                self._idle.append(thread)


class _Thread:
    """Runs one call after the other, each for a limited time, in a thread that stops no exit."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, daemon=True, name="decoder")
        self._thread.start()

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            future, function = call
            try:
                future.set_result(function())
            except BaseException as error:  # the caller's to handle
                future.set_exception(error)
            del call, future, function  # the picture is the caller's

    def run(self, function: Callable[[], T], seconds: float) -> T:
        future: Future[T] = Future()
        self._calls.put((future, function))
        try:
            return future.result(seconds)
        except TimeoutError:
            self._thread.name = _LEFT_BEHIND
            self.stop()
            raise

    @property
    def is_left_behind(self) -> bool:
        return self._thread.name == _LEFT_BEHIND

    def stop(self) -> None:
        self._calls.put(None)


def _left_behind() -> int:
    return sum(thread.name == _LEFT_BEHIND for thread in threading.enumerate())


def decode_apart(
    data: bytes, *, max_pixels: int, reduce_to: int | None, seconds: float, memory: int
) -> Image.Image:
    """Return `shared.pictures.images.decode` of an image, run in a process of its own.

    Raises ImageError where that process finds no picture, dies, or takes over `seconds` of
    processor time or (on Linux) `memory` bytes.
    """
    limits = f"seconds={seconds!r}, memory={memory!r}"
    options = f"max_pixels={max_pixels!r}, reduce_to={reduce_to!r}, memory={memory!r}"
    code = f"from {__name__} import _answer, _limit; _limit({limits}); _answer({options})"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=data,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=seconds + MOST_WAIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ImageError(f"decoding does not end within {seconds + MOST_WAIT:g} s") from None
    if done.returncode == -signal.SIGXCPU:
        raise ImageError(f"decoding takes over {seconds:g} s")
    if done.returncode:
        raise ImageError(f"decoding kills the process (status {done.returncode})")
    size, _, content = done.stdout.partition(b"\n")
    if not size:
        raise ImageError(content.decode())
    width, height = map(int, size.split())
    return Image.frombytes("RGB", (width, height), content)


def _answer(*, max_pixels: int, reduce_to: int | None, memory: int) -> None:
    """Write the picture that is on stdin to stdout, or an empty line and the reason."""
    try:
        data = sys.stdin.buffer.read()
        image = decode(data, max_pixels=max_pixels, reduce_to=reduce_to)
        answer = b"%d %d\n" % image.size + image.tobytes()
    except (ImageError, MemoryError) as error:
        short = isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError)
        reason = f"decoding takes over {memory >> 20} MiB of memory" if short else str(error)
        answer = b"\n" + reason.encode()
    sys.stdout.buffer.write(answer)


def _limit(*, seconds: float, memory: int) -> None:
    """Let this process take so much more processor time and memory than it has taken."""
    import resource

    def set_limit(kind: int, value: int) -> None:
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (value if hard < 0 else min(value, hard), hard))

    set_limit(resource.RLIMIT_CORE, 0)
    set_limit(resource.RLIMIT_CPU, math.ceil(time.process_time() + seconds))
    status = Path("/proc/self/statm")
    if status.exists():
        pages = int(status.read_text().split()[0])
        set_limit(resource.RLIMIT_AS, pages * resource.getpagesize() + memory)
