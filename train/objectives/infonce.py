"""InfoNCE: an image's two views are to be nearer to each other than to any other image's."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize


def infonce_loss(
    first: Float[Tensor, "n d"],
    second: Float[Tensor, "n d"],
    *,
    group_size: int,
    temperature: float,
) -> Float[Tensor, ""]:
    """Return the InfoNCE loss of two views of n images, a float32 mean over views and groups.

    L_InfoNCE of SSCD (arXiv 2202.10261, section 4.1), which is NT-Xent of SimCLR (arXiv
    2002.05709, eq. 1), with negatives sought among `group_size` consecutive images:

        z = features / |features|
        for each group, for each view i of its images, p the other view of the same image:
            loss += - log(exp(z[i] . z[p] / temperature) / sum over j of the group's views,
                          j is not i, of exp(z[i] . z[j] / temperature))
        loss = loss / 2n

    So it depends neither on processes nor on micro-batches. Always in float32 (or float64),
    autocast or not. Raises ValueError for groups below 2, or rows that they do not divide.
    """
    if group_size < 2 or len(first) != len(second) or len(first) % group_size:
        raise ValueError(
            f"InfoNCE of {len(first)} and {len(second)} views in groups of {group_size}: "
            "as many of each, a group needs 2 at least, and the groups must come out even"
        )
    with torch.autocast(first.device.type, enabled=False):
        dtype = torch.promote_types(first.dtype, torch.float32)
        views = [
            normalize(view.to(dtype), dim=-1).unflatten(0, (-1, group_size))
            for view in (first, second)
        ]
        groups = torch.cat(views, dim=1)
        logits = groups @ groups.mT / temperature
        own = torch.eye(2 * group_size, dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(own, -torch.inf)
        partner = torch.arange(2 * group_size, device=logits.device).roll(group_size)
        return cross_entropy(logits.flatten(0, 1), partner.repeat(len(groups)))
