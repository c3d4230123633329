"""A Ray without processes: what `RayExecutor` calls of ray, on a clock that runs by events.

Units take drawn times and nothing is computed. What the driver takes between two calls of `wait`
is measured and passes on the simulated clock too, so that a slow driver leaves workers idle.
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any


class RayError(Exception):
    """A process or node died."""


class RayTaskError(RayError):
    """A unit raised; `cause` is what it raised."""


@dataclass(eq=False)
class Reference:
    """A value to come."""

    done: bool = False
    error: Exception | None = None
    on_lost: Callable[[], None] = lambda: None


@dataclass(eq=False)
class Worker:
    """A processor of a node; works at one thing at a time."""

    node: int
    queue: deque[tuple[Reference, float]] = field(default_factory=deque)
    current: Reference | None = None
    since: float = 0.0
    is_dead: bool = False
    handle: Any = None
    """The actor that lives there."""


@dataclass
class SimulatedRay:
    """`nodes` of `processors` each; what is called of it is what ray has under the same names."""

    nodes_count: int
    processors: int
    draw: Callable[[random.Random, Any], float]
    """The seconds of a call."""
    setup_seconds: float = 20.0
    dies: float = 0.0
    """The share of units that take their process with them."""
    lost_every: float = 0.0
    """Seconds between two losses of a node, which comes back after `away` seconds; 0: never."""
    away: float = 300.0
    wait_seconds: float = 0.0
    """What a call of the real `wait` takes for each reference that it is given."""
    clock: Callable[[], float] = time.perf_counter
    """What the driver's own work is measured by."""
    seed: int = 0

    def __post_init__(self) -> None:
        self.exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
        self.now = self.busy = self.driver = self.capacity = 0.0
        self.units = self.deaths = 0
        self._random = random.Random(self.seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()
        self._tasks: deque[tuple[Reference, float]] = deque()
        self._unplaced: deque[_Handle] = deque()
        self._workers = [Worker(n) for n in range(self.nodes_count) for _ in range(self.processors)]
        self._free = {id(worker): worker for worker in self._workers}
        self._there = len(self._workers)
        self._left = self.clock()
        if self.lost_every:
            self._at(self.lost_every, self._lose_node)

    # What `RayExecutor` calls.

    def cluster_resources(self) -> dict[str, float]:
        """Return the processors of all nodes."""
        return {"CPU": float(self.nodes_count * self.processors)}

    def nodes(self) -> list[dict[str, Any]]:
        """Return the nodes, with their processors."""
        return [{"Alive": True, "Resources": {"CPU": self.processors}}] * self.nodes_count

    def remote(self, **options: Any) -> Callable[[Any], Any]:
        """Return what makes tasks of functions, and actors of classes."""

        def made(thing: Any) -> Any:
            if isinstance(thing, type):
                return SimpleNamespace(remote=lambda *args: _Handle(self))
            return SimpleNamespace(remote=lambda call, *args: self._submit(call))

        return made

    def wait(
        self, references: Sequence[Reference], *, num_returns: int, timeout: float
    ) -> tuple[list[Reference], list[Reference]]:
        """Return what is done of `references`, once something is, or `timeout` seconds have passed."""
        took = self.clock() - self._left + self.wait_seconds * len(references)
        self.driver += took
        end = self.now + took
        self._advance(end)
        ready = [each for each in references if each.done]
        while not ready and self._events and self._events[0][0] <= end + timeout:
            self._advance(self._events[0][0])
            ready = [each for each in references if each.done]
        if not ready:
            self._advance(end + timeout)
        self._left = self.clock()
        return ready[:num_returns], []

    def get(self, reference: Reference) -> dict[str, Any]:
        """Return what a unit returns, or raise what killed it."""
        if reference.error is not None:
            raise reference.error
        return {"images": 1}

    def cancel(self, reference: Reference, force: bool) -> None:
        """Nothing is under way at the end of a simulation."""

    def kill(self, handle: _Handle) -> None:
        """Have an actor do no more."""
        if handle.worker is not None:
            handle.worker.is_dead = True

    # The clock and the workers.

    def _at(self, moment: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (moment, next(self._number), event))

    def _advance(self, moment: float) -> None:
        while self._events and self._events[0][0] <= moment:
            at, _, event = heapq.heappop(self._events)
            self.capacity += self._there * (at - self.now)
            self.now = at
            event()
        self.capacity += self._there * (moment - self.now)
        self.now = moment

    def _submit(self, call: Any) -> Reference:
        reference = Reference()
        self._tasks.append((reference, self.draw(self._random, call)))
        self._place()
        return reference

    def _place(self) -> None:
        while self._free and (self._tasks or self._unplaced):
            _, worker = self._free.popitem()
            if worker.is_dead:
                continue
            if self._unplaced:
                self._unplaced.popleft().lay_on(worker)
            else:
                worker.queue.append(self._tasks.popleft())
                self.begin(worker)

    def begin(self, worker: Worker) -> None:
        """Have a worker take the next of its queue."""
        if worker.current is not None or not worker.queue or worker.is_dead:
            return
        reference, seconds = worker.queue.popleft()
        worker.current, worker.since = reference, self.now
        dies = self._random.random() < self.dies
        if dies:
            seconds *= self._random.random()
        self._at(self.now + seconds, lambda: self._end(worker, reference, dies))

    def _end(self, worker: Worker, reference: Reference, dies: bool) -> None:
        if worker.current is not reference:
            return  # its node was lost
        self.busy += self.now - worker.since
        worker.current = None
        if dies:
            self._die(worker, [reference])
            self._stand_up(worker.node)
            return
        reference.done, self.units = True, self.units + 1
        if worker.queue:
            self.begin(worker)
        elif worker.handle is None:
            self._free[id(worker)] = worker
            self._place()

    def _die(self, worker: Worker, lost: list[Reference]) -> None:
        self.deaths += 1
        worker.is_dead = True
        for reference in [*lost, *(each for each, _ in worker.queue)]:
            reference.done, reference.error = True, RayError("died")
        worker.queue.clear()

    def _stand_up(self, node: int) -> None:
        worker = Worker(node)
        self._workers = [each for each in self._workers if not each.is_dead] + [worker]
        self._free[id(worker)] = worker
        self._place()

    def _lose_node(self) -> None:
        node = self._random.randrange(self.nodes_count)
        lost = [worker for worker in self._workers if worker.node == node]
        for worker in lost:
            self._free.pop(id(worker), None)
            under_way = [] if worker.current is None else [worker.current]
            self.busy += self.now - worker.since if under_way else 0.0
            worker.current = None
            self._die(worker, under_way)
        self._workers = [worker for worker in self._workers if worker.node != node]
        self._there -= len(lost)

        def back() -> None:
            self._there += len(lost)
            for _ in lost:
                self._stand_up(node)

        self._at(self.now + self.away, back)
        self._at(self.now + self.lost_every, self._lose_node)


class _Handle:
    """An actor: it waits for a processor, is set up there, and runs one call after another."""

    def __init__(self, ray: SimulatedRay) -> None:
        self.worker: Worker | None = None
        self._ray = ray
        self._there = Reference()
        self.is_there = SimpleNamespace(remote=lambda: self._there)
        self.set_up = SimpleNamespace(remote=lambda: self._call(ray.setup_seconds))
        self.run = SimpleNamespace(remote=lambda call: self._call(ray.draw(ray._random, call)))
        ray._unplaced.append(self)
        ray._place()

    def lay_on(self, worker: Worker) -> None:
        worker.handle = self
        self.worker, self._there.done = worker, True

    def _call(self, seconds: float) -> Reference:
        assert self.worker is not None
        reference = Reference()
        if self.worker.is_dead:
            reference.done, reference.error = True, RayError("died")
        else:
            self.worker.queue.append((reference, seconds))
            self._ray.begin(self.worker)
        return reference
