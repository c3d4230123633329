"""Machines as far as files go: an executor that sends each unit to a folder of its own for temporary
files, in this process, and catches whoever opens a file in that of another."""

from __future__ import annotations

import pickle
import shutil
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from curate.execution.inline import InlineExecutor
from shared.storage.store_copies import copy_here


class Elsewhere:
    """Runs units by turns on machines below `root`; each is emptied after so many units."""

    def __init__(self, root: Path, machines: int = 3, units: int = 7) -> None:
        self._homes = [root / str(number) for number in range(machines)]
        self._units, self._done = units, 0
        self._here: Path | None = None
        self._command: set[int | None] = set()
        """Threads of the command, such as its monitor."""
        self._root = root
        self._others = str(Path(tempfile.gettempdir()) / "lvd-stores")
        self.strayed: list[str] = []
        """Files of others that units opened."""
        self.held: list[str] = []
        """Vectors that the machine of the command has fetched by the end."""
        self.last: Any = None
        self.is_started = True
        sys.addaudithook(self._watch)

    def __enter__(self) -> Elsewhere:
        return self

    def __exit__(self, *raised: object) -> None:
        self.held = sorted(map(str, Path(self._others).glob("*/*/*/*/vectors.npy")))

    def dismiss(self) -> None:
        """Let go of nothing."""

    def run(self, calls, workers, *, gpus, waiting):
        self._command = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}
        for call in calls:
            home = self._homes[self._done % len(self._homes)]
            self._done += 1
            if self._done % self._units == 0:
                shutil.rmtree(home, ignore_errors=True)
            home.mkdir(parents=True, exist_ok=True)
            sent, known = pickle.dumps((call, workers)), tempfile.tempdir
            copy_here.cache_clear()
            try:
                tempfile.tempdir, self._here = str(home), home
                there, setup = pickle.loads(sent)
                inline = InlineExecutor().run([there], setup, gpus=0, waiting=lambda missing: None)
                [(_, outcome)] = inline
            finally:
                tempfile.tempdir, self._here = known, None
            yield call, outcome

    def _watch(self, event: str, args: tuple[Any, ...]) -> None:
        if event != "open" or self._here is None or not isinstance(args[0], (str, bytes)):
            return
        if threading.get_ident() in self._command:
            return
        path = args[0].decode() if isinstance(args[0], bytes) else args[0]
        foreign = path.startswith(str(self._root)) and not path.startswith(f"{self._here}/")
        if foreign or path.startswith(self._others):
            self.strayed.append(path)
