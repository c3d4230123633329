"""Scores features by linear probes of many learning rates and feature variants at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shared.errors import LvdError
from shared.progress import stage_bar
from train.evaluation.classification.holdout import held_out, known_classes, unknown_in_test
from train.evaluation.features import Bank
from train.evaluation.scores import Score
from train.evaluation.settings import LinearSettings
from train.evaluation.standardise import moments

CPU = torch.device("cpu")
MOMENTUM = 0.9
_ROWS = 2048
"""Of features that are in memory at once where no batch says how many."""


@dataclass(frozen=True)
class Heads:
    """Linear classifiers of one variant of the features, one for each learning rate."""

    columns: slice
    """The features that they look at."""
    weight: Float[Tensor, "d heads classes"]
    bias: Float[Tensor, "heads classes"]

    def logits(self, features: Float[Tensor, "n all"]) -> Float[Tensor, "n heads classes"]:
        """Return the heads' outputs for standardised features."""
        flat = features[:, self.columns] @ self.weight.flatten(1) + self.bias.flatten()
        return flat.unflatten(1, self.bias.shape)

    def finite(self) -> list[bool]:
        """Return whether the training of each head has stayed finite: one that has not, never is."""
        weight, bias = self.weight.isfinite().all(dim=0), self.bias.isfinite()
        return (weight & bias).all(dim=1).tolist()


@dataclass(frozen=True)
class Probe:
    """The heads of all variants, and the standardisation before them."""

    mean: Float[Tensor, " all"]
    std: Float[Tensor, " all"]
    heads: dict[str, Heads]

    def standardised(self, features: Float[Tensor, "n all"]) -> Float[Tensor, "n all"]:
        """Return features with the mean 0 and the variance 1 that they had in training."""
        return (features - self.mean) / self.std


class ProbeFeatures:
    """The features of a bank that probes look at, side by side, read as they are wanted.

    The CLS tokens of the last blocks, the last block's at the end (or else the pooled feature, of a
    model without CLS token), then the mean patch token, if there is one.
    """

    def __init__(self, bank: Bank, device: torch.device = CPU) -> None:
        self._device = device
        tokens = bank.pooled[:, None] if bank.cls is None else bank.cls
        self._parts = [tokens.flatten(1)] if bank.mean is None else [tokens.flatten(1), bank.mean]
        self.variants = _variants(bank, *tokens.shape[1:])
        """The columns of each variant."""

    def __len__(self) -> int:
        return len(self._parts[0])

    def __getitem__(self, rows: Int[Tensor, " n"]) -> Float[Tensor, "n all"]:
        """Return some rows, float32, on the device."""
        read = [part[rows].to(self._device).float() for part in self._parts]
        return torch.cat(read, dim=1)


def linear_probe(
    train: Bank, test: Bank, settings: LinearSettings, device: torch.device = CPU
) -> list[Score]:
    """Return the share of `test` that the best linear head names rightly; its setting says which.

    DINOv2's protocol (arXiv 2304.07193, appendix B.3): heads for each learning rate and each of
    these features, the CLS token of the last block or of the last 4, with and without the mean
    patch token (or else the pooled feature), are all trained at once, by SGD with momentum 0.9, no
    weight decay and a cosine schedule. Unlike there, images come without augmentation, because
    features are extracted once; features are standardised, as by the BatchNorm without affine part
    of MAE's probe, so that the same learning rates suit any model (raw, an untrained network on
    CIFAR-10 scored 37.8 instead of 39.7%, and a trained one the same); and the winner is the head
    that does best on a held-out part of `train`. Then that head is trained anew, on all of `train`;
    `test` is used for nothing but the reported number. Images of a class that only `test` has count
    as wrong, and are counted in the note. Raises LvdError where the training of all heads diverges,
    and for what `known_classes` and `held_out` cannot divide.
    """
    classes, labels, answers = known_classes(train.labels, test.labels)
    seen, asked = ProbeFeatures(train, device), ProbeFeatures(test, device)
    fitted, held = held_out(labels, settings.held_out, settings.seed)
    rates = settings.learning_rates
    probe = train_heads(seen, fitted, labels, classes, seen.variants, rates, settings)
    variant, number = _best(probe, count_right(probe, seen, held, labels))
    rate, chosen = rates[number], {variant: seen.variants[variant]}
    every = torch.arange(len(seen))
    probe = train_heads(seen, every, labels, classes, chosen, [rate], settings)
    count = count_right(probe, asked, torch.arange(len(asked)), answers)
    _best(probe, count)  # for all of `train` could have made it diverge
    notes = unknown_in_test(train.labels, test.labels)
    if len(rates) > 1 and rate in (min(rates), max(rates)):
        notes.append("the learning rate that won is at the end of its range")
    return [
        Score(
            *("linear", "top-1", count[variant][0] / len(asked), f"{variant}, lr {rate:g}"),
            note="; ".join(notes),
        )
    ]


