"""What an executor is: it runs calls somewhere, and says of each what became of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from curate.stage import Unit, Workers
from shared.storage.commits import run_unit

TRIES = 3
"""Of a unit that dies with its process, or whose storage fails for longer than reads wait."""
DEATHS = 16
"""Tries of a unit of workers with a setup: each finds an image that kills (`embedding.journal`)."""


@dataclass(frozen=True)
class Call:
    """A unit and how it is computed and committed; travels to the workers."""

    unit: Unit
    function: Callable[..., dict[str, Any] | None]
    scratch: Path
    folder: Path | None = None
    """Where the unit is committed; None where its function commits."""
    flat: bool = False

    def __call__(self, *state: Any) -> dict[str, Any]:
        """Run the unit and return its result."""
        args = (*state, *self.unit.args)
        self.scratch.mkdir(parents=True, exist_ok=True)  # this machine may have none yet
        if self.folder is None:
            return self.function(*args, scratch=self.scratch) or {}
        return run_unit(self.function, args, self.folder / self.unit.name, self.scratch, self.flat)


Outcome = tuple[Call, dict[str, Any] | Exception]


@runtime_checkable
class Executor(AbstractContextManager["Executor", None], Protocol):
    """Runs calls with back-pressure and retries; what it started for them is stopped at its exit."""

    def run(
        self,
        calls: Sequence[Call],
        workers: Workers | None,
        *,
        gpus: int,
        waiting: Callable[[str], None],
    ) -> Iterator[Outcome]:
        """Yield each call with its result, or with the exception that its last try raised.

        `gpus` is what a call without workers asks for, where there are as many. `waiting` is called
        about once a second while nothing ends, with what is being waited for, or "".
        """
        ...

    def dismiss(self) -> None:
        """Let go of workers: no further call of this stage needs them."""
        ...
