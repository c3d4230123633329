"""What a stage declares: the address of what it makes, and the units of its work.

An address is the fingerprint of a stage's name, version and settings and of the addresses of its
inputs: what is there under an address is used, and a change recomputes only what depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from shared.storage.files import fingerprint


@dataclass(frozen=True)
class Stage:
    """A stage with everything that decides its results; all fields are JSON-able."""

    name: str
    version: Any
    inputs: Any = None
    """Addresses of what goes in."""
    settings: Any = None

    @cached_property
    def address(self) -> str:
        """16 hex digits."""
        return fingerprint([self.name, self.version, self.inputs, self.settings])


@dataclass(frozen=True)
class Unit:
    """One committed piece of a stage: `function(*args, out=folder)` fills the folder `name`."""

    name: str
    args: tuple[Any, ...]
    images: int = 0
    """How many images it holds, where that is known before; else `weight` stands for it."""
    weight: int = 0


@dataclass(frozen=True)
class Workers:
    """Processes that hold an expensive setup, such as loaded models.

    Each calls `setup(*args)` once; units get a `curate.state.State` of the value as their first
    argument. With `gpus`, the setup lives in processes of its own beside a GPU, where the cluster
    has one, and the units run on processors.
    """

    setup: Callable[..., Any]
    args: tuple[Any, ...] = ()
    gpus: bool = False


@dataclass(frozen=True)
class Failure:
    """A unit that failed for its own reasons on every try, in one line."""

    line: str


class EngineSettings(BaseModel):
    """How many processes work at a time, and with how many threads each."""

    model_config = ConfigDict(extra="forbid")

    workers: int | None = Field(None, ge=1)
    """Processes at a time; by default as many as the processors (or GPUs) allow."""
    threads: int = Field(1, ge=1)
    """Threads of one task."""
    patience: float = Field(600.0, gt=0)
    """Seconds that a run waits for a processor or GPU of a busy or shrunken cluster."""
    copy_bytes: int = Field(100 << 30, ge=1)
    """Bytes of a WORK on a store that a machine keeps in its folder for temporary files, where it does
    not work on more at a time."""


@runtime_checkable
class Runner(Protocol):
    """Runs the units of stages somewhere, and commits what they make."""

    work: Path
    scratch: Path
    """A folder of this run, on the file system of `work`."""

    def at_work(self, name: str) -> AbstractContextManager[None]:
        """Show what is run meanwhile as the stage `name`."""
        ...

    def folder(self, stage: Stage) -> Path:
        """Return where the units of a stage lie."""
        ...

    def use(self, place: Path) -> None:
        """Note that the result of this run is made of what lies in `place`."""
        ...

    def run(
        self,
        place: Stage | Path,
        function: Callable[..., dict[str, Any] | None],
        units: Sequence[Unit],
        *,
        workers: Workers | None = None,
        scratch: Path | None = None,
        note: str = "",
        flat: bool = False,
        gpus: int = 0,
    ) -> list[dict[str, Any]]:
        """Run what is not committed of `units` below `place`; return all results in their order."""
        ...

    def map(
        self,
        function: Callable[..., dict[str, Any]],
        units: Sequence[Unit],
        *,
        workers: Workers | None = None,
        done: int = 0,
    ) -> list[dict[str, Any] | Failure]:
        """Run units that commit their results themselves; `done` images were done before."""
        ...
