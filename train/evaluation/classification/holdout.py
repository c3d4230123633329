"""Divides labelled features into what a probe is fitted on, chosen by, and reported on."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from shared.errors import LvdError
from train.data.labelled import class_numbers


def known_classes(
    train: list[str], test: list[str]
) -> tuple[int, Int[Tensor, " n"], Int[Tensor, " m"]]:
    """Return the number of classes in `train`, and both sets' labels as int64.

    A class that only `test` has is -1, which nothing predicts. Raises LvdError where `train` has
    fewer than two classes.
    """
    classes, (numbers,) = class_numbers(train)
    if classes < 2:
        raise LvdError(
            f"--train has images of one class only ({train[0]!r}): a classifier needs two at least"
        )
    known = dict(zip(train, numbers.tolist(), strict=True))
    return classes, numbers, torch.tensor([known.get(label, -1) for label in test])


def check_common(train: list[str], test: list[str]) -> None:
    """Raise LvdError where `test` has no class of `train`: then nothing could be right."""
    if not set(train) & set(test):
        raise LvdError(
            f"--test has none of the classes of --train: {min(test)!r} and others against "
            f"{min(train)!r} and others; give two sets with the same labels"
        )


def unknown_in_test(train: list[str], test: list[str]) -> list[str]:
    """Return a note on the test images whose class `train` does not have, if there are any."""
    known = set(train)
    strangers = [label for label in test if label not in known]
    if not strangers:
        return []
    return [
        f"{len(strangers):,} of {len(test):,} test images are of {len(set(strangers)):,} classes "
        f"that --train does not have, and count as wrong (the first is {strangers[0]!r})"
    ]


def held_out(
    labels: Int[Tensor, " n"], share: float, seed: int
) -> tuple[Int[Tensor, " fitted"], Int[Tensor, " held"]]:
    """Return the rows to fit on and those held out to choose settings by, each in rising order.

    Of each class a random `share` is held out, rounded to whole images: one at least where it has
    two, and never all. Raises LvdError where no class has two.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    counts = labels.bincount()
    wanted = (counts * share).round().long().clamp(min=1).minimum((counts - 1).clamp(min=0))
    rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[by_class]]
    held = rank < wanted[labels[by_class]]
    if not held.any():
        raise LvdError(
            "--train has one image of each class: none can be held out to choose settings by"
        )
    return by_class[~held].sort().values, by_class[held].sort().values
