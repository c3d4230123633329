"""What units call of an expensive setup, in this process or in another one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Pending(Protocol):
    """A value that is being computed."""

    def result(self) -> Any:
        """Wait for the value and return it; raises what its computation raised."""
        ...


@runtime_checkable
class State(Protocol):
    """The value of a `Workers.setup`."""

    def call(self, method: str, *args: Any) -> Pending:
        """Start a method of the value."""
        ...


@dataclass(frozen=True)
class Computed:
    """A value that is there."""

    value: Any

    def result(self) -> Any:
        """Return the value."""
        return self.value


@dataclass(frozen=True)
class LocalState:
    """A setup in this process: a call is done when it returns."""

    value: Any

    def call(self, method: str, *args: Any) -> Computed:
        """Call a method of the value."""
        return Computed(getattr(self.value, method)(*args))
