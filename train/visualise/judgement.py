"""Says in a line for each model what its figures show that is good or bad."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from train.visualise.seen import EVEN, Seen

GATHERED = 0.6
"""Attention whose mask takes at most this share of what even attention's takes is gathered."""
ALIKE, UNLIKE = 0.3, 0.1
"""Mean cosines of neighbouring patches from and under which they are alike, or are not."""
PLACED = 0.5
"""Mean cosine of patches at one place of different pictures from which they tell the place."""


def judge(seen: Seen, mass: float) -> str:
    """Return what is good and what is bad in what a model sees, with the figures it is read from.

    Attention: the median share of the patches that hold `mass` of a head's map. Patches, as cosines
    after the mean of all is subtracted: those of neighbours, and those at one place of different
    pictures. These are rules of thumb, and no score.
    """
    told = [*_of_attention(seen, mass), *_of_patches(seen)]
    good, bad = ([text for fine, text in told if fine is kind] for kind in (True, False))
    rest = [text for fine, text in told if fine is None]
    kinds = (("Good", good), ("Bad", bad), ("Neither good nor bad", rest))
    words = [f"{kind}: {'; '.join(texts)}." for kind, texts in kinds if texts]
    return f"{seen.model.name}. {' '.join(words) or 'There is nothing to judge by.'}"


def _of_attention(seen: Seen, mass: float) -> Iterator[tuple[bool | None, str]]:
    if seen.attention is None:
        return
    share = float(np.median(seen.most_attended(mass).mean(axis=(2, 3))))
    where = f"{mass:.0%} of a head's attention lies in {share:.0%} of the patches"
    if share <= GATHERED * mass:
        yield True, f"it looks at something ({where})"
    else:
        yield (False if share > EVEN * mass else None), f"it looks almost everywhere ({where})"


def _of_patches(seen: Seen) -> Iterator[tuple[bool | None, str]]:
    if seen.patches is None or min(seen.patches.shape[1:3]) < 2:
        return
    near, placed = patch_cosines(seen.patches)
    words = f"neighbouring patches have a mean cosine of {near:.2f}"
    if placed is not None and placed >= PLACED:
        yield (
            False,
            f"patches tell where they are, not what they show (a mean cosine of {placed:.2f} at one "
            "place of different pictures)",
        )
    elif near >= ALIKE:
        yield True, f"like patches lie together ({words})"
    else:
        yield (False if near < UNLIKE else None), f"patches hardly hang together ({words})"


def patch_cosines(patches: Float[np.ndarray, "n rows cols d"]) -> tuple[float, float | None]:
    """Return mean cosines of neighbouring patches, and of those at one place of two pictures.

    The mean of all patches is subtracted first. None for the second of one picture alone.
    """
    own = patches - patches.mean(axis=(0, 1, 2))
    own = own / np.maximum(np.linalg.norm(own, axis=3, keepdims=True), np.finfo(np.float32).tiny)
    right = (own[:, :, 1:] * own[:, :, :-1]).sum(3)
    below = (own[:, 1:] * own[:, :-1]).sum(3)
    near = float(np.concatenate([right.ravel(), below.ravel()]).mean())
    count = len(own)
    if count < 2:
        return near, None
    # |sum of n unit vectors|^2 = n + the cosines of all n (n - 1) ordered pairs.
    squares = (own.sum(axis=0) ** 2).sum(-1)
    return near, float(((squares - count) / (count * (count - 1))).mean())
