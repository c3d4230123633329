"""The KoLeo regulariser: spreads the features of different images evenly over the sphere."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from train.objectives.settings import Estimator


def koleo_loss(
    features: Float[Tensor, "n d"],
    *,
    group_size: int,
    estimator: Estimator = "nearest",
    eps: float = 1e-8,
) -> Float[Tensor, ""]:
    """Return the KoLeo loss of one view of n images, a float32 mean over images and groups.

    The differential entropy estimator of Kozachenko and Leonenko as a loss (L_KoLeo of arXiv
    1806.03198; DINOv2, arXiv 2304.07193, section 4), with neighbours sought among `group_size`
    consecutive images:

        x = features / |features|
        for each group, for each image i of it:
            loss += - log(min over j of the group, j is not i, of |x[i] - x[j]| + eps)
        loss = loss / n

    The gradient reaches both ends of a distance; two equal features do not move each other.
    `squared_cosine` is instead the mean of (x[i] . x[j])^2 over the pairs i != j of each group.

    Always in float32 (or float64), autocast or not: in float16, eps is 0 and equal features give
    infinity. Raises ValueError for groups below 2, or a number of rows that they do not divide.
    """
    if group_size < 2 or len(features) % group_size:
        raise ValueError(
            f"KoLeo of {len(features)} features in groups of {group_size}: "
            "a group needs 2 at least, and the groups must come out even"
        )
    with torch.autocast(features.device.type, enabled=False):
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        groups = normalize(features, dim=-1, eps=eps).unflatten(0, (-1, group_size))
        if estimator == "squared_cosine":
            return _mean_squared_cosine(groups)
        nearest = groups.take_along_dim(_nearest(groups)[:, :, None], dim=1)
        return -torch.log((groups - nearest).norm(dim=-1) + eps).mean()


@torch.no_grad()
def _nearest(groups: Float[Tensor, "g s d"]) -> Int[Tensor, "g s"]:
    """Return the place in its group of each unit vector's nearest other one."""
    cosines = groups @ groups.mT
    cosines.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    return cosines.argmax(dim=2)


def _mean_squared_cosine(groups: Float[Tensor, "g s d"]) -> Float[Tensor, ""]:
    size = groups.shape[1]
    own = torch.eye(size, dtype=torch.bool, device=groups.device)
    squares = (groups @ groups.mT).square().masked_fill(own, 0)
    return squares.sum() / (len(groups) * size * (size - 1))
