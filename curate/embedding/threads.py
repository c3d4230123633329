"""Threads whose calls may hang: one that does is left behind, and another takes over its call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

_LEFT_BEHIND = "left behind"


class LeftBehindError(BaseException):
    """Ends the call of a thread that was left behind."""


class Threads:
    """Runs calls in the order of their submission in `count` threads, which stop no exit.

    `leave_behind` returns the threads whose calls are to be made again by others, which it marked by
    `mark_left_behind`. It is asked whenever a result takes `seconds` to come.
    """

    def __init__(
        self, count: int, leave_behind: Callable[[], Collection[threading.Thread]], seconds: float
    ) -> None:
        self._leave_behind, self._seconds = leave_behind, seconds
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._at_work: dict[threading.Thread, tuple[Future[Any], Callable[[], Any]]] = {}
        self._threads: set[threading.Thread] = set()
        for _ in range(count):
            self._start(None)

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the calls at work; those that no thread has begun are not made."""
        with suppress(Empty):
            while True:
                self._calls.get_nowait()
        for _each in self._threads:
            self._calls.put(None)
        while thread := next(iter(self._threads), None):
            thread.join(self._seconds)
            if thread.is_alive():
                self._replace_left_behind()
            else:
                self._threads.remove(thread)

    def submit(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """Have a call made, perhaps more than once."""
        future: Future[T] = Future()
        self._calls.put((future, partial(function, *args)))
        return future

    def result(self, future: Future[T]) -> T:
        """Return what a submitted call returns, or raise what it raises."""
        while True:
            try:
                return future.result(self._seconds)
            except TimeoutError:
                if future.done():  # the error is the call's own
                    return future.result()
            self._replace_left_behind()

    def _replace_left_behind(self) -> None:
        for thread in self._leave_behind():
            self._threads.remove(thread)
            self._start(self._at_work.pop(thread))

    def _start(self, call: tuple[Future[Any], Callable[[], Any]] | None) -> None:
        thread = threading.Thread(target=self._serve, args=(call,), daemon=True, name="reader")
        self._threads.add(thread)
        thread.start()

    def _serve(self, call: tuple[Future[Any], Callable[[], Any]] | None) -> None:
        this = threading.current_thread()
        call = call or self._calls.get()
        while call is not None:
            self._at_work[this] = call
            future, function = call
            result = error = None
            try:
                result = function()
            except BaseException as caught:  # the caller's to handle
                error = caught
            if is_left_behind(this):
                return
            del self._at_work[this]
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
            del call, future, function, result, error  # the picture is the caller's
            call = self._calls.get()


def mark_left_behind(thread: threading.Thread) -> None:
    """Let nobody wait for a thread."""
    thread.name = _LEFT_BEHIND


def is_left_behind(thread: threading.Thread) -> bool:
    """Tell whether a thread is left behind."""
    return thread.name == _LEFT_BEHIND


def count_left_behind() -> int:
    """Return how many threads of this process are left behind, and have not ended."""
    return sum(map(is_left_behind, threading.enumerate()))
