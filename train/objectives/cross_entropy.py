"""Cross-entropy of a student's views against a teacher's: the loss and its gradient in one pass.

Rows of logits are many and wide (65,536 prototypes and more). They exist a tile of rows at a time,
from the product that makes them to the products that lead their gradient back to the vectors and
the prototypes; a tile is gone over in blocks whose float32 arithmetic stays in the caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from train.model.logits import Logits
from train.objectives.targets import Targets
from train.objectives.tiles import block_rows, blocks, log_normalisers, tile_rows, working_dtype


@dataclass(frozen=True)
class ViewPairs:
    """Consecutive views of the student, and the views of the teacher that each of them learns."""

    student: range
    teacher: Sequence[int]


def cross_entropy(
    vectors: Float[Tensor, "V n d"],
    prototypes: Float[Tensor, "K d"],
    targets: Targets,
    pairings: Sequence[ViewPairs],
    weights: Float[Tensor, " n"],
    temperature: float,
    *,
    close: bool = False,
) -> Float[Tensor, ""]:
    """Return the weighted sum of the cross-entropies of all pairings' pairs of views (v, g):

        z = vectors[v, i] @ prototypes.T                # the student's logits
        sum_i weights[i] sum_(v, g) - sum_k q[g, i, k] log softmax(z / temperature)_k

    `targets` holds the q of the teacher's G views, view after view: G n rows. Every view of the
    student belongs to exactly one pairing. `close` says that the logits `are_close`. The loss is
    float32 (float64 for float64 vectors). The logits of a tile of images are made once and replaced
    by their gradient, in their precision,

        dz = weights[i] / temperature * (teachers * softmax(z / temperature) - sum_g q[g, i])

    of which d vectors = dz @ prototypes and d prototypes = dz.T @ vectors, summed over tiles in
    float32. These two are all that waits for the backward pass, and are scaled in place there: one
    backward pass for one forward pass. A second one raises RuntimeError, unless the first came
    unscaled.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        return _CrossEntropy.apply(
            vectors, prototypes, targets, pairings, weights, temperature, close
        )


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        vectors: Tensor,
        prototypes: Tensor,
        targets: Targets,
        pairings: Sequence[ViewPairs],
        weights: Tensor,
        temperature: float,
        close: bool,
    ) -> Tensor:
        views, images, _ = vectors.shape
        to_vectors: list[Tensor] = []
        to_prototypes = _Sum(prototypes) if ctx.needs_input_grad[1] else None
        loss = vectors.new_zeros((), dtype=working_dtype(vectors))

        def add(at: slice) -> None:  # its matrices are gone before those of the next tile are made
            own = vectors[:, at].flatten(0, 1)
            # Of bfloat16 logits, rounding moves a quotient as far again: they are divided later.
            scale = 1 / temperature if own.dtype == working_dtype(own) else 1.0
            logits = Logits(own, prototypes).whole(scale).unflatten(0, (views, -1))
            taught = [
                targets.tile(slice(first + at.start, first + at.stop))
                for first in range(0, len(targets), images)
            ]
            wanted = any(ctx.needs_input_grad)
            loss.add_(
                _loss_and_gradient(
                    logits, taught, pairings, weights[at], temperature, close, wanted
                )
            )
            gradient = logits.flatten(0, 1)
            if ctx.needs_input_grad[0]:
                to_vectors.append((gradient @ prototypes).unflatten(0, (views, -1)))
            if to_prototypes is not None:
                to_prototypes.add_product(gradient.mT, own)

        rows = tile_rows(len(prototypes), vectors.device)
        for at in blocks(range(images), max(1, rows // views)):
            add(at)
        ctx.save_for_backward(
            _joined(to_vectors, vectors) if ctx.needs_input_grad[0] else None,
            to_prototypes and to_prototypes.total(),
        )
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        # Asking an accelerator for a value would wait for it.
        if upstream.device.type != "cpu" or upstream != 1:
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(upstream)
        return *gradients, None, None, None, None, None


def _loss_and_gradient(
    student: Float[Tensor, "V t K"],
    targets: Sequence[Targets],
    pairings: Sequence[ViewPairs],
    weights: Float[Tensor, " t"],
    temperature: float,
    close: bool,
    wanted: bool,
) -> Float[Tensor, ""]:
    """Return the loss of a tile; `student` becomes the gradient of its logits if that is `wanted`.

    It is logits / temperature in the precision of the arithmetic, or else logits; `targets`
    are those of each of the teacher's views.
    """
    _, images, prototypes = student.shape
    most = block_rows(prototypes, student.device)
    rows = max(1, min(images, most))
    views = min(most // rows, max(len(pairing.student) for pairing in pairings))

    def buffer(*shape: int) -> Tensor:
        return student.new_empty((*shape, prototypes), dtype=working_dtype(student))

    taught, summed = buffer(len(targets), rows), buffer(rows)
    wide = student.dtype == working_dtype(student)
    scaled_buffer, likely_buffer = buffer(0 if wide else views * rows), buffer(views * rows)
    loss = student.new_zeros((), dtype=working_dtype(student))
    for at in blocks(range(images), rows):
        count = at.stop - at.start
        weight = (weights[at].to(loss.dtype) / temperature)[:, None]
        for view, asked in enumerate(targets):
            asked.write(at, taught[view, :count], -weight)
        for pairing in pairings:
            first, *others = pairing.teacher
            target_sum, row_weight = taught[first, :count], weight * len(pairing.teacher)
            for view in others:
                target_sum = torch.add(target_sum, taught[view, :count], out=summed[:count])
            for some in blocks(pairing.student, views):
                tile = student[some, at]
                flat = len(tile) * count
                scaled, likely = tile, likely_buffer[:flat].view(tile.shape)
                if not wide:
                    scaled = scaled_buffer[:flat].view(tile.shape)
                    scaled.copy_(tile).mul_(1 / temperature)
                torch.softmax(scaled, dim=-1, out=likely)
                normaliser = log_normalisers(scaled, likely, close)
                loss += (row_weight * normaliser).sum() + scaled.mul_(target_sum).sum()
                if wanted:
                    torch.addcmul(target_sum, likely, row_weight, out=tile if wide else likely)
                    if not wide:
                        tile.copy_(likely)
    return loss * temperature


def _joined(parts: Sequence[Float[Tensor, "V t d"]], like: Tensor) -> Tensor:
    """Return the gradients of all tiles, of which there is none where there are no images."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat(list(parts), dim=1) if parts else torch.zeros_like(like)


class _Sum:
    """A sum of products like one matrix, in float32 at least where there is more than one of them."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._sum: Tensor | None = None

    def add_product(self, left: Tensor, right: Tensor) -> None:
        wide = working_dtype(self._like)
        if self._sum is None:
            self._sum = left @ right
        elif left.dtype == wide:
            self._sum.addmm_(left, right)
        else:
            self._sum = self._sum.to(wide).add_(left @ right)

    def total(self) -> Tensor:
        return torch.zeros_like(self._like) if self._sum is None else self._sum.to(self._like.dtype)
