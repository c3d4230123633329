"""Runs units on Ray: a local one of this run, or the cluster at RAY_ADDRESS. Alone imports ray.

Ray's own retries are off: a unit whose process or node dies is handed out again here, to whoever
is there then. Workers with a setup are actors. Where they want GPUs and the cluster has some, the
setup lives in actors of one GPU each, and units run as tasks on processors, which keep a bounded
number of calls to it under way.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from curate.execution.executor import DEATHS, TRIES, Call, Outcome
from curate.execution.ray_start import SECONDS_TO_ANSWER, remedy, require_answer, short_folder
from curate.stage import EngineSettings, Workers
from curate.state import LocalState, State
from shared.errors import LvdError
from shared.progress import stage_bar
from shared.storage.failures import as_line, kind_of

ON_CLUSTER = "LVD_ON_CLUSTER"
"""Set in the environment of workers on a cluster: they say on which node it is that something fails."""


@dataclass
class RayExecutor:
    """An executor on Ray, which is started when there is something to run."""

    settings: EngineSettings
    started: Callable[[float], None] = lambda seconds: None
    """Told what the start of Ray took."""
    last: Callable[[], None] | None = None
    """Called on every node of a cluster at the end."""
    died: Callable[[], None] | None = None
    """Called on every node of a cluster when a worker with a setup has died with its unit."""
    _ray: Any = None
    _joined: bool = False
    _pools: dict[str, _Actors] = field(default_factory=dict)

    def __enter__(self) -> RayExecutor:
        return self

    @property
    def is_started(self) -> bool:
        """Whether Ray runs for this run."""
        return self._ray is not None

    def __exit__(self, *_: object) -> None:
        if self._ray is not None and self.last is not None and os.environ.get("RAY_ADDRESS"):
            self.dismiss()
            asked = _run_everywhere(self._ray, self.last)
            self._ray.wait(asked, num_returns=len(asked), timeout=SECONDS_TO_ANSWER)
        if self._ray is not None:
            self.dismiss()  # Ray waits a second for those that work still
        if self._ray is not None and not self._joined:
            self._ray.shutdown()

    def run(
        self,
        calls: Sequence[Call],
        workers: Workers | None,
        *,
        gpus: int,
        waiting: Callable[[str], None],
    ) -> Iterator[Outcome]:
        """Yield each call with its result, or with the exception that its last try raised."""
        ray = self._start()
        if workers is None:
            self.dismiss()
        pool = self._pool(workers, gpus, len(calls))
        most = DEATHS if workers else TRIES
        # The longest first, else the last one of them is waited for alone.
        longest_first = sorted(calls, key=lambda call: -(call.unit.weight or call.unit.images))
        queue, tries = deque(longest_first), Counter[int]()
        under_way: dict[Any, Call] = {}
        idle_since = time.monotonic()
        try:
            while queue or under_way:
                while queue and (reference := pool.hand_out(queue[0])) is not None:
                    under_way[reference] = queue.popleft()
                awaited = [*under_way, *pool.awaited()]
                ready, _ = ray.wait(awaited, num_returns=1, timeout=1) if awaited else ([], [])
                if not ready:
                    missing = pool.missing()
                    waiting(missing)
                    if not missing:
                        idle_since = time.monotonic()
                    elif time.monotonic() - idle_since > self.settings.patience:
                        raise LvdError(
                            f"{missing} for {self.settings.patience:g} s: free some, raise "
                            "engine.patience, or run the same command again later"
                        )
                for reference in ready:
                    if reference not in under_way:
                        pool.joined(reference)
                        continue
                    idle_since = time.monotonic()
                    call = under_way.pop(reference)
                    outcome, died = _outcome(ray, reference)
                    pool.returned(reference, died)
                    if isinstance(outcome, Exception):
                        tries[id(call)] += 1
                        if died and workers and self.died and os.environ.get("RAY_ADDRESS"):
                            _run_everywhere(ray, self.died)
                        again = most if died else TRIES
                        if (died or kind_of(outcome) != "fatal") and tries[id(call)] < again:
                            queue.appendleft(call)
                            continue
                    yield call, outcome
        finally:
            pool.cancel(list(under_way))

    def dismiss(self) -> None:
        """Stop the actors."""
        for pool in self._pools.values():
            pool.stop()
        self._pools.clear()

    def _pool(self, workers: Workers | None, gpus: int, calls: int) -> _Tasks | _Actors:
        ray, threads = self._start(), self.settings.threads
        resources = ray.cluster_resources()
        room = max(1, int(resources.get("CPU", 1)) // threads)
        slots = max(1, min(room, self.settings.workers or room, calls))
        if workers is None:
            # Ray holds back what there is no processor for, but knows nothing of `workers`.
            most = slots if self.settings.workers else 2 * slots
            on_gpu = gpus and resources.get("GPU", 0) >= gpus
            asked = {"num_gpus": gpus, "num_cpus": 0} if on_gpu else {"num_cpus": threads}
            return _Tasks(ray, most, asked)
        apart = workers.gpus and int(resources.get("GPU", 0)) > 0
        name = f"{workers.setup.__qualname__}{workers.args}{apart}"
        for other in [known for known in self._pools if known != name]:
            self._pools.pop(other).stop()  # they hold the processors that these need
        if apart:
            holders = self._pools.setdefault(
                name, _Actors(ray, workers, {"num_gpus": 1, "num_cpus": 0})
            )
            holders.grow(min(int(resources["GPU"]), self.settings.workers or 2**31))
            return _Tasks(ray, slots, {"num_cpus": threads}, holders)
        actors = self._pools.setdefault(name, _Actors(ray, workers, {"num_cpus": threads}))
        actors.grow(slots)
        return actors

    def _start(self) -> Any:
        """Import ray and join the cluster at RAY_ADDRESS, or start a quiet local one.

        A session that this process has already is joined, and left running.
        """
        if self._ray is not None:
            return self._ray
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        os.environ.setdefault("RAY_get_check_signal_interval_milliseconds", "100")  # for Ctrl-C
        address = os.environ.get("RAY_ADDRESS")
        environment = {
            "OMP_WAIT_POLICY": "PASSIVE",
            "OMP_NUM_THREADS": str(self.settings.threads),
        }
        began = time.monotonic()
        quiet: dict[str, Any] = {
            "log_to_driver": False,
            "logging_level": logging.ERROR,
            "configure_logging": True,
        }
        if address:
            require_answer(address)
        else:
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")
            os.environ.update(environment)
        with stage_bar("start Ray", None):
            import ray

            self._joined = ray.is_initialized()
            try:
                if address and not self._joined:
                    there = {"env_vars": {**environment, ON_CLUSTER: "yes"}}
                    ray.init(address=address, runtime_env=there, **quiet)
                elif not self._joined:
                    ray.init(
                        address="local",
                        num_cpus=self._processors(),
                        include_dashboard=False,
                        object_store_memory=128 * 2**20,
                        _temp_dir=short_folder(),
                        **quiet,
                    )
            except Exception as error:  # bare ones too, when the machine is too busy
                said = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
                raise LvdError(f"Ray did not start ({said}): {remedy(address)}") from error
            self._ray = ray
        self.started(time.monotonic() - began)
        return ray

    def _processors(self) -> int:
        wanted = (self.settings.workers or 0) * self.settings.threads
        return max(wanted, len(os.sched_getaffinity(0)), self.settings.threads)


class _Tasks:
    """Calls as Ray tasks, at most `most` at a time; with `holders`, they call setups over there."""

    def __init__(
        self, ray: Any, most: int, resources: Mapping[str, float], holders: _Actors | None = None
    ) -> None:
        self._ray, self._most, self._holders = ray, most, holders
        self._task = ray.remote(max_retries=0, **resources)(_run)
        self._resources = resources
        self._under_way: set[Any] = set()

    def hand_out(self, call: Call) -> Any:
        if len(self._under_way) >= self._most:
            return None
        state: tuple[State, ...] = ()
        if self._holders is not None:
            actors = self._holders.ready
            if not actors:
                return None
            state = (_RemoteState(tuple(actors)),)
        reference = self._task.remote(call, *state)
        self._under_way.add(reference)
        return reference

    def returned(self, reference: Any, died: bool) -> None:
        self._under_way.discard(reference)
        if self._holders is not None and died:
            self._holders.replace_dead()

    def awaited(self) -> list[Any]:
        return [] if self._holders is None else self._holders.awaited()

    def joined(self, reference: Any) -> None:
        assert self._holders is not None  # it gave out the reference
        self._holders.joined(reference)

    def missing(self) -> str:
        """Return what is waited for that the cluster may never give, or ""."""
        if self._holders is not None and not self._holders.ready:
            return self._holders.missing()
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        for name, count in self._resources.items():
            kind = {"num_cpus": "CPU", "num_gpus": "GPU"}[name]
            if not any(node.get(kind, 0) >= count for node in nodes):
                return f"no node of the Ray cluster has had the {kind}s of a unit ({count})"
        return ""

    def cancel(self, references: list[Any]) -> None:
        for reference in references:
            self._ray.cancel(reference, force=True)


class _Actors:
    """Actors that hold a setup; calls go to those that are ready, two each."""

    EACH = 2

    def __init__(self, ray: Any, workers: Workers, resources: dict[str, float]) -> None:
        self._ray, self._workers = ray, workers
        self._actor = ray.remote(max_restarts=0, **resources)(_Worker)
        self._kind = "GPU" if "num_gpus" in resources else "CPU"
        self._wanted = 0
        self._lost = 0
        """Actors that died before they were set up, since the last one that was."""
        self._unplaced: dict[Any, Any] = {}
        self._setting_up: dict[Any, Any] = {}
        self._load: dict[Any, int] = {}
        self._under_way: dict[Any, Any] = {}

    @property
    def ready(self) -> list[Any]:
        return list(self._load)

    def grow(self, count: int) -> None:
        self._wanted = max(self._wanted, count)
        there = len(self._load) + len(self._setting_up) + len(self._unplaced)
        for _ in range(self._wanted - there):
            actor = self._actor.remote(self._workers.setup, self._workers.args)
            self._unplaced[actor.is_there.remote()] = actor

    def hand_out(self, call: Call) -> Any:
        free = [actor for actor, load in self._load.items() if load < self.EACH]
        if not free:
            return None
        actor = min(free, key=self._load.__getitem__)
        self._load[actor] += 1
        reference = actor.run.remote(call)
        self._under_way[reference] = actor
        return reference

    def returned(self, reference: Any, died: bool) -> None:
        actor = self._under_way.pop(reference)
        if died and self._load.pop(actor, None) is not None:
            self.grow(self._wanted)
        elif actor in self._load:
            self._load[actor] -= 1

    def awaited(self) -> list[Any]:
        return [*self._unplaced, *self._setting_up]

    def joined(self, reference: Any) -> None:
        """Have an actor set up that has its place, take one in that is; raise what setups raise."""
        placed = self._unplaced.pop(reference, None)
        actor = placed or self._setting_up.pop(reference)
        outcome, died = _outcome(self._ray, reference)
        if isinstance(outcome, Exception):
            self._lost += 1
            if not died or self._lost > TRIES * self._wanted:
                raise outcome
            self.grow(self._wanted)
        elif placed:
            self._setting_up[actor.set_up.remote()] = actor
        else:
            self._load[actor], self._lost = 0, 0

    def replace_dead(self) -> None:
        """Let go of actors that no longer answer, and start others."""
        asked = {actor.is_there.remote(): actor for actor in self._load}
        answers, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=SECONDS_TO_ANSWER)
        for answer in answers:
            if isinstance(_outcome(self._ray, answer)[0], Exception):
                del self._load[asked[answer]]
        self.grow(self._wanted)

    def missing(self) -> str:
        """Return what is waited for while no actor has its place, or ""."""
        if self._load or self._setting_up:
            return ""
        return f"the Ray cluster has had no {self._kind} free for this run"

    def cancel(self, references: list[Any]) -> None:
        pass  # they end with their actors

    def stop(self) -> None:
        for actor in [*self._load, *self._setting_up.values(), *self._unplaced.values()]:
            self._ray.kill(actor)


class _Worker:
    """An actor with a setup."""

    def __init__(self, setup: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._setup, self._args = setup, args

    @cached_property
    def state(self) -> LocalState:
        # Not in __init__: Ray tries a constructor that raises again and again, and hides the error.
        return LocalState(self._setup(*self._args))

    def is_there(self) -> None:
        """Answer."""

    def set_up(self) -> None:
        with _naming_node("setup"):
            assert self.state is not None

    def run(self, call: Call) -> dict[str, Any]:
        return _run(call, self.state)

    def call(self, method: str, *args: Any) -> Any:
        return self.state.call(method, *args).result()


@dataclass(frozen=True)
class _RemoteState:
    """A `State` whose calls go to one of several actors, in turn."""

    actors: tuple[Any, ...]
    _turn: Any = field(default_factory=lambda: [os.getpid()])

    def call(self, method: str, *args: Any) -> _RemoteValue:
        self._turn[0] += 1
        actor = self.actors[self._turn[0] % len(self.actors)]
        return _RemoteValue(actor.call.remote(method, *args))


@dataclass(frozen=True)
class _RemoteValue:
    reference: Any

    def result(self) -> Any:
        import ray

        return ray.get(self.reference)


def _run(call: Call, *state: Any) -> dict[str, Any]:
    with _naming_node(call.unit.name):
        return call(*state)


@contextmanager
def _naming_node(what: str) -> Iterator[None]:
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


def _call(function: Callable[[], None]) -> None:
    function()


def _run_everywhere(ray: Any, function: Callable[[], None]) -> list[Any]:
    """Have a function called on each node, where that is alive; return what to wait for."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(_call)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    places = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    return [task.options(scheduling_strategy=place).remote(function) for place in places]


def _outcome(ray: Any, reference: Any) -> tuple[Any, bool]:
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
