"""Looked pairs of photographs alone, as `look_at_nearest` returns them."""

import numpy as np

from curate.calibration.near_pairs import Looked, LookedPairs


def alone(pairs: LookedPairs) -> Looked:
    """Return what was looked at where no image is drawn."""
    return Looked(pairs, none_of(pairs.images), 0)


def none_of(images: int) -> LookedPairs:
    """Return no pair of a sample of so many images."""
    numbers, cosines = np.empty(0, np.int64), np.empty(0, np.float32)
    no, weight = np.empty(0, bool), np.empty(0)
    return LookedPairs(images, numbers, numbers, cosines, weight, no, no, 1.0, 0)
