"""The DINO loss: every view of the student learns the teacher's other global views."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from train.model.logits import Logits
from train.objectives.cross_entropy import ViewPairs, cross_entropy
from train.objectives.targets import Targets
from train.objectives.tiles import are_close


def dino_loss(
    logits: Logits,
    targets: Targets,
    *,
    global_views: int = 2,
    temperature: float,
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy over images and pairs of different views, as float32.

    DINO (arXiv 2104.14294, eq. 2 and 3, and eq. 1 for the student's softmax):

        for v in views:                                     # the student's V, globals first
            for g in global views, g is not v:              # the teacher's G
                loss += - sum_k q[g][:, k] * log softmax(z[v] / temperature)[:, k]
        loss = mean over the n images of loss / pairs       # pairs = G (V - 1)

    that is 2 + 2 * 8 = 18 pairs for two global and eight local views. The V n rows of `logits` are
    crop-major (view 0 of all images, then view 1), global views first; `targets` has the G n rows
    of the teacher's. Raises ValueError where rows and views do not fit.
    """
    rows = len(logits.vectors)
    images, odd = divmod(len(targets), global_views)
    if odd or not images or rows % images or rows < len(targets):
        raise ValueError(
            f"{rows} rows of the student and {len(targets)} of the teacher are not "
            f"whole views of the same images, {global_views} of them global"
        )
    if global_views < 2:
        raise ValueError("the DINO loss compares different views: it needs 2 global ones at least")
    student = logits.vectors.unflatten(0, (-1, images))
    everyone = range(global_views)
    pairings = [ViewPairs(range(v, v + 1), [g for g in everyone if g != v]) for v in everyone]
    pairings.append(ViewPairs(range(global_views, len(student)), everyone))
    pairs = global_views * (len(student) - 1)
    weights = torch.full((images,), 1 / (pairs * images), device=student.device)
    return cross_entropy(
        student,
        logits.prototypes,
        targets,
        pairings,
        weights,
        temperature,
        close=are_close(logits, temperature),
    )
