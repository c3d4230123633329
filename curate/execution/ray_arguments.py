"""Arguments that several units have in common: each is sent to a node once, and not with every unit.

A unit of an exchange is given the folders of all units of the step before, whose number grows with the
root of the images. Sent with each unit, they would cost as much as the images do, and the driver the
time to pickle them again and again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from curate.execution.executor import Call

LARGE = 4_096
"""Pickled bytes from which an argument is not sent with each unit."""


@dataclass(frozen=True)
class SharedArgument:
    """Stands in a unit's arguments for one that lies in Ray's object store."""

    reference: Any


def share_arguments(ray: Any, calls: Sequence[Call]) -> list[Call]:
    """Return the calls with what is large, and is given to more than one, put into Ray's object store."""
    given = [argument for call in calls for argument in call.unit.args]
    times = Counter(map(id, given))
    several = {id(argument): argument for argument in given if times[id(argument)] > 1}
    large = {
        key: SharedArgument(ray.put(argument))
        for key, argument in several.items()
        if len(ray.cloudpickle.dumps(argument)) >= LARGE
    }
    if not large:
        return list(calls)
    return [
        _with(call, tuple(large.get(id(argument), argument) for argument in call.unit.args))
        for call in calls
    ]


def with_arguments(ray: Any, call: Call) -> Call:
    """Return a call with the arguments that `share_arguments` has put away."""
    args = tuple(
        ray.get(argument.reference) if isinstance(argument, SharedArgument) else argument
        for argument in call.unit.args
    )
    return _with(call, args)


def _with(call: Call, args: tuple[Any, ...]) -> Call:
    return replace(call, unit=replace(call.unit, args=args))
