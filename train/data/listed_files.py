"""Finds the files that a selection list names: where the crawl is now, else where it was."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from shared.datasets.dataset import Part
from shared.errors import LvdError
from shared.keys import shown
from shared.storage.remote import is_remote, locate


class ListedFiles:
    """Gives each file of a list a number, and says where it is.

    A file of the crawl is the one of `parts` whose path ends like its own for the most folders, of
    several the one that is nearest to their root; one of a seed, or that they lack, is where the
    list says. So a crawl may have moved, as long as it is whole.
    """

    def __init__(self, select: str, shards: str | None, parts: Sequence[Part]) -> None:
        """Take the list and the crawl as the command names them, and the crawl's parts."""
        self.locations: list[str] = []
        """By number."""
        self._select, self._shards = select, shards
        self._codes: dict[tuple[str, bool], int] = {}
        self._recorded: dict[str, str] = {}
        self._there: dict[str, list[str]] = defaultdict(list)
        for part in parts:
            for path in part.paths:
                location = locate(part.root, path)
                self._there[_steps(location)[-1]].append(location)

    def code(self, recorded: str, of_seed: bool) -> int:
        """Return the number of a file that the list has as `recorded`.

        Raises LvdError where it is not to be found, or is one that another already is.
        """
        code = self._codes.get((recorded, of_seed))
        if code is None:
            location = self._find(recorded, of_seed)
            other = self._recorded.setdefault(location, recorded)
            if other != recorded:
                raise LvdError(
                    f"--select {self._select}: {recorded} and {other} would both be "
                    f"{shown(location)}: name the whole crawl with --shards"
                )
            code = self._codes[recorded, of_seed] = len(self.locations)
            self.locations.append(location)
        return code

    def _find(self, recorded: str, of_seed: bool) -> str:
        there = is_remote(recorded) or Path(recorded).exists()
        if of_seed and there:
            return recorded
        steps = _steps(recorded)
        candidates = self._there.get(steps[-1], [])
        if candidates:
            return max(
                candidates, key=lambda each: (_alike(_steps(each), steps), -len(_steps(each)))
            )
        if there:
            return recorded
        where = "" if self._shards is None else f", nor below --shards {self._shards}"
        raise LvdError(
            f"--select {self._select}: {recorded} is not there{where}: say with --shards where the "
            "crawl is now"
        )


def _steps(location: str) -> list[str]:
    return shown(location).split("/")


def _alike(steps: Sequence[str], others: Sequence[str]) -> int:
    """Return for how many steps from the last one two paths are the same."""
    count = 0
    for one, other in zip(reversed(steps), reversed(others), strict=False):
        if one != other:
            break
        count += 1
    return count
