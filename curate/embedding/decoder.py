"""Decodes untrusted images so that one that kills, hangs or bloats its decoder costs its row only.

Images are decoded in threads of the worker. Some get a process of their own, with limits on its
processor time and memory, which gives their picture or the reason why there is none:
- an image that was being decoded when a worker died: a journal on disk names it to the next try
  of the part, whether the executor or, after the death of an inline run, the user makes that try;
- an image that takes over `seconds`: its thread is left behind, and what that was called for is done
  again by another (`threads`);
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
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from curate.embedding.journal import Journal
from curate.embedding.threads import LeftBehindError, Threads, count_left_behind, mark_left_behind
from shared.pictures.images import Header, ImageError, decode

MOST_LEFT_BEHIND = 4
PIXEL_BYTES = 48
"""Memory that a pixel may take; a wide grey picture takes most while it is scaled to 8 bits."""
BASE_BYTES = 1 << 30
"""Memory that a decoder may take beside its pixels."""

MOST_WAIT = 600.0
"""Seconds to wait for a process that uses no processor time, or starts on a busy machine."""


@dataclass(eq=False)
class _Decoding:
    """An image that a thread decodes since a moment of the monotonic clock."""

    key: str
    pixels: int
    thread: threading.Thread = field(default_factory=threading.current_thread)
    since: float = field(default_factory=time.monotonic)


class Decoder:
    """Decodes the images of one part, in any number of `threads`."""

    def __init__(self, journal: Journal, *, max_pixels: int, seconds: float) -> None:
        self._journal = journal
        self._max_pixels, self._seconds = max_pixels, seconds
        self._under_way: set[_Decoding] = set()
        self._hung: set[str] = set()
        self._pixels = 0
        self._fewer_pixels = threading.Condition()

    def threads(self, count: int) -> Threads:
        """Return threads for calls that decode, which are made again where decoding hangs."""
        return Threads(count, self._leave_behind, self._seconds)

    def decode(self, key: str, data: bytes, header: Header, reduce_to: int | None) -> Image.Image:
        """Return `shared.pictures.images.decode` of an image; raise ImageError, whatever becomes of it.

        Where the thread was left behind meanwhile, raises LeftBehindError.
        """
        pixels = min(header.width * header.height, self._max_pixels)
        if not self._is_suspect(key):
            try:
                return self._decode_here(key, pixels, data, reduce_to)
            except ImageError as error:
                if not isinstance(error.__cause__, MemoryError):
                    raise
        self._wait_for_room(pixels)
        try:
            return decode_apart(
                data,
                max_pixels=self._max_pixels,
                reduce_to=reduce_to,
                seconds=self._seconds,
                memory=BASE_BYTES + PIXEL_BYTES * pixels,
            )
        finally:
            self._give_room(pixels)

    def _is_suspect(self, key: str) -> bool:
        known = key in self._hung or self._journal.is_suspect(key)
        return known or count_left_behind() >= MOST_LEFT_BEHIND

    def _decode_here(
        self, key: str, pixels: int, data: bytes, reduce_to: int | None
    ) -> Image.Image:
        """Decode in this thread, or raise LeftBehindError where it was left behind meanwhile."""
        self._wait_for_room(pixels)
        decoding = _Decoding(key, pixels)
        with self._fewer_pixels:
            self._under_way.add(decoding)
        try:
            with self._journal.trying(key):
                return decode(data, max_pixels=self._max_pixels, reduce_to=reduce_to)
        finally:
            with self._fewer_pixels:
                if decoding not in self._under_way:  # its room was given back
                    raise LeftBehindError
                self._under_way.remove(decoding)
            self._give_room(pixels)

    def _leave_behind(self) -> list[threading.Thread]:
        """Leave the threads behind that take too long; their images are decoded apart from now on."""
        now = time.monotonic()
        with self._fewer_pixels:
            late = [each for each in self._under_way if now - each.since > self._seconds]
            for each in late:
                self._under_way.remove(each)
                self._hung.add(each.key)
                mark_left_behind(each.thread)
        for each in late:
            self._give_room(each.pixels)
        return [each.thread for each in late]

    def _wait_for_room(self, pixels: int) -> None:
        with self._fewer_pixels:
            self._fewer_pixels.wait_for(lambda: self._pixels + pixels <= self._max_pixels)
            self._pixels += pixels

    def _give_room(self, pixels: int) -> None:
        with self._fewer_pixels:
            self._pixels -= pixels
            self._fewer_pixels.notify_all()


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
