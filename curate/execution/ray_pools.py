"""Where Ray runs the calls of a stage: as tasks, or in actors that hold a setup."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curate.execution.executor import TRIES, Call
from curate.execution.ray_start import SECONDS_TO_ANSWER
from curate.execution.ray_worker import RemoteState, Worker, outcome_of, run_call
from curate.stage import Workers
from curate.state import State


class TaskPool:
    """Calls as Ray tasks, at most `most` at a time; with `holders`, they call setups over there."""

    def __init__(
        self, ray: Any, most: int, resources: Mapping[str, float], holders: ActorPool | None = None
    ) -> None:
        self._ray, self._most, self._holders = ray, most, holders
        self._task = ray.remote(max_retries=0, **resources)(run_call)
        self._resources = resources
        self._under_way: set[Any] = set()

    def hand_out(self, call: Call) -> Any:
        """Start a call; return its reference, or None where there is no room for it now."""
        if len(self._under_way) >= self._most:
            return None
        state: tuple[State, ...] = ()
        if self._holders is not None:
            actors = self._holders.ready
            if not actors:
                return None
            state = (RemoteState(tuple(actors)),)
        reference = self._task.remote(call, *state)
        self._under_way.add(reference)
        return reference

    def returned(self, reference: Any, died: bool) -> None:
        """Take note that a call came back, or that its process died."""
        self._under_way.discard(reference)
        if self._holders is not None and died:
            self._holders.replace_dead()

    def awaited(self) -> list[Any]:
        """Return the references that are waited for beside those of calls."""
        return [] if self._holders is None else self._holders.awaited()

    def joined(self, reference: Any) -> None:
        """Take note of one of `awaited`."""
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
        """End calls that nobody waits for any more."""
        for reference in references:
            self._ray.cancel(reference, force=True)


class ActorPool:
    """Actors that hold a setup; calls go to those that are ready, two each."""

    EACH = 2

    def __init__(self, ray: Any, workers: Workers, resources: dict[str, float]) -> None:
        self._ray, self._workers = ray, workers
        self._actor = ray.remote(max_restarts=0, **resources)(Worker)
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
        """The actors that are set up."""
        return list(self._load)

    def grow(self, count: int) -> None:
        """Start actors until there are so many, or as many as were wanted before."""
        self._wanted = max(self._wanted, count)
        there = len(self._load) + len(self._setting_up) + len(self._unplaced)
        for _ in range(self._wanted - there):
            actor = self._actor.remote(self._workers.setup, self._workers.args)
            self._unplaced[actor.is_there.remote()] = actor

    def hand_out(self, call: Call) -> Any:
        """Give a call to the actor with the least to do; return its reference, or None."""
        free = [actor for actor, load in self._load.items() if load < self.EACH]
        if not free:
            return None
        actor = min(free, key=self._load.__getitem__)
        self._load[actor] += 1
        reference = actor.run.remote(call)
        self._under_way[reference] = actor
        return reference

    def returned(self, reference: Any, died: bool) -> None:
        """Take note that a call came back; replace its actor, if that died."""
        actor = self._under_way.pop(reference)
        if died and self._load.pop(actor, None) is not None:
            self.grow(self._wanted)
        elif actor in self._load:
            self._load[actor] -= 1

    def awaited(self) -> list[Any]:
        """Return the references of actors that are placed or set up."""
        return [*self._unplaced, *self._setting_up]

    def joined(self, reference: Any) -> None:
        """Have an actor set up that has its place, take one in that is; raise what setups raise."""
        placed = self._unplaced.pop(reference, None)
        actor = placed or self._setting_up.pop(reference)
        outcome, died = outcome_of(self._ray, reference)
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
            if isinstance(outcome_of(self._ray, answer)[0], Exception):
                del self._load[asked[answer]]
        self.grow(self._wanted)

    def missing(self) -> str:
        """Return what is waited for while no actor has its place, or ""."""
        if self._load or self._setting_up:
            return ""
        return f"the Ray cluster has had no {self._kind} free for this run"

    def cancel(self, references: list[Any]) -> None:
        """Do nothing: calls end with their actors."""

    def stop(self) -> None:
        """End all actors."""
        for actor in [*self._load, *self._setting_up.values(), *self._unplaced.values()]:
            self._ray.kill(actor)
