"""What the live page of a training shows: its metrics file, read on where it grew, and its pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared.errors import LvdError
from shared.pages.live import LivePage
from shared.progress import duration, rate
from train.monitoring.collapse import WORDS
from train.monitoring.look_files import PICTURES, kept_steps, look_file
from train.monitoring.metrics import METRICS
from train.monitoring.status import State, state_of

SCORES = {"knn": "k-NN top-1", "recognition": "pictures known by another view"}


class Tail:
    """The last line of a step and the last scores of a metrics file, of which each byte is read once."""

    def __init__(self, path: Path) -> None:
        self.last: dict[str, Any] = {}
        self.scores: dict[str, Any] = {}
        self._path, self._at, self._file = path, 0, 0

    def read(self) -> None:
        """Take the whole lines that have come since; from the start where the file is another one."""
        if not self._path.exists():
            return
        with self._path.open("rb") as stream:
            stat = self._path.stat()
            if stat.st_ino != self._file or stat.st_size < self._at:
                self.last, self.scores, self._at, self._file = {}, {}, 0, stat.st_ino
            stream.seek(self._at)
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                self._at += len(line)
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            values = json.loads(line)
        except ValueError:
            return
        if isinstance(values, dict) and "loss" in values:
            self.last = values
        elif isinstance(values, dict):
            self.scores |= values


def live_page(out: Path) -> Callable[[], LivePage]:
    """Return what gives the page of the training in `out`, whenever it is called."""
    tail = Tail(out / METRICS)

    def show() -> LivePage:
        tail.read()
        title = f"Training in {out}"
        try:
            state = state_of(out, tail.last)
        except LvdError:  # it has not begun to write
            return LivePage(title, [("stage", "starting")])
        share = state.done / state.total if state.total else None
        return LivePage(title, list(_facts(state, tail)), share, _pictures(out))

    return show


def _facts(state: State, tail: Tail) -> list[tuple[str, str]]:
    last, of = tail.last, "" if state.total is None else f" of {state.total:,}"
    if not last:
        return [("stage", f"no step{of} is measured yet")]
    speed = last.get("images_per_second")
    facts = [("steps", f"{state.done:,}{of}")]
    if speed:
        facts.append(("images", rate(1, 1 / speed)))
    if (left := state.left(speed)) is not None:
        facts.append(("left", f"about {duration(left)}"))
    if last.get("data_wait") is not None:
        facts.append(("waiting for data", f"{last['data_wait']:.0%} of the time"))
    losses = ("loss", "dino", "ibot", "infonce", "koleo")
    for name in (name for name in losses if name in last):
        facts.append((name, "not finite" if last[name] is None else f"{last[name]:.4g}"))
    for name, meaning in SCORES.items():
        if tail.scores.get(name) is not None:
            facts.append((meaning, f"{tail.scores[name]:.1%}"))
    failed = [f"{last[name]:,} {name}" for name in ("broken", "skipped") if last.get(name)]
    facts.append(("failures", ", ".join(failed) or "none"))
    for sign in last.get("collapse") or ():
        words = WORDS.get(sign)
        facts.append(("collapse?", f"{words.meaning}; try: {words.remedy}" if words else sign))
    return facts


def _pictures(out: Path) -> list[tuple[str, bytes]]:
    """Return the images that are looked at, and what the teacher saw in them last."""
    found = [("the pictures", out / PICTURES)]
    for what in ("attention", "patches"):
        for step in kept_steps(out, what)[-1:]:
            found.append((f"{what} after step {step:,}", out / look_file(what, step)))
    return [(caption, path.read_bytes()) for caption, path in found if path.exists()]
