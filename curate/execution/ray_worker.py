"""What runs in Ray's workers: calls, and actors that hold a setup; and what comes back of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from curate.execution.executor import Call
from curate.execution.ray_arguments import with_arguments
from curate.state import LocalState
from shared.errors import LvdError
from shared.storage.failures import as_line, kind_of

ON_CLUSTER = "LVD_ON_CLUSTER"
"""Set in the environment of workers on a cluster: they say on which node it is that something fails."""


class Worker:
    """An actor with a setup."""

    def __init__(self, setup: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._setup, self._args = setup, args

    @cached_property
    def state(self) -> LocalState:
        """The setup, made when it is first asked for."""
        # Not in __init__: Ray tries a constructor that raises again and again, and hides the error.
        return LocalState(self._setup(*self._args))

    def is_there(self) -> None:
        """Answer."""

    def set_up(self) -> None:
        """Make the setup."""
        with naming_node("setup"):
            assert self.state is not None

    def run(self, call: Call) -> dict[str, Any]:
        """Return the result of a call with the setup."""
        return run_call(call, self.state)

    def call(self, method: str, *args: Any) -> Any:
        """Return what a method of the setup returns."""
        return self.state.call(method, *args).result()


@dataclass(frozen=True)
class RemoteState:
    """A `State` whose calls go to one of several actors, in turn."""

    actors: tuple[Any, ...]
    _turn: Any = field(default_factory=lambda: [os.getpid()])

    def call(self, method: str, *args: Any) -> RemoteValue:
        """Ask the next actor."""
        self._turn[0] += 1
        actor = self.actors[self._turn[0] % len(self.actors)]
        return RemoteValue(actor.call.remote(method, *args))


@dataclass(frozen=True)
class RemoteValue:
    """What an actor was asked for."""

    reference: Any

    def result(self) -> Any:
        """Wait for the value."""
        import ray

        return ray.get(self.reference)


def run_call(call: Call, *state: Any) -> dict[str, Any]:
    """Return the result of a call; what is wrong with a node of a cluster names it."""
    import ray

    with naming_node(call.unit.name):
        return with_arguments(ray, call)(*state)


@contextmanager
def naming_node(what: str) -> Iterator[None]:
    """Let what is wrong with a node of a cluster name it: settings, credentials, missing packages."""
    try:
        yield
    except Exception as error:
        if ON_CLUSTER not in os.environ:
            raise
        import ray

        node = f"on the node {ray.util.get_node_ip_address()}"  # type: ignore[no-untyped-call]
        if isinstance(error, LvdError):
            raise LvdError(f"{error} ({node})") from error
        if isinstance(error, ImportError):
            raise LvdError(
                f"{what} {node}: {error}: install there what this machine has, and run the same "
                "command again"
            ) from error
        if kind_of(error) == "fatal":
            raise as_line(error, f"{what} {node}") from error
        raise


def outcome_of(ray: Any, reference: Any) -> tuple[Any, bool]:
    """Return the value or the exception of a reference, and whether a process or node died."""
    try:
        return ray.get(reference), False
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        if not isinstance(cause, LvdError):
            cause.add_note(str(error))  # else nothing says where in the worker it was raised
        return cause, isinstance(cause, ray.exceptions.RayError)
    except Exception as error:
        return error, isinstance(error, ray.exceptions.RayError)
