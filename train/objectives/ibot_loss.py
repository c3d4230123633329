"""The iBOT loss: at masked places, the student's patches learn the teacher's unmasked ones."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from train.model.logits import Logits
from train.objectives.cross_entropy import ViewPairs, cross_entropy
from train.objectives.targets import Targets
from train.objectives.tiles import are_close


def ibot_loss(
    logits: Logits,
    targets: Targets,
    weights: Float[Tensor, " m"],
    *,
    crops: int,
    temperature: float,
) -> Float[Tensor, ""]:
    """Return the masked-patch loss over the m masked places of `crops` global crops, as float32.

    L_MIM of iBOT (arXiv 2111.07832, section 3.1), with each crop's sum divided by its number of
    masked places as in the published implementations of it and of DINOv2:

        for c in crops:                                     # masked or not
            for i in masked places of c:
                loss[c] += - sum_k q[c, i, k] log softmax(z[c, i] / temperature)_k / masked(c)
        loss = sum(loss) / crops

    `weights` are the 1 / masked(c), by `mask_weights`; `targets` has the teacher's distributions
    at the same m places. No masked place at all makes a loss of 0 with a gradient of 0.
    Raises ValueError where the numbers of places differ.
    """
    places = len(logits.vectors)
    if not places == len(targets) == len(weights):
        raise ValueError(
            f"{places} masked places of the student, {len(targets)} of the teacher "
            f"and {len(weights)} weights: these must be as many"
        )
    pairing = ViewPairs(range(1), range(1))
    return cross_entropy(
        logits.vectors[None],
        logits.prototypes,
        targets,
        [pairing],
        weights / crops,
        temperature,
        close=are_close(logits, temperature),
    )


def mask_weights(masks: Bool[Tensor, "c p"]) -> tuple[Int[Tensor, " m"], Float[Tensor, " m"]]:
    """Return the masked places of c crops of p patches, and the weight of each.

    The places are numbers in the flattened [c p], rising; the weight is 1 / (masked places of the
    crop), so that the places of every crop that has any weigh 1 together.
    """
    shares = 1 / masks.sum(dim=1, keepdim=True).to(torch.float32)
    return masks.flatten().nonzero()[:, 0], shares.expand(masks.shape)[masks]
