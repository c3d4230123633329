"""Turns a sample's bytes into the picture that views are cropped from."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from shared.pictures.images import READERS, decode, sniff

_MOST_PIXELS = 178_956_970
_EXIF_ORIENTATION = 0x0112


def picture(data: bytes, reduce_to: int | None = None) -> UInt8[Tensor, "3 height width"]:
    """Return the image upright, in RGB; its memory lies as height, width, 3.

    With `reduce_to`, a JPEG may come out smaller, its shorter side still at least `reduce_to`.
    Raises shared.pictures.images.ImageError for whatever cannot be decoded whole.
    """
    plain = _plain_jpeg(data, reduce_to)
    if plain is not None:
        return plain
    return torch.from_numpy(np.array(decode(data, reduce_to=reduce_to))).permute(2, 0, 1)


def _plain_jpeg(data: bytes, reduce_to: int | None) -> UInt8[Tensor, "3 height width"] | None:
    """Return an upright RGB or grey JPEG in half of the time that Pillow takes.

    None for all that is not that, or not whole: `shared.pictures.images.decode` then decides. None too where
    Pillow is the faster one, because it decodes to half of the size or less.
    """
    if sniff(data[:16]) != "jpeg":
        return None
    try:
        header = READERS["jpeg"](io.BytesIO(data))
        width, height = header.size
        turned = header.getexif().get(_EXIF_ORIENTATION, 1) != 1
    except Exception:  # whatever is wrong with it, `decode` says it
        return None
    halved = reduce_to is not None and min(width, height) >= 2 * reduce_to
    if turned or halved or header.mode not in ("RGB", "L") or width * height > _MOST_PIXELS:
        return None
    try:
        with _silent_libjpeg():
            stored = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            return decode_jpeg(stored, mode=ImageReadMode.RGB)
    except RuntimeError:
        return None


@contextmanager
def _silent_libjpeg() -> Iterator[None]:
    """Keep off the terminal what libjpeg writes there of damage that it passes over."""
    terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nowhere)
