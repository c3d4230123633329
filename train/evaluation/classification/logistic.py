"""Scores features by scikit-learn's logistic regression, its C chosen on held-out images."""

from __future__ import annotations

import warnings
from copy import deepcopy

import numpy as np
import torch
from jaxtyping import Float, Float16, Float32, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from shared.progress import StageBar, stage_bar
from train.evaluation.classification.holdout import held_out, known_classes, unknown_in_test
from train.evaluation.features import Bank
from train.evaluation.scores import Score
from train.evaluation.settings import LogregSettings
from train.evaluation.standardise import moments

_ROWS = 2048


def logistic(train: Bank, test: Bank, settings: LogregSettings) -> list[Score]:
    """Return the share of `test` that logistic regression on pooled features names rightly.

    The setting says which C won. As by DINOv2 and CLIP it is chosen from a logarithmic grid on a
    held-out part of `train`: the grid is climbed, each fit beginning where the last one ended. The
    best model then goes on from there on all of `train`; `test` is used for nothing but the
    reported number. Features are float32 and standardised: on CIFAR-10 that takes L-BFGS farther in
    as many iterations than unit vectors (an untrained network from 36.8 to 38.2%). The note says
    where the reported fit has not converged, where not all of `train` was taken, and how many images
    of `test` count as wrong because `train` has none of their class. Raises LvdError for what
    `known_classes` and `held_out` cannot divide.
    """
    rows = _drawn(len(train), settings)
    names, pooled = [train.labels[row] for row in rows.tolist()], train.pooled[rows]
    _, labels, answers = known_classes(names, test.labels)
    fitted, held = held_out(labels, settings.held_out, settings.seed)
    with stage_bar("logreg", None, "fits") as bar:
        model = _climb(pooled, labels, fitted, held, settings, bar)
        mean, std = moments(block.float() for block in pooled.split(_ROWS))
        converged = _fit(model, _standardised(pooled, mean, std), labels)
        bar.advance()
    right = sum(
        int((model.predict(_standardised(block, mean, std)) == truth.numpy()).sum())
        for block, truth in zip(test.pooled.split(_ROWS), answers.split(_ROWS), strict=True)
    )
    notes = unknown_in_test(names, test.labels)
    if len(rows) < len(train):
        notes.append(f"fitted on {len(rows):,} of {len(train):,} training images, drawn at random")
    if not converged:
        notes.append(f"L-BFGS stopped at {model.n_iter_.max()} iterations, not converged")
    return [
        Score(
            *("logreg", "top-1", right / len(test), f"C={model.C:g}"),
            note="; ".join(notes),
        )
    ]


def _drawn(images: int, settings: LogregSettings) -> Int[Tensor, " n"]:
    """Return the rows to fit on, in rising order: all, or as many as are allowed."""
    shuffled = torch.randperm(images, generator=torch.Generator().manual_seed(settings.seed))
    return shuffled[: settings.max_images].sort().values


def _climb(
    pooled: Float16[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    fitted: Int[Tensor, " f"],
    held: Int[Tensor, " h"],
    settings: LogregSettings,
    bar: StageBar,
) -> LogisticRegression:
    """Return the model, fitted on some rows, of the smallest C that is best on the held-out ones."""
    mean, std = moments(pooled[rows].float() for rows in fitted.split(_ROWS))
    seen, asked = (_standardised(pooled[rows], mean, std) for rows in (fitted, held))
    model = LogisticRegression(warm_start=True, max_iter=settings.max_iter, tol=settings.tolerance)
    best, most, worse = model, -1.0, 0
    for c in sorted(settings.c):
        _fit(model.set_params(C=c), seen, labels[fitted])
        right = model.score(asked, labels[held].numpy())
        bar.advance()
        worse = worse + 1 if right < most else 0
        if right > most:
            best, most = deepcopy(model), right
        if worse == settings.patience:
            break
    return best


def _fit(
    model: LogisticRegression, features: Float32[np.ndarray, "n d"], labels: Int[Tensor, " n"]
) -> bool:
    """Fit the model, from where it is, and return whether it has converged."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(features, labels.numpy())
    return not any(issubclass(warning.category, ConvergenceWarning) for warning in said)


def _standardised(
    pooled: Float16[Tensor, "n d"], mean: Float[Tensor, " d"], std: Float[Tensor, " d"]
) -> Float32[np.ndarray, "n d"]:
    return ((pooled.float() - mean) / std).numpy()
