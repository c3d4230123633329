"""Pictures that many tests look at again are compared once in a process: it is a third of their runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import wraps

import numpy as np
from PIL import Image


def remember_looks() -> None:
    """Keep what the comparisons of pictures return, which depends on nothing but their arguments."""
    from curate.calibration import same_picture
    from curate.pixels import same

    same.similarity = _remembered(same.similarity)
    same_picture.alignment = _remembered(same_picture.alignment)


def _remembered(compare: Callable[..., float]) -> Callable[..., float]:
    known: dict[tuple[object, ...], float] = {}

    @wraps(compare)
    def compared(*arguments: object, **named: object) -> float:
        key = (*map(_digest, arguments), *sorted(named.items()))
        if key not in known:
            known[key] = compare(*arguments, **named)
        return known[key]

    return compared


def _digest(argument: object) -> object:
    """Return what tells a picture from another; anything else as it is."""
    if isinstance(argument, Image.Image):
        return argument.mode, argument.size, hashlib.sha256(argument.tobytes()).digest()
    if isinstance(argument, np.ndarray):
        return argument.dtype.str, argument.shape, argument.tobytes()
    return argument
