"""A function of the user's own that sees each picture on its way into the shards, as to blur faces."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module

import numpy as np
from PIL import Image

from shared.errors import LvdError, nearest
from shared.pictures.images import decode

Hook = Callable[[Image.Image], Image.Image]


@lru_cache(maxsize=1)
def load_hook(named: str) -> Hook:
    """Return the function that `package.module:function` names.

    LvdError, in one line, where there is none.
    """
    place, _, name = named.partition(":")
    try:
        module = import_module(place)
    except Exception as error:  # whatever a module of the user's does when it is imported
        reason = " ".join(str(error).split())[:150]
        raise LvdError(
            f"export.hook: module {place} cannot be imported ({type(error).__name__}: {reason}): "
            "install it, or correct the name, which is package.module:function"
        ) from None
    function = getattr(module, name, None)
    if not callable(function):
        names = [each for each in vars(module) if callable(getattr(module, each))]
        raise LvdError(
            f"export.hook: module {place} has no function {name!r}{nearest(name, names)}"
        )
    hook: Hook = function
    return hook


def edit(data: bytes, named: str, key: str, *, max_pixels: int) -> bytes:
    """Return an image file's bytes as they are, or a PNG of what the hook makes of its picture.

    The hook gets an upright RGB picture, in threads, and returns it where it changes nothing. LvdError, with the image's key, where it raises or returns anything else than a picture.
    """
    hook, picture = load_hook(named), decode(data, max_pixels=max_pixels)
    before = np.array(picture)  # a copy: the hook may draw on what it is given
    try:
        edited = hook(picture)
    except LvdError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:150]
        raise LvdError(
            f"export.hook: {named} failed on {key} ({type(error).__name__}: {reason}): mend it, and "
            "run again"
        ) from error
    if not isinstance(edited, Image.Image):
        raise LvdError(
            f"export.hook: {named} returned {type(edited).__name__} for {key}, no picture"
        )
    edited = edited.convert("RGB")
    if np.array_equal(np.asarray(edited), before):
        return data
    stream = io.BytesIO()
    edited.save(stream, "PNG", compress_level=1)
    return stream.getvalue()
