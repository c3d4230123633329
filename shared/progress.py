"""What a stage says on the terminal: one bar while it works, one line when it is done."""

from __future__ import annotations

import functools
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

PLAIN_INTERVAL = 30.0  # seconds between the lines of a long stage where there is no terminal
WIDTH = 100
SETTLED = 10.0
"""Seconds behind the first sign of work from which a rate is told: until then it is not known."""


class StageBar:
    """Counts what a stage has done. All its methods may be called from any thread."""

    def __init__(self, title: str, total: int | None, unit: str) -> None:
        self.title, self.total, self.unit = printable(title), total, unit
        self.done = self.skipped = 0
        self.is_guess = False
        """Whether `total` is only guessed so far."""
        self._shown = 0
        """The most that was ever done, units at work counted: progress never runs backwards."""
        self._note = ""
        self._start = self._spoke = monotonic()
        self._first: tuple[float, int] | None = None
        """When there was a first sign of work, and how much was done by then."""
        self._lock = threading.Lock()

    def advance(self, n: int = 1) -> None:
        """Count `n` more units as done by this run."""
        with self._lock:
            self.done += n
            self._note_work()
        self._speak()

    def count_under_way(self, n: int) -> None:
        """Say how much is done inside units that are not committed yet."""
        with self._lock:
            self._shown = max(self._shown, self.done + n)
            self._note_work()
        self._speak()

    @property
    def shown(self) -> int:
        """What is done, with what is done inside units at work; it never falls."""
        with self._lock:
            self._shown = max(self._shown, self.done)
            return self._shown

    def counts(self) -> dict[str, Any]:
        """Return `done`, `total`, `rate` a second and seconds `left`, None where that is not known, and
        whether the total `is_guess`.
        """
        worked, seconds = self._pace()
        speed = worked / seconds if worked > 0 and seconds > 0 else None
        total = None if self.total is None else max(self.total, self.shown)
        rest = None if total is None else total - self.shown
        left = 0.0 if rest == 0 else rest / speed if rest is not None and speed else None
        return {
            "done": self.shown,
            "total": total,
            "rate": speed,
            "left": left,
            "is_guess": self.is_guess,
        }

    def skip(self, n: int) -> None:
        """Count `n` units as done by an earlier run: they enter neither the rate nor the ETA."""
        with self._lock:
            self.done += n
            self.skipped += n

    def note(self, text: str) -> None:
        """Show a few words behind the figures; the last ones stay on the stage's final line."""
        self._note = printable(text)

    @property
    def seconds(self) -> float:
        """Seconds since the stage began."""
        return monotonic() - self._start

    def status(self) -> str:
        """Return count, rate and the time left, of a stage that is still at work."""
        counts = self.counts()
        done, total, left = counts["done"], counts["total"], counts["left"]
        of = f"/{'~' * self.is_guess}{total:,}" if total is not None else ""
        words = [f"{done:,}{of} {self.unit}" if done or total else ""]
        words.append(rate(*self._pace()))
        if left:
            words.append(f"{duration(left)} left")
        return "  ".join([word for word in words if word] + self._noted())

    def summary(self, *, finished: bool) -> str:
        """Return the stage's one final line."""
        worked, seconds = self.done - self.skipped, self.seconds
        if not finished:
            about = "about " if self.is_guess else ""
            of = f" of {about}{self.total:,}" if self.total is not None else ""
            counted = f"{self.done:,}{of} {self.unit}, " if self.shown or self.total else ""
            begun = f", {self.shown - self.done:,} more under way" if self.shown > self.done else ""
            return self._line(f"stopped after {counted}{duration(seconds)}{begun}")
        words = [f"{self.done:,} {self.unit}" if self.done or self.total else ""]
        if worked == 0 and self.skipped:
            words.append("all done before")
        else:
            if self.skipped:
                words.append(f"({self.skipped:,} done before)")
            words += [duration(seconds), rate(worked, seconds)]
        return self._line("  ".join([word for word in words if word] + self._noted()))

    def _pace(self) -> tuple[int, float]:
        """Return how much was done in how many seconds, by which the rest is reckoned; 0 before that
        is known.

        They begin with the first sign of work: models are loaded and processes started only once.
        """
        if self._first is None:
            return 0, 0.0
        seconds = monotonic() - self._first[0]
        return (
            (self.shown - self.skipped - self._first[1], seconds)
            if seconds >= SETTLED
            else (0, 0.0)
        )

    def _note_work(self) -> None:
        self._shown = max(self._shown, self.done)
        if self._first is None and self._shown > self.skipped:
            self._first = monotonic(), self._shown - self.skipped

    def _speak(self) -> None:
        with self._lock:
            if _live() or monotonic() - self._spoke < PLAIN_INTERVAL:
                return
            self._spoke = monotonic()
        _print(self._line(self.status()))

    def _noted(self) -> list[str]:
        return [self._note] if self._note else []

    def _line(self, text: str) -> str:
        line = f"{self.title:<10}  {text}"
        return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"


