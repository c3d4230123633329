"""Numbers that show a collapse while it happens: how the teacher uses prototypes and dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, nan

import torch
from jaxtyping import Float
from torch import Tensor

from train.distributed.ranks import sum_over_ranks
from train.objectives.targets import Targets


@dataclass(frozen=True)
class PrototypeUse:
    """What a batch of targets says of the prototypes: sums over rows, which add up over processes."""

    rows: Float[Tensor, ""]
    entropy: Float[Tensor, ""]
    mass: Float[Tensor, " K"]
    """Each prototype's probability."""
    wins: Float[Tensor, " K"]
    """How many rows give each prototype their largest probability."""


def indicators(targets: Sequence[Targets], features: Float[Tensor, "n d"]) -> dict[str, float]:
    """Return all indicators of one step, over all processes: every process must call it.

    `targets` are this process's, of one kind, or none at all; `features` any of its, whose effective
    ranks are averaged over processes.
    """
    if not targets:
        rank = feature_rank(features)
        rank, processes = sum_over_ranks(torch.stack([rank, rank.new_ones(())]))
        return {"feature_rank": float(rank / processes)}
    use = prototype_use(targets)
    scalars = torch.stack([use.rows, use.entropy, feature_rank(features), use.rows.new_ones(())])
    sums = sum_over_ranks(torch.cat([scalars, use.mass, use.wins]))
    rows, entropy, rank, processes = sums[:4]
    use = PrototypeUse(rows, entropy, *sums[4:].chunk(2))
    return {
        "teacher_entropy": teacher_entropy(use),
        "kl_to_uniform": kl_to_uniform(use),
        "prototype_usage": prototype_usage(use),
        "prototypes_won": float(use.wins.count_nonzero()),
        "feature_rank": float(rank / processes),
    }


@torch.no_grad()
def prototype_use(targets: Sequence[Targets]) -> PrototypeUse:
    """Return the sums over all rows of the targets."""
    scales = targets[0].scales
    prototypes = len(scales)
    mass, wins = torch.zeros((2, prototypes), device=scales.device)
    entropy = mass.new_zeros(())
    for chunk in targets:
        for probabilities in chunk.blocks():
            mass += probabilities.sum(dim=0)
            wins += probabilities.argmax(dim=1).bincount(minlength=prototypes)
            entropy += torch.special.entr(probabilities).sum()
    return PrototypeUse(mass.new_tensor(sum(map(len, targets))), entropy, mass, wins)


def teacher_entropy(use: PrototypeUse) -> float:
    """Return the mean entropy of a target, in nats: near 0 or near log K is a collapse."""
    return float(use.entropy / use.rows)


def kl_to_uniform(use: PrototypeUse) -> float:
    """Return the mean KL(target || uniform) in nats: at 0 the teacher says nothing of its input."""
    return log(len(use.mass)) - teacher_entropy(use)


def prototype_usage(use: PrototypeUse) -> float:
    """Return the perplexity of the mean target as a share of the prototypes, in (0, 1]."""
    return float(torch.special.entr(use.mass / use.rows).sum().exp() / len(use.mass))


@torch.no_grad()
def feature_rank(features: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Return the effective rank of features, from 1 to min(n, d); NaN if one is not finite.

    RankMe (arXiv 2210.02885): exp of the entropy of the singular values, which are divided
    by their sum first. It grows with n: compare values of equally large batches only.
    """
    if not features.isfinite().all():
        return features.new_tensor(nan, dtype=torch.float32)
    wide = features.double()
    moments = wide @ wide.T if len(wide) < wide.shape[1] else wide.T @ wide
    # In float64, as a product's eigenvalues are squares and lose half of the digits.
    singular = torch.linalg.eigvalsh(moments).clamp(min=0).sqrt()
    shares = singular / singular.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return torch.special.entr(shares).sum().exp().float()