@torch.no_grad()
def train_heads(
    features: ProbeFeatures,
    rows: Int[Tensor, " n"],
    labels: Int[Tensor, " all_rows"],
    classes: int,
    variants: dict[str, slice],
    rates: Sequence[float],
    settings: LinearSettings,
) -> Probe:
    """Return heads for each variant and learning rate, trained on some rows of the features.

    All see the same batches and start at zero, as a convex problem may: each becomes what it would
    alone. The heads of one variant are one matrix, so that a step takes two products a variant.
    """
    mean, std = moments(features[block] for block in rows.split(_ROWS))
    probe = Probe(mean, std, {n: _heads(mean, c, len(rates), classes) for n, c in variants.items()})
    velocities = [
        (torch.zeros_like(h.weight), torch.zeros_like(h.bias)) for h in probe.heads.values()
    ]
    size = min(settings.batch_size, len(rows))
    peak = mean.new_tensor(rates)[:, None] * size / 256
    steps = max(math.ceil(settings.epochs * len(rows) / size), settings.least_steps, 1)
    with stage_bar("linear", steps, "steps") as bar:
        bar.note(f"{len(variants) * len(rates)} heads on {len(rows):,} images")
        for step, batch in enumerate(_batches(rows, size, steps, settings.seed)):
            rate = peak * (0.5 * (1 + math.cos(math.pi * step / steps)))
            inputs = probe.standardised(features[batch])
            truth = labels[batch].to(mean.device)
            for heads, velocity in zip(probe.heads.values(), velocities, strict=True):
                _descend(heads, velocity, inputs, truth, rate)
            bar.advance()
    return probe


@torch.no_grad()
def count_right(
    probe: Probe,
    features: ProbeFeatures,
    rows: Int[Tensor, " n"],
    labels: Int[Tensor, " all_rows"],
) -> dict[str, list[int]]:
    """Return how many of some rows each head of each variant names rightly."""
    right = {name: [0] * len(heads.bias) for name, heads in probe.heads.items()}
    for block in rows.split(_ROWS):
        inputs = probe.standardised(features[block])
        truth = labels[block].to(inputs.device)[:, None]
        for name, heads in probe.heads.items():
            found = (heads.logits(inputs).argmax(dim=2) == truth).sum(dim=0).tolist()
            right[name] = [before + more for before, more in zip(right[name], found, strict=True)]
    return right


def _best(probe: Probe, right: dict[str, list[int]]) -> tuple[str, int]:
    """Return the variant and the number of the head that names most rightly, of those still finite.

    Of equals the first: of the fewest features, and of these the one whose rate comes first. Raises
    LvdError where none is finite.
    """
    finite = [
        (name, n)
        for name, heads in probe.heads.items()
        for n, is_so in enumerate(heads.finite())
        if is_so
    ]
    if not finite:
        raise LvdError("linear: the training of every head diverged: lower linear.learning_rates")
    return max(finite, key=lambda at: right[at[0]][at[1]])


def _descend(
    heads: Heads,
    velocity: tuple[Tensor, Tensor],
    inputs: Float[Tensor, "n all"],
    labels: Int[Tensor, " n"],
    rate: Float[Tensor, "heads 1"],
) -> None:
    """Take a step of SGD with momentum on the mean cross-entropy of each head.

    Its gradient with respect to the logits is (softmax - one-hot) / n.
    """
    errors = heads.logits(inputs).softmax(dim=2)
    errors[torch.arange(len(labels), device=labels.device), :, labels] -= 1
    errors /= len(labels)
    of_weight, of_bias = velocity
    of_weight.flatten(1).mul_(MOMENTUM).addmm_(inputs[:, heads.columns].T, errors.flatten(1))
    of_bias.mul_(MOMENTUM).add_(errors.sum(dim=0))
    heads.weight.sub_(rate * of_weight)
    heads.bias.sub_(rate * of_bias)


def _batches(
    rows: Int[Tensor, " n"], size: int, steps: int, seed: int
) -> Iterator[Int[Tensor, " size"]]:
    """Yield random batches; what is left of a pass over the rows and fills none is left out."""
    generator = torch.Generator().manual_seed(seed)
    waiting = rows[:0]
    for _ in range(steps):
        if len(waiting) < size:
            waiting = rows[torch.randperm(len(rows), generator=generator)]
        yield waiting[:size]
        waiting = waiting[size:]


def _variants(bank: Bank, blocks: int, width: int) -> dict[str, slice]:
    end = blocks * width
    if bank.cls is None:
        names = {"pooled": 0}
    else:
        names = {"cls": end - width}
        if blocks > 1:
            names[f"cls x{blocks}"] = 0
    variants = {name: slice(start, end) for name, start in names.items()}
    if bank.mean is not None:
        end += bank.mean.shape[1]
        variants |= {f"{name} + mean": slice(start, end) for name, start in names.items()}
    return variants


def _heads(mean: Float[Tensor, " all"], columns: slice, heads: int, classes: int) -> Heads:
    width = columns.stop - columns.start
    return Heads(columns, mean.new_zeros(width, heads, classes), mean.new_zeros(heads, classes))
