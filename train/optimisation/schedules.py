"""What changes over a run (learning rate, decay, momentum, temperature), by optimiser step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shared.errors import LvdError
from train.optimisation.settings import OptimiserSettings, TeacherSettings


@dataclass(frozen=True)
class Values:
    """What one optimiser step is made with."""

    lr: float
    weight_decay: float
    momentum: float
    teacher_temperature: float
    last_layer_frozen: bool


class Schedules:
    """The values of every step, as a pure function of its number: there is no state to save.

    A step is an optimiser step over the global batch, whatever the number of ranks and
    micro-batches it was made of; the first is 0. Lengths in epochs are rounded to steps.
    """

    def __init__(
        self,
        optimiser: OptimiserSettings,
        teacher: TeacherSettings,
        batch_size: int,
        total_steps: int,
        steps_per_epoch: float,
    ):
        """Prepare for a run of `total_steps` with `batch_size` images over all ranks.

        Raises LvdError where the run ends within the warm-up or before the last layer is freed,
        and where the learning rate would climb to its minimum.
        """
        self.optimiser = optimiser
        self.teacher = teacher
        self.total_steps = total_steps
        self.peak_lr = peak_lr(optimiser, batch_size)
        self.warmup_steps = round(optimiser.warmup_epochs * steps_per_epoch)
        self.frozen_steps = round(optimiser.freeze_last_layer_epochs * steps_per_epoch)
        self.temperature_steps = round(teacher.temperature_warmup_epochs * steps_per_epoch)
        for name, steps in (
            ("warmup_epochs", self.warmup_steps),
            ("freeze_last_layer_epochs", self.frozen_steps),
        ):
            if steps >= total_steps:
                raise LvdError(
                    f"optimiser.{name} is {getattr(optimiser, name):g} ({steps} steps), and the "
                    f"run ends after {total_steps} steps: set it below "
                    f"{total_steps / steps_per_epoch:.4g}, or train for longer"
                )
        if optimiser.lr_schedule == "cosine" and self.peak_lr < optimiser.min_lr:
            raise LvdError(
                f"optimiser.min_lr is {optimiser.min_lr:g}, above the peak learning rate "
                f"{self.peak_lr:.3g} of a batch of {batch_size}: lower it, or raise "
                f"optimiser.base_lr"
            )

    def at(self, step: int) -> Values:
        """Return the values of optimiser step `step`; past the run's end, those of its end."""
        progress = step / self.total_steps
        return Values(
            lr=self._lr(step),
            weight_decay=cosine(*self.optimiser.weight_decay, progress),
            momentum=cosine(*self.teacher.momentum, progress),
            teacher_temperature=linear(
                *self.teacher.temperature, _part(step, self.temperature_steps)
            ),
            last_layer_frozen=step < self.frozen_steps,
        )

    def _lr(self, step: int) -> float:
        if step < self.warmup_steps:
            return linear(0.0, self.peak_lr, step / self.warmup_steps)
        if self.optimiser.lr_schedule == "constant":
            return self.peak_lr
        part = _part(step - self.warmup_steps, self.total_steps - self.warmup_steps)
        return cosine(self.peak_lr, self.optimiser.min_lr, part)


def peak_lr(settings: OptimiserSettings, batch_size: int) -> float:
    """Return the learning rate at the end of the warm-up, scaled to a global batch.

    `sqrt`: base * sqrt(batch / reference) (DINOv2, arXiv 2304.07193, with 1024); `linear`:
    base * batch / reference (DINO, arXiv 2104.14294, with 256).
    """
    ratio = batch_size / settings.reference_batch
    factors = {"sqrt": math.sqrt(ratio), "linear": ratio, "none": 1.0}
    return settings.base_lr * factors[settings.lr_scaling]


def cosine(start: float, end: float, progress: float) -> float:
    """Return half a cosine wave from `start` at progress 0 to `end` at 1 and past it.

    SGDR (arXiv 1608.03983), equation 5, without restarts.
    """
    return end + (start - end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def linear(start: float, end: float, progress: float) -> float:
    """Return a line from `start` at progress 0 to `end` at 1 and past it."""
    return start + (end - start) * min(progress, 1.0)


def _part(step: int, steps: int) -> float:
    return step / steps if steps else 1.0
