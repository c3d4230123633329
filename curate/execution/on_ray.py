"""Runs units on Ray: a local one of this run, or the cluster at RAY_ADDRESS.

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from curate.execution.executor import DEATHS, TRIES, Call, Outcome
from curate.execution.ray_arguments import share_arguments
from curate.execution.ray_pools import ActorPool, TaskPool
from curate.execution.ray_start import SECONDS_TO_ANSWER, remedy, require_answer, short_folder
from curate.execution.ray_worker import ON_CLUSTER, outcome_of
from curate.stage import EngineSettings, Workers
from shared.errors import LvdError
from shared.progress import stage_bar
from shared.storage.failures import kind_of


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
    _pools: dict[str, ActorPool] = field(default_factory=dict)

    def __enter__(self) -> RayExecutor:
        return self

    @property
    def is_started(self) -> bool:
        """Whether Ray runs for this run."""
        return self._ray is not None

    def __exit__(self, *_: object) -> None:
        if self._ray is not None and self.last is not None and os.environ.get("RAY_ADDRESS"):
            self.dismiss()
            asked = run_everywhere(self._ray, self.last)
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
        longest_first = sorted(
            share_arguments(ray, calls), key=lambda call: -(call.unit.weight or call.unit.images)
        )
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
                    outcome, died = outcome_of(ray, reference)
                    pool.returned(reference, died)
                    if isinstance(outcome, Exception):
                        tries[id(call)] += 1
                        if died and workers and self.died and os.environ.get("RAY_ADDRESS"):
                            run_everywhere(ray, self.died)
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

    def _pool(self, workers: Workers | None, gpus: int, calls: int) -> TaskPool | ActorPool:
        ray, threads = self._start(), self.settings.threads
        resources = ray.cluster_resources()
        room = max(1, int(resources.get("CPU", 1)) // threads)
        slots = max(1, min(room, self.settings.workers or room, calls))
        if workers is None:
            # Ray holds back what there is no processor for, but knows nothing of `workers`.
            most = slots if self.settings.workers else 2 * slots
            on_gpu = gpus and resources.get("GPU", 0) >= gpus
            asked = {"num_gpus": gpus, "num_cpus": 0} if on_gpu else {"num_cpus": threads}
            return TaskPool(ray, most, asked)
        apart = workers.gpus and int(resources.get("GPU", 0)) > 0
        name = f"{workers.setup.__qualname__}{workers.args}{apart}"
        for other in [known for known in self._pools if known != name]:
            self._pools.pop(other).stop()  # they hold the processors that these need
        if apart:
            holders = self._pools.setdefault(
                name, ActorPool(ray, workers, {"num_gpus": 1, "num_cpus": 0})
            )
            holders.grow(min(int(resources["GPU"]), self.settings.workers or 2**31))
            return TaskPool(ray, slots, {"num_cpus": threads}, holders)
        actors = self._pools.setdefault(name, ActorPool(ray, workers, {"num_cpus": threads}))
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


def _call(function: Callable[[], None]) -> None:
    function()


def run_everywhere(ray: Any, function: Callable[[], None]) -> list[Any]:
    """Have a function called on each node, where that is alive; return what to wait for."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(_call)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    places = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    return [task.options(scheduling_strategy=place).remote(function) for place in places]
