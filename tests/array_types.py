"""Checks the shapes and types of arrays wherever a signature of this project declares them.

pytest loads the packages with jaxtyping's import hook: see `--jaxtyping-packages` in pyproject.toml.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import reduce, wraps
from inspect import isfunction, isgeneratorfunction
from itertools import count
from typing import Any, TypeVar, get_args

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, AbstractDtype

Defined = TypeVar("Defined", bound=Callable)

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""Checks the arguments and the result of a function; an int is a float too."""


FIRST, EACH = 16, 64
"""Of a function's calls these many are checked, then one in so many."""


def check_arrays_only() -> None:
    """Let the import hook wrap what declares an array; a call of anything else costs nothing more.

    The rest is for the type checker: tests give it stand-ins of many kinds. A function that is
    called a thousand times is checked in some of the calls: a check is dearer than a small one.
    """
    wrap = jaxtyping.jaxtyped

    def jaxtyped(*, typechecker: Callable[[Defined], Defined]) -> Callable[[Defined], Defined]:
        def check(defined: Defined) -> Defined:
            # With `typechecker` arguments would be checked twice.
            return wrap(typechecker=None)(typechecker(defined))

        def of(defined: Defined) -> Defined:
            # A generator is checked once it runs, when the sizes are those of who asks it; what is
            # defined inside a function is made at each call, and would be held for ever.
            inside = "<locals>" in getattr(defined, "__qualname__", "")
            if inside or isgeneratorfunction(defined) or not _declares_array(defined):
                return defined
            if isinstance(defined, type):
                defined.__init__ = _sampled(check, defined.__init__)
                return defined
            if isfunction(defined):
                return _sampled(check, defined)
            return wrap(typechecker=typechecker)(defined)

        return of

    jaxtyping.jaxtyped = jaxtyped


def _sampled(check: Callable[[Defined], Defined], defined: Defined) -> Defined:
    calls = count()
    checked: Callable[..., Any] | None = None  # made for the first call: many have none

    @wraps(defined)
    def sampled(*arguments: Any, **named: Any) -> Any:
        nonlocal checked
        call = next(calls)
        if call >= FIRST and call % EACH:
            return defined(*arguments, **named)
        checked = checked or check(defined)
        return checked(*arguments, **named)

    return sampled


def _declares_array(defined: Callable) -> bool:
    """Tell whether an argument or the result of a function, or a field of a class, is an array."""
    function = defined.__init__ if isinstance(defined, type) else defined
    names = getattr(function, "__globals__", {})
    return any(_of_array(hint, names) for hint in getattr(function, "__annotations__", {}).values())


def _of_array(hint: Any, names: Mapping[str, Any]) -> bool:
    """Tell whether an annotation, or a name in its text, is one of jaxtyping's or made of one."""
    if isinstance(hint, str):
        return any(_of_array(_look_up(word, names), {}) for word in re.findall(r"[\w.]+", hint))
    if isinstance(hint, type) and issubclass(hint, AbstractArray | AbstractDtype):
        return True
    return any(_of_array(part, names) for part in get_args(hint))


def _look_up(dotted: str, names: Mapping[str, Any]) -> Any:
    first, *attributes = dotted.split(".")
    return reduce(lambda found, name: getattr(found, name, None), attributes, names.get(first))
