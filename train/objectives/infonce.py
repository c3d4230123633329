"""InfoNCE: the views of an image are to be nearer to each other than to any other image's."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize


def infonce_loss(
    views: Float[Tensor, "views n d"], *, group_size: int, temperature: float
) -> Float[Tensor, ""]:
    """Return the InfoNCE loss of the views of n images, a float32 mean over pairs of views.

    The first two are the global ones. Of these it is L_InfoNCE of SSCD (arXiv 2202.10261, section
    4.1), which is NT-Xent of SimCLR (arXiv 2002.05709, eq. 1), with negatives sought among
    `group_size` consecutive images:

        z = views / |views|
        for each group, for each global view i of its images, p the other one of the same image:
            loss += - log(exp(z[i] . z[p] / temperature) / sum over j of the group's global views,
                          j is not i, of exp(z[i] . z[j] / temperature))

    Every further, local view is compared with the global ones, as in SwAV's multi-crop (arXiv
    2006.09882, section 3.2), which gain from it as well:

        for each local view i, for each g of the two global views, p that one of the same image:
            loss += - log(exp(z[i] . z[p] / temperature) / sum over the group's images, j the view
                          g of each, of exp(z[i] . z[j] / temperature))
        loss = loss / (2n + 2n local views)

    So it depends neither on processes nor on micro-batches. Always in float32 (or float64),
    autocast or not. Raises ValueError for groups below 2, rows that they do not divide, or a single
    view.
    """
    count, images = views.shape[:2]
    if group_size < 2 or count < 2 or images % group_size:
        raise ValueError(
            f"InfoNCE of {count} views of {images} images in groups of {group_size}: two views and "
            "a group of two at least, and the groups must come out even"
        )
    with torch.autocast(views.device.type, enabled=False):
        dtype = torch.promote_types(views.dtype, torch.float32)
        groups = normalize(views.to(dtype), dim=-1).unflatten(1, (-1, group_size)).transpose(0, 1)
        both = groups[:, :2].flatten(1, 2)
        own = torch.eye(2 * group_size, dtype=torch.bool, device=views.device)
        among = (both @ both.mT / temperature).masked_fill(own, -torch.inf)
        place = torch.arange(2 * group_size, device=views.device)
        loss = cross_entropy(among.flatten(0, 1), place.roll(group_size).repeat(len(groups)))
        local = count - 2
        if not local:
            return loss
        others = groups[:, 2:].flatten(1, 2) @ both.mT / temperature
        partner = place[:group_size].repeat(len(groups) * local).repeat_interleave(2)
        found = cross_entropy(others.view(-1, group_size), partner)
        return (loss + local * found) / (1 + local)
