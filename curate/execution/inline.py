"""Runs units one after another in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from curate.execution.executor import TRIES, Call, Outcome
from curate.stage import Workers
from curate.state import LocalState
from shared.storage.failures import kind_of


class InlineExecutor:
    """An executor without processes of its own: for small data, tests and debuggers."""

    def __init__(self) -> None:
        self._setups: dict[str, LocalState] = {}

    def __enter__(self) -> InlineExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.dismiss()

    def run(
        self,
        calls: Sequence[Call],
        workers: Workers | None,
        *,
        gpus: int,
        waiting: Callable[[str], None],
    ) -> Iterator[Outcome]:
        """Yield each call with its result, or with the exception that its last try raised."""
        state = () if workers is None else (self._state(workers),)
        for call in calls:
            yield call, _tried(call, state)
            waiting("")

    def dismiss(self) -> None:
        """Forget all setups."""
        self._setups.clear()

    def _state(self, workers: Workers) -> LocalState:
        name = f"{workers.setup.__qualname__}{workers.args}"
        if name not in self._setups:
            self._setups[name] = LocalState(workers.setup(*workers.args))
        return self._setups[name]


def _tried(call: Call, state: tuple[LocalState, ...]) -> dict[str, Any] | Exception:
    error: Exception | None = None
    for _ in range(TRIES):
        try:
            return call(*state)
        except Exception as raised:
            error = raised
            if kind_of(raised) == "fatal":
                break
    assert error is not None
    return error
