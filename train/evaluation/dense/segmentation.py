"""Scores patch tokens by the mean IoU of a linear head's semantic segmentation."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn import functional

from shared.errors import LvdError
from shared.pictures.images import ImageError
from train.evaluation import protocol
from train.evaluation.dense.head import Task, fit, predictions
from train.evaluation.dense.images import Samples, Sliding, dense_images, draw, input_side
from train.evaluation.dense.pairs import Pair, find_apart, read_mask
from train.evaluation.scores import Score, share_scored
from train.evaluation.settings import SegmentSettings

if TYPE_CHECKING:
    from train.frozen.model import JoinedModel

MOST_CLASSES = 4096
_LABELS = 1 << 16


class Overlap:
    """The diagonal and the margins of the confusion matrix of a whole dataset's pixels."""

    def __init__(self) -> None:
        self.agreed, self.predicted, self.true = np.zeros((3, _LABELS), np.int64)

    def add(
        self, predicted: Float[np.ndarray, "*shape"], true: Float[np.ndarray, "*shape"]
    ) -> None:
        """Count the pixels of an image; those whose true label is NaN are in no count."""
        counted = ~np.isnan(true)
        predicted, true = (labels[counted].astype(np.int64) for labels in (predicted, true))
        self.agreed += _counts(true[predicted == true])
        self.predicted += _counts(predicted)
        self.true += _counts(true)

    def mean_iou(self) -> float:
        """Return the mean over the classes that are predicted or true somewhere.

        A class's intersection over union is over all pixels of the dataset at once, as for VOC
        (Everingham et al., doi 10.1007/s11263-014-0733-5, section 3.4) and ADE20K.
        """
        union = self.predicted + self.true - self.agreed
        return float((self.agreed[union > 0] / union[union > 0]).mean())

    def accuracy(self) -> float:
        """Return the share of pixels that are right."""
        return float(self.agreed.sum() / self.true.sum())


def segment(
    model: JoinedModel, train: str, test: str, settings: SegmentSettings, cache: Path
) -> list[Score]:
    """Return mean IoU and pixel accuracy on `test` of a linear head trained on `train`.

    The layouts of pairs are those of `find_pairs`, the head and its training those of `fit`; with
    `settings.window` both look at images through sliding windows. Each mask is predicted at its own
    resolution. Raises LvdError where data or model do not fit.
    """
    read = partial(_labels, ignored=settings.ignored)
    pairs = find_apart(train, test, "mask")
    sliding = Sliding(settings.window, settings.stride) if settings.window else None
    trained, tested = (
        dense_images(model, some, read, settings, role=role, cache=cache, sliding=sliding)
        for some, role in zip(pairs, ("--train", "--test"), strict=True)
    )
    device = model.parts[0].device
    samples = draw(trained, settings, "--train")
    classes = _classes(samples, train)
    task = _task(classes, device)
    head, rate, note = fit(samples, task, settings, device)
    overlap, scored = Overlap(), 0
    for predicted, true in predictions(head, task, tested, settings.workers, "--test"):
        overlap.add(predicted, true)
        scored += 1
    if not overlap.true.any():
        raise LvdError(f"--test: no pixel of the masks in {test!r} counts: see segment.ignored")
    known = int(overlap.true[classes.numpy()].sum()) / int(overlap.true.sum())
    notes = [note, share_scored(scored, len(pairs[1]))]
    notes += [f"{1 - known:.1%} of the pixels are of classes that --train does not have"] * (
        known < 1
    )
    sides = [input_side(part, settings.window or settings.size) for part in model.parts]
    notes += protocol.segmentation(sides, settings.window, settings.stride)
    note = "; ".join(filter(None, notes))
    return [
        Score("segment", "mIoU", overlap.mean_iou(), f"lr {rate:g}", note=note),
        Score("segment", "pixel accuracy", overlap.accuracy(), f"lr {rate:g}"),
    ]


def _labels(pair: Pair, ignored: int | None) -> Float32[np.ndarray, "h w"]:
    labels = read_mask(pair.target)
    counted = labels != (pair.ignored if ignored is None else ignored)
    if ((labels < 0) | (labels >= _LABELS))[counted].any():
        raise ImageError(f"labels are 0 to {_LABELS - 1}")
    return np.where(counted, labels, np.nan).astype(np.float32)


def _classes(samples: Samples, path: str) -> Int64[Tensor, " classes"]:
    targets = samples.targets
    classes = targets[~targets.isnan()].long().unique()
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise LvdError(
            f"--train: the masks in {path!r} hold {len(classes)} classes, and 2 to {MOST_CLASSES} "
            "can be told apart: give masks of class numbers, and set segment.ignored to -1 where "
            "the label that is ignored by default is a class"
        )
    return classes


def _task(classes: Int64[Tensor, " classes"], device: torch.device) -> Task:
    classes = classes.to(device)

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, torch.searchsorted(classes, labels.long()))

    def predict(outputs: Tensor) -> Tensor:
        return classes[outputs.argmax(dim=1)].float()

    return Task("segment", len(classes), loss, predict, _score)


def _score(predicted: Tensor, true: Tensor) -> float:
    overlap = Overlap()
    overlap.add(predicted.cpu().numpy(), true.cpu().numpy())
    return overlap.mean_iou()


def _counts(labels: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " labels"]:
    return np.bincount(labels, minlength=_LABELS)
