"""Cross-entropy of a student's views against a teacher's: the loss and its gradient in one pass.

Rows of logits are many and wide (65,536 prototypes and more), and a plain implementation goes over
all of them a dozen times, each time through memory. Here a block of rows is read once, in its own
precision, and left as its gradient; the arithmetic between is float32, in buffers of bounded size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

CPU_BLOCK = 2**19
"""Elements of a buffer for each thread of a CPU: 2 MiB, near enough to stay in its caches."""

DEVICE_BLOCK = 2**25
"""Elements of a buffer on an accelerator: few kernels, and no buffer above 128 MiB."""


@dataclass(frozen=True)
class Targets:
    """A teacher's distributions over prototypes: the rows of shares * scales, divided by their sums.

    Shares have the precision of the teacher's logits, whose rounding moves a probability far more
    than theirs; float32 probabilities exist for a block of rows at a time.
    """

    shares: Float[Tensor, "b K"]
    scales: Float[Tensor, " K"]

    def __len__(self) -> int:
        return len(self.shares)

    def write(self, rows: slice, out: Tensor, total: Tensor | float = 1.0) -> None:
        """Write the probabilities of some rows, times `total` [r, 1], to `out` [r, K]."""
        out.copy_(self.shares[rows]).mul_(self.scales)
        out.mul_(total / out.sum(dim=-1, keepdim=True))

    def probabilities(self, rows: slice = slice(None)) -> Float[Tensor, "r K"]:
        """Return the probabilities of some rows, in float32 (float64 of float64 shares)."""
        out = torch.empty_like(self.shares[rows], dtype=working_dtype(self.shares))
        self.write(rows, out)
        return out


@dataclass(frozen=True)
class Lesson:
    """Consecutive views of the student, and the views of the teacher that each of them learns."""

    student: range
    teacher: Sequence[int]


def working_dtype(logits: Tensor) -> torch.dtype:
    """Return the precision of the arithmetic on logits: float32, or float64 for float64 logits."""
    return torch.promote_types(logits.dtype, torch.float32)


def block_rows(logits: Float[Tensor, "... K"]) -> int:
    """Return how many rows of such logits make a block; at least one."""
    on_cpu = logits.device.type == "cpu"
    elements = CPU_BLOCK * torch.get_num_threads() if on_cpu else DEVICE_BLOCK
    return max(1, elements // logits.shape[-1])


def blocks(whole: range, step: int) -> Iterator[slice]:
    """Yield the slices that cut a range into pieces of `step`, the last one perhaps shorter."""
    for start in range(whole.start, whole.stop, step):
        yield slice(start, min(start + step, whole.stop))


def cross_entropy(
    student: Float[Tensor, "V n K"],
    targets: Targets,
    lessons: Sequence[Lesson],
    weights: Float[Tensor, " n"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Return the weighted sum of the cross-entropies of all lessons' pairs of views (v, g):

        sum_i weights[i] sum_(v, g) - sum_k q[g, i, k] log softmax(student[v, i] / temperature)_k

    `targets` holds the q of the teacher's G views, view after view: G n rows. Every view of the
    student belongs to exactly one lesson. The loss is float32 (float64 for float64 logits), its
    gradient has the precision of the logits:

        weights[i] / temperature * (teachers * softmax(student[v, i] / temperature) - sum_g q[g, i])

    The gradient is made with the loss and scaled in place where it is asked for: one backward pass
    for one forward pass. A second one raises RuntimeError, unless the first came unscaled.
    """
    return _CrossEntropy.apply(student, targets, lessons, weights, temperature)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student, targets, lessons, weights, temperature):
        gradient = torch.empty_like(student) if ctx.needs_input_grad[0] else None
        loss = _loss_and_gradient(student, targets, lessons, weights, temperature, gradient)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensors
        # Asking an accelerator for a value would wait for it.
        if upstream.device.type != "cpu" or upstream != 1:
            gradient.mul_(upstream)
        return gradient, None, None, None, None


def _loss_and_gradient(
    student: Tensor,
    targets: Targets,
    lessons: Sequence[Lesson],
    weights: Tensor,
    temperature: float,
    gradient: Tensor | None,
) -> Tensor:
    """Return the loss of `cross_entropy`, and write its gradient where there is room for it."""
    _, images, prototypes = student.shape
    teachers = len(targets) // max(1, images)
    most = block_rows(student)
    rows = max(1, min(images, most))
    views = min(most // rows, max(len(lesson.student) for lesson in lessons))

    def buffer(*shape: int) -> Tensor:
        return student.new_empty((*shape, prototypes), dtype=working_dtype(student))

    taught, summed = buffer(teachers, rows), buffer(rows)
    scaled_buffer, likely_buffer = buffer(views * rows), buffer(views * rows)
    loss = student.new_zeros((), dtype=working_dtype(student))
    for at in blocks(range(images), rows):
        count = at.stop - at.start
        weight = (weights[at].to(loss.dtype) / temperature)[:, None]
        for view in range(teachers):
            place = slice(view * images + at.start, view * images + at.stop)
            targets.write(place, taught[view, :count], -weight)
        for lesson in lessons:
            first, *others = lesson.teacher
            pull, mass = taught[first, :count], weight * len(lesson.teacher)
            for view in others:
                pull = torch.add(pull, taught[view, :count], out=summed[:count])
            for some in blocks(lesson.student, views):
                logits = student[some, at]
                flat = len(logits) * count
                scaled = scaled_buffer[:flat].view(logits.shape)
                likely = likely_buffer[:flat].view(logits.shape)
                scaled.copy_(logits).mul_(1 / temperature)
                top = scaled.amax(dim=-1, keepdim=True)
                torch.softmax(scaled, dim=-1, out=likely)
                # The largest probability is exp(top - logsumexp).
                normaliser = top - likely.amax(dim=-1, keepdim=True).log()
                loss += (mass * normaliser).sum() + scaled.mul_(pull).sum()
                if gradient is not None:
                    gradient[some, at] = likely.mul_(mass).add_(pull)
    return loss * temperature
