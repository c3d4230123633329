"""Checks the shapes and types of arrays wherever a signature of this project declares them.

pytest loads the packages with it: see `--jaxtyping-packages` in pyproject.toml.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from beartype import beartype
from jaxtyping import AbstractArray, AbstractDtype

Checked = TypeVar("Checked", bound=Callable)


def checked(function: Checked) -> Checked:
    """Return the function with its arguments and result checked, if any of them is an array.

    All others are for the type checker: tests give them stand-ins of many kinds.
    """
    names = getattr(function, "__globals__", {})
    hints = getattr(function, "__annotations__", {}).values()
    return beartype(function) if any(_of_array(hint, names) for hint in hints) else function


def _of_array(hint: Any, names: Mapping[str, Any]) -> bool:
    """Tell whether an annotation, or a name in its text, is one of jaxtyping's."""
    parts = (
        [names.get(word) for word in re.findall(r"\w+", hint)] if isinstance(hint, str) else [hint]
    )
    return any(
        isinstance(part, type) and issubclass(part, AbstractArray | AbstractDtype) for part in parts
    )
