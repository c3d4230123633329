"""Linear heads over grids of patch tokens: many learning rates at once, the best one kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from shared.progress import stage_bar
from train.evaluation.dense.images import DenseImages, Samples, pixel_centres
from train.evaluation.dense.windows import Windows, blend
from train.evaluation.settings import DenseSettings
from train.evaluation.standardise import moments

WARMUP = 0.04
"""Share of the steps in which the learning rate climbs; it falls to 0 in the others."""
_BLOCK = 16
_MOST_OUTPUTS = 1 << 20
"""Outputs of a head that are held at once, a strip of a test image: that fits a CPU's cache, which
makes 256 outputs for each of 640x480 pixels 2.7 times faster (measured) than strips of 2^24."""


@dataclass(frozen=True)
class Task:
    """What a head is trained for; its outputs and targets come a row for each pixel."""

    name: str
    outputs: int
    loss: Callable[[Float[Tensor, "n outputs"], Float[Tensor, " n"]], Float[Tensor, ""]]
    predict: Callable[[Float[Tensor, "n outputs"]], Float[Tensor, " n"]]
    score: Callable[[Float[Tensor, " n"], Float[Tensor, " n"]], float]
    """Of predictions against targets on held-out pixels; the higher, the better."""


@dataclass(frozen=True)
class Head:
    """Standardises tokens, then maps them linearly."""

    mean: Float[Tensor, " d"]
    std: Float[Tensor, " d"]
    linear: nn.Linear

    def __call__(self, tokens: Float[Tensor, "... d"]) -> Float[Tensor, "... outputs"]:
        """Return the outputs for each token."""
        return self.linear((tokens - self.mean) / self.std)


class Fitted(NamedTuple):
    """A trained head, and the learning rate it was trained with."""

    head: Head
    rate: float
    note: str
    """What a reader should know of the rate; empty where there is nothing."""


def fit(samples: Samples, task: Task, settings: DenseSettings, device: torch.device) -> Fitted:
    """Return a head on all samples, by the learning rate that does best on held-out images.

    Heads of all rates are trained at once without the held-out images, then one more with all of
    them by the best rate; a rate that is the only one is not put to the test.

    DINOv2's linear protocol (arXiv 2304.07193, section 7.4) is batch normalisation, then a 1x1
    convolution. Since the tokens are frozen, each channel's mean and variance are taken here once
    over all images trained on, instead of over batches, and the normalisation's own scale and
    offset are left to the convolution, which can express them. AdamW; the rate climbs linearly over
    the first 4% of the steps, as there, and falls linearly to 0.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    rates = settings.learning_rates
    best, note = rates[0], ""
    if len(rates) > 1:
        order = torch.randperm(len(samples.rows), generator=generator).tolist()
        held = min(max(round(settings.held_out * len(order)), 1), len(order) - 1)
        trained, held_out = sorted(order[held:]), sorted(order[:held])
        heads = _trained(samples, trained, task, rates, settings, generator, device)
        scores = _scores(heads, task, samples, held_out)
        known = [-math.inf if math.isnan(score) else score for score in scores]
        best = rates[known.index(max(known))]
        if best in (min(rates), max(rates)):
            note = "the learning rate that won is at the end of its range"
    every = list(range(len(samples.rows)))
    (head,) = _trained(samples, every, task, [best], settings, generator, device)
    return Fitted(head, best, note)


@torch.no_grad()
def predictions(
    head: Head, task: Task, images: DenseImages, workers: int, role: str
) -> Iterator[tuple[Float32[np.ndarray, "h w"], Float32[np.ndarray, "h w"]]]:
    """Yield the prediction and the target of each whole pair, at the target's own size.

    The head's outputs are upsampled bilinearly to that size before they become predictions.
    """
    with stage_bar(task.name, len(images.pairs)) as bar:
        bar.note(f"{role} at full resolution")
        for row, target in images.targets(workers, role):
            outputs = head(images.tokens([row]).to(head.mean.device))
            windows = images.windows_of([row])
            height, width = target.shape
            step = max(_MOST_OUTPUTS // (width * task.outputs * len(outputs)), 1)
            strips = [
                task.predict(
                    _upsampled(outputs, windows, range(top, min(top + step, height)), target.shape)
                )
                for top in range(0, height, step)
            ]
            yield torch.cat(strips).view(height, width).cpu().numpy(), target
            bar.advance()


def rate_at(step: int, steps: int) -> float:
    """Return the factor of the learning rate at a step: a line up to 1, then one down to 0."""
    warmup = max(round(WARMUP * steps), 1)
    return min((step + 1) / warmup, (steps - step) / max(steps - warmup, 1), 1.0)


def _upsampled(
    outputs: Float[Tensor, "windows rows cols outputs"],
    windows: Windows,
    rows: range,
    shape: tuple[int, int],
) -> Float[Tensor, "pixels outputs"]:
    return blend(outputs, windows, pixel_centres(rows, *shape)[None].to(outputs.device))[0]


def _trained(
    samples: Samples,
    trained: list[int],
    task: Task,
    rates: Sequence[float],
    settings: DenseSettings,
    generator: torch.Generator,
    device: torch.device,
) -> list[Head]:
    """Return a head for each learning rate, all trained on the same batches."""
    rows = [samples.rows[n] for n in trained]
    blocks = (rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK))
    mean, std = moments(samples.images.tokens(block).flatten(0, 2) for block in blocks)
    mean, std = mean.to(device), std.to(device)
    heads = [Head(mean, std, _linear(len(mean), task.outputs, generator, device)) for _ in rates]
    optimiser = torch.optim.AdamW(
        [
            {"params": head.linear.parameters(), "lr": rate}
            for head, rate in zip(heads, rates, strict=True)
        ],
        weight_decay=settings.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: rate_at(step, settings.steps)
    )
    with stage_bar(task.name, settings.steps, "steps") as bar:
        bar.note(f"{len(heads)} heads on {len(trained):,} images")
        for chosen in _batches(trained, settings, generator):
            tokens, targets = samples.at(chosen, device)
            optimiser.zero_grad()
            # Each head has parameters of its own: the gradient of the sum is each one's own.
            torch.stack([task.loss(head(tokens), targets) for head in heads]).sum().backward()
            optimiser.step()
            schedule.step()
            bar.advance()
    return heads


def _linear(
    inputs: int, outputs: int, generator: torch.Generator, device: torch.device
) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.normal_(linear.weight, std=0.01, generator=generator)
    nn.init.zeros_(linear.bias)
    return linear.to(device)


def _batches(
    trained: list[int], settings: DenseSettings, generator: torch.Generator
) -> Iterator[list[int]]:
    """Yield the images of each step: all of them once, in random order, before any comes again."""
    waiting: list[int] = []
    for _ in range(settings.steps):
        if not waiting:
            order = torch.randperm(len(trained), generator=generator).tolist()
            waiting = [trained[n] for n in order]
        yield waiting[: settings.images]
        waiting = waiting[settings.images :]


@torch.no_grad()
def _scores(
    heads: Sequence[Head], task: Task, samples: Samples, held_out: Sequence[int]
) -> list[float]:
    """Return each head's score over all the pixels of held-out images together."""
    predicted, expected = [], []
    for n in held_out:
        tokens, targets = samples.at([n], heads[0].mean.device)
        predicted.append(torch.stack([task.predict(head(tokens)) for head in heads]))
        expected.append(targets)
    targets = torch.cat(expected)
    return [task.score(of_one, targets) for of_one in torch.cat(predicted, dim=1)]
