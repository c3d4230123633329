"""How many rows of logits are looked at together: what is kept, a tile of them, a block of a tile."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from train.model.logits import Logits

CPU_KEPT, DEVICE_KEPT = 2**26, 2**30
"""Elements of the teacher's logits of a step up to which all are kept: 2 GiB of bfloat16 on an
accelerator. More are computed anew, tile by tile, each time they are read."""

CPU_TILE, DEVICE_TILE = 2**26, 2**28
"""Elements of one matrix product: enough rows for its full speed with 131,072 prototypes. On a CPU
as many as are kept: each tile more takes a float32 sum of gradients as large as the prototypes."""

CPU_BLOCK, DEVICE_BLOCK = 2**19, 2**25
"""Elements of a float32 buffer, for each thread of a CPU: 2 MiB, near enough to stay in its caches.
On an accelerator few kernels, and no buffer above 128 MiB."""

CLOSE = 64.0
"""How far apart exponents may lie so that what is made of their exponentials, divided by a sum over
2^18 prototypes or as many rows, still is a normal float32."""


def working_dtype(logits: Tensor) -> torch.dtype:
    """Return the precision of the arithmetic on logits: float32, or float64 for float64 logits."""
    return torch.promote_types(logits.dtype, torch.float32)


def are_kept(rows: int, prototypes: int, device: torch.device) -> bool:
    """Return whether so many logits of the teacher are kept from their first use to their last."""
    return rows * prototypes <= (CPU_KEPT if device.type == "cpu" else DEVICE_KEPT)


def are_close(logits: Logits, temperature: float) -> bool:
    """Return whether logits / temperature are known to lie so close to each other that neither an
    exponential nor a softmax of them overflows or is 0: cosines do, from a temperature of 1/32 on.
    """
    return logits.bound is not None and 2 * logits.bound <= CLOSE * temperature


def tile_rows(prototypes: int, device: torch.device) -> int:
    """Return how many rows of logits make a tile; at least one."""
    return max(1, (CPU_TILE if device.type == "cpu" else DEVICE_TILE) // prototypes)


def block_rows(prototypes: int, device: torch.device) -> int:
    """Return how many rows of a tile make a block; at least one."""
    on_cpu = device.type == "cpu"
    return max(1, (CPU_BLOCK * torch.get_num_threads() if on_cpu else DEVICE_BLOCK) // prototypes)


def step_bytes(
    prototypes: int,
    width: int,
    *,
    taught: int,
    learned: int,
    views: int,
    itemsize: int,
    device: torch.device,
) -> tuple[int, int]:
    """Return the bytes that one head's logits take in a step, those that last and those that pass.

    `taught` and `learned` are the rows of the teacher in the whole step and of the student in one
    micro-batch, `width` is the bottleneck's and `itemsize` bytes are one of its numbers. What lasts
    is both vectors with the student's gradient, the prototypes of both with theirs, and the
    teacher's logits where they are kept. What passes is a tile of each, and the buffers of a block.
    """
    kept = are_kept(taught, prototypes, device)
    lasting = itemsize * width * (taught + 2 * learned + 3 * prototypes)
    lasting += itemsize * taught * prototypes if kept else 0
    tile = tile_rows(prototypes, device)
    tiles_of_both = min(learned, max(tile // views, 1) * views) + (0 if kept else min(taught, tile))
    buffers = 4 * min(taught, block_rows(prototypes, device))
    return lasting, prototypes * (itemsize * tiles_of_both + 4 * buffers)


def blocks(whole: range, step: int) -> Iterator[slice]:
    """Yield the slices that cut a range into pieces of `step`, the last one perhaps shorter."""
    for start in range(whole.start, whole.stop, step):
        yield slice(start, min(start + step, whole.stop))


def tiles(logits: Logits) -> Iterator[Float[Tensor, "t K"]]:
    """Yield the logits, so many rows at a time and in their order, in memory that the next ones take."""
    vectors, prototypes = logits.vectors, logits.prototypes
    most = min(len(vectors), tile_rows(len(prototypes), vectors.device))
    buffer = vectors.new_empty((most, len(prototypes)))
    for rows in blocks(range(len(vectors)), max(1, most)):
        yield torch.mm(vectors[rows], prototypes.mT, out=buffer[: rows.stop - rows.start])


def softmax_blocks(
    tile: Float[Tensor, "t K"], offsets: Float[Tensor, " K"], temperature: float
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield the rows of each block, (tile - offsets) / temperature and the softmax of that.

    Both are [r, K], float32 (float64 of float64 logits), in buffers that the next block overwrites.
    """
    prototypes = tile.shape[1]
    most = min(len(tile), block_rows(prototypes, tile.device))
    scaled_buffer, shares_buffer = tile.new_empty((2, most, prototypes), dtype=working_dtype(tile))
    for rows in blocks(range(len(tile)), max(1, most)):
        scaled, shares = (
            buffer[: rows.stop - rows.start] for buffer in (scaled_buffer, shares_buffer)
        )
        torch.sub(tile[rows], offsets, out=scaled).mul_(1 / temperature)
        torch.softmax(scaled, dim=1, out=shares)
        yield rows, scaled, shares


def log_normalisers(
    scaled: Float[Tensor, "*r K"], shares: Float[Tensor, "*r K"], close: bool = False
) -> Float[Tensor, "*r 1"]:
    """Return the log of each row's sum of exp(scaled), of which `shares` are the softmax.

    It is the difference of an exponent and the log of its share, for any prototype whose share is
    not 0: the first one where the exponents `are_close`, else the likeliest.
    """
    if close:
        return scaled[..., :1] - shares[..., :1].log()
    return scaled.amax(dim=-1, keepdim=True) - shares.amax(dim=-1, keepdim=True).log()
