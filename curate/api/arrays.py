"""What every function of `curate.api` asks of the vectors that it is given."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def checked(name: str, vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Return vectors as float16 or float32 [n, d]; ValueError for anything else."""
    array = np.asarray(vectors)
    if array.ndim != 2 or array.dtype.kind != "f":
        raise ValueError(f"{name} is {array.dtype} {list(array.shape)}: give floats [n, d]")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds what is not finite")
    return array if array.dtype in (np.float16, np.float32) else array.astype(np.float32)
