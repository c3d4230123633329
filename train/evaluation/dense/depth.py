"""Scores patch tokens by the depth that a linear head tells: RMSE, relative error and delta1."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from shared.errors import LvdError
from shared.pictures.images import ImageError
from train.evaluation import protocol
from train.evaluation.dense.head import Task, fit, predictions
from train.evaluation.dense.images import dense_images, draw, input_side
from train.evaluation.dense.pairs import Pair, find_apart, read_depth
from train.evaluation.scores import Score, share_scored
from train.evaluation.settings import NEAREST, DepthSettings

if TYPE_CHECKING:
    from train.frozen.model import JoinedModel

_NYU_SHAPE = (480, 640)
_EIGEN_CROP = (slice(45, 471), slice(41, 601))


class Errors(NamedTuple):
    """Of one image, over the pixels whose depth is known."""

    rmse: float
    """In metres."""
    abs_rel: float
    delta1: float


def depth(
    model: JoinedModel, train: str, test: str, settings: DepthSettings, cache: Path
) -> list[Score]:
    """Return RMSE (metres), absolute relative error and delta1 on `test`, of a head from `train`.

    Each is the mean over images of the error over one image's pixels, as NYU figures are given
    (BTS, AdaBins, DINOv2): an image with few known pixels weighs as much as any other. Images with
    no known pixel are not counted. The layouts of pairs are those of `find_pairs`, the head and its
    training those of `fit`. Raises LvdError where data or model do not fit.
    """
    read = partial(_metres, max_depth=settings.max_depth)
    read_test = partial(read, eigen_crop=settings.eigen_crop)
    pairs = find_apart(train, test, "depth")
    trained, tested = (
        dense_images(model, some, reads, settings, role=role, cache=cache, cls=settings.cls)
        for some, reads, role in zip(pairs, (read, read_test), ("--train", "--test"), strict=True)
    )
    device = model.parts[0].device
    task = _task(settings)
    samples = draw(trained, settings, "--train")
    head, rate, note = fit(samples, task, settings, device)
    setting = f"lr {rate:g}"
    found = [
        errors(predicted, true)
        for predicted, true in predictions(head, task, tested, settings.workers, "--test")
        if not np.isnan(true).all()
    ]
    if not found:
        raise LvdError(
            f"--test: no pixel of the depth maps in {test!r} counts: see depth.max_depth"
        )
    notes = [note, share_scored(len(found), len(pairs[1]))]
    sides = [input_side(part, settings.size) for part in model.parts]
    note = "; ".join(filter(None, [*notes, *protocol.depth(sides, settings.cls)]))
    rmse, abs_rel, delta1 = np.mean(found, axis=0).tolist()
    return [
        Score("depth", "RMSE", rmse, setting, higher_is_better=False, note=note),
        Score("depth", "abs-rel", abs_rel, setting, higher_is_better=False),
        Score("depth", "delta1", delta1, setting),
    ]


def errors(predicted: Float[np.ndarray, "h w"], true: Float[np.ndarray, "h w"]) -> Errors:
    """Return the errors of one image over the pixels where `true` is not NaN; one at least is not.

    RMSE, the mean of |p - t| / t, and the share of pixels with max(p / t, t / p) < 1.25 (Eigen et
    al., arXiv 1406.2283, section 4).
    """
    known = ~np.isnan(true)
    p, t = predicted[known].astype(np.float64), true[known].astype(np.float64)
    return Errors(
        rmse=float(np.sqrt(np.square(p - t).mean())),
        abs_rel=float((np.abs(p - t) / t).mean()),
        delta1=float((np.maximum(p / t, t / p) < 1.25).mean()),
    )


def expected_depth(outputs: Float[Tensor, "n bins"], max_depth: float) -> Float[Tensor, " n"]:
    """Return the depth in metres that a head's outputs stand for.

    DINOv2 (arXiv 2304.07193, section 7.4): bins spread uniformly over the range, normalised
    linearly: p_i = (relu(x_i) + 0.1) / sum_j (relu(x_j) + 0.1), and sum_i p_i c_i over the bins'
    depths c_i (AdaBins, arXiv 2011.14141, equation 4).
    """
    weights = outputs.relu() + 0.1
    depths = torch.linspace(NEAREST, max_depth, outputs.shape[1], device=outputs.device)
    return weights @ depths / weights.sum(dim=1)


def scale_invariant_loss(
    predicted: Float[Tensor, " n"], true: Float[Tensor, " n"]
) -> Float[Tensor, ""]:
    """Return sqrt(mean g^2 - 0.85 (mean g)^2) for g = log p - log t (AdaBins, equation 5)."""
    g = predicted.log() - true.log()
    return (g.var(correction=0) + 0.15 * g.mean().square() + 1e-8).sqrt()


def _metres(pair: Pair, max_depth: float, eigen_crop: bool = False) -> Float32[np.ndarray, "h w"]:
    metres = read_depth(pair.target)
    counted = (metres >= NEAREST) & (metres <= max_depth)
    if eigen_crop:
        if metres.shape != _NYU_SHAPE:
            raise ImageError("depth.eigen_crop is for maps of 640x480 px")
        inside = np.zeros_like(counted)
        inside[_EIGEN_CROP] = True
        counted &= inside
    return np.where(counted, metres, np.float32(np.nan))


def _task(settings: DepthSettings) -> Task:
    def predict(outputs: Tensor) -> Tensor:
        return expected_depth(outputs, settings.max_depth)

    def loss(outputs: Tensor, true: Tensor) -> Tensor:
        return scale_invariant_loss(predict(outputs), true)

    def score(predicted: Tensor, true: Tensor) -> float:
        return -float((predicted - true).square().mean().sqrt())

    return Task("depth", settings.bins, loss, predict, score)