@contextmanager
def stage_bar(title: str, total: int | None, unit: str = "images") -> Iterator[StageBar]:
    """Show one stage on stderr: a live bar on a terminal; elsewhere plain lines, no control codes.

    `total` is None where it is not known. The final line is the same on both.
    """
    bar = StageBar(title, total, unit)
    finished = False
    try:
        if _live():
            with _live_display(bar):
                yield bar
        else:
            yield bar
        finished = True
    finally:
        _print(bar.summary(finished=finished))


def say(text: str) -> None:
    """Write one message to stderr, above the bar if there is one."""
    _print(printable(text))


def warn(text: str) -> None:
    """Write one warning to stderr, above the bar if there is one."""
    _print(f"warning: {printable(text)}", style="yellow")


def printable(text: str) -> str:
    """Return `text` with everything escaped that could steer a terminal or reorder its line.

    Keys, URLs and captions come from a crawl: they may hold escape sequences and bidi overrides.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def duration(seconds: float) -> str:
    """Return `12.3 s`, `3 min 20 s` or `2 h 05 min`."""
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def rate(count: int, seconds: float) -> str:
    """Return `87/s`, `3.2/s` or `0.05/s`; nothing where there is nothing to divide."""
    if count <= 0 or seconds <= 0:
        return ""
    value = count / seconds
    digits = 0 if value >= 10 else 1 if value >= 1 else 2
    return f"{value:,.{digits}f}/s"


def count(number: int, noun: str) -> str:
    """Return `1 image`, `2 images`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def size(count: float) -> str:
    """Return `12 B`, `3.4 kB`, `5.6 MB` and so on."""
    for suffix in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {suffix}" if suffix == "B" else f"{count:.1f} {suffix}"
        count /= 1000
    return f"{count:.1f} TB"


@functools.cache
def _console() -> Console:
    # One console for bars and messages: it is how rich keeps the one from tearing the other.
    # Without a `file` it looks sys.stderr up each time it writes.
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def _live() -> bool:
    # rich would also believe FORCE_COLOR, which log collectors set.
    return sys.stderr.isatty() and not _console().is_dumb_terminal


def _print(line: str, style: str | None = None) -> None:
    if _live():
        # Wrapped between words; a long one, such as a path to be copied, stays whole.
        lines = textwrap.wrap(line, WIDTH, break_long_words=False, break_on_hyphens=False)
        _console().print("\n".join(lines), style=style, soft_wrap=True)
    else:
        print(line, file=sys.stderr, flush=True)


def _live_display(bar: StageBar) -> Live:
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    def render() -> Table:
        line = Table.grid(padding=(0, 2))
        line.add_column(no_wrap=True)
        line.add_column()
        line.add_column(no_wrap=True, overflow="ellipsis")
        total = bar.total or (1 if bar.total == 0 else None)
        line.add_row(
            Text(f"{bar.title:<10}"),
            ProgressBar(total=total, completed=bar.shown, width=24, pulse=total is None),
            Text(bar.status()),
        )
        return line

    return Live(
        get_renderable=render,
        console=_console(),
        transient=True,
        refresh_per_second=5,
        redirect_stdout=sys.stdout.isatty(),
    )
