"""Labelled pictures that are drawn, for a quick run that needs no data: blobs of a class's colours."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

SIDE = 48


def drawn_classes(classes: int, pictures: int, seed: int) -> dict[int, list[bytes]]:
    """Return JPEGs of so many classes: each has two colours and a number of blobs of its own."""
    rng = np.random.default_rng(seed)
    looks = rng.integers(0, 256, (classes, 2, 3))
    blobs = rng.integers(1, 6, classes)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    made: dict[int, list[bytes]] = {}
    for label in range(classes):
        made[label] = []
        for _ in range(pictures):
            mask = np.zeros((SIDE, SIDE))
            for _ in range(blobs[label]):
                top, left = rng.integers(6, SIDE - 6, 2)
                mask += (rows - top) ** 2 + (columns - left) ** 2 < rng.integers(9, 100)
            ground, ink = looks[label] + rng.normal(0, 20, (2, 3))
            picture = np.where(mask[..., None] > 0, ink, ground) + rng.normal(
                0, 12, (SIDE, SIDE, 3)
            )
            buffer = io.BytesIO()
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=92)
            made[label].append(buffer.getvalue())
    return made
