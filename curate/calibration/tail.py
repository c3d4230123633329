"""How rare false copies are at a size that nobody has sampled: the tail of their cosines, by peaks
over threshold.

Pairs of different pictures above a cosine are counted in a sample of m images. Around an image of a
crawl of N there are (N - 1) / (m - 1) times as many, Poisson distributed. Where only every w-th
pair was looked at, one that was found stands for as many as a geometric distribution of mean w
says. Above what the sample saw, a generalised Pareto distribution of y = -log(1 - cosine) goes on,
fitted by probability weighted moments (Hosking and Wallis 1987). In y the upper end of cosines lies
at infinity, and a cloud of d dimensions around each image makes an exponential tail, of shape 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from curate.calibration.near_pairs import LookedPairs

FEWEST_PAIRS = 5
"""Pairs of different pictures without which there is no tail."""
NEAR = 10
"""Pairs before an unsure one, and as many behind it, that say what it is likely to be. In three pools of
some 2,000 training pictures of Tiny-ImageNet and CIFAR-10 with planted copies 19 pairs were unsure: both
copies among them have odds of 0.02, one other too, and the other 16 of 0.74 and up."""
REPLICATES = 300
LOW, HIGH = 0.1, 0.9
"""Quantiles of the bootstrap between which an interval lies."""
_SHAPES = (-0.1, 0.5)
_NEAREST = 1e-7


@dataclass(frozen=True)
class Shares:
    """Shares of the images of a crawl at t thresholds: the estimate, and replicates of it."""

    estimate: Float64[np.ndarray, " t"]
    replicates: Float64[np.ndarray, "b t"]

    def quantile(self, q: float) -> Float64[np.ndarray, " t"]:
        """Return a quantile of the replicates."""
        return np.quantile(self.replicates, q, axis=0)


@dataclass(frozen=True)
class Bootstrap:
    """What another sample might have been: in the first row as it is, then `REPLICATES` others."""

    images: Float64[np.ndarray, "r m"]
    """How often each image is drawn: Poisson distributed."""
    others: Float64[np.ndarray, "r o"]
    """How many pairs of different pictures each pair that is not `same` stands for: geometrically
    distributed, and of an unsure pair, none as often as `odds_of_other` say."""


def draw_bootstrap(looked: LookedPairs, seed: int) -> Bootstrap:
    """Return replicates of the sample of images, and of what was passed over among its pairs."""
    rng = np.random.default_rng(seed)
    drawn = rng.poisson(1.0, (REPLICATES, looked.images))
    weight = looked.weight[~looked.same]
    different = odds_of_other(looked)[~looked.same]
    counts = rng.geometric(1 / weight, (REPLICATES, len(weight)))
    others = counts * (rng.random(counts.shape) < different)
    return Bootstrap(
        np.vstack([np.ones(looked.images), drawn]), np.vstack([weight * different, others])
    )


def odds_of_other(looked: LookedPairs) -> Float64[np.ndarray, " p"]:
    """Return of each pair the odds that it shows two pictures: 0 or 1, unless it is unsure.

    Then they are the share of different ones among the `NEAR` pairs before and behind it, by cosine, of
    which the look was sure; with half a pair of either kind beside these.
    """
    odds = np.where(looked.same, 0.0, 1.0)
    sure = np.flatnonzero(~looked.unsure)
    for place in np.flatnonzero(looked.unsure).tolist():
        at = int(np.searchsorted(sure, place))
        near = sure[max(0, at - NEAR) : at + NEAR]
        weight = looked.weight[near]
        odds[place] = (weight @ odds[near] + 0.5) / (weight.sum() + 1)
    return odds


def count_others(looked: LookedPairs) -> float:
    """Return how many pairs show two pictures, unsure ones by their odds."""
    return float(odds_of_other(looked).sum())


def false_shares(
    looked: LookedPairs,
    size: int,
    thresholds: Float64[np.ndarray, " t"],
    bootstrap: Bootstrap,
) -> Shares:
    """Return the expected share of a crawl's `size` images with another picture at a threshold.

    Thresholds are none below `looked.lowest`. The pairs inside the sample are counted, and only the
    others expected: a crawl that was sampled whole, and looked at whole, is known. In a replicate a
    pair counts as often as both of its images are drawn together, so that a crowd of alike images
    counts as one observation. Of fewer such pairs than `FEWEST_PAIRS` there is no tail: beyond the sample
    they are as frequent as in it.
    """
    other = ~looked.same
    one, two = looked.one[other], looked.other[other]
    lowest = depth(np.array([looked.lowest]))
    excess, beyond = depth(looked.cosine[other]) - lowest, depth(thresholds) - lowest
    growth = (size - 1) / max(1, looked.images - 1)
    seen = min(1.0, looked.images / size / growth)
    reach = looked.cosine[other] >= thresholds.astype(np.float32)[:, None]
    counts = bootstrap.others
    known = 2 * (counts @ reach.T) / looked.images
    rates = seen * known
    if seen < 1:
        few = count_others(looked) < FEWEST_PAIRS
        for at, drawn in enumerate(bootstrap.images):
            pairs = counts[at] * drawn[one] * drawn[two]
            above = reach @ pairs if few else pairs.sum() * survival(excess, pairs, beyond)
            rates[at] += (1 - seen) * 2 * above / looked.images
    shares = 1 - np.exp(-growth * rates)
    return Shares(shares[0], shares[1:])


def true_shares(
    looked: LookedPairs,
    size: int,
    thresholds: Float64[np.ndarray, " t"],
    bootstrap: Bootstrap,
) -> Shares:
    """Return the expected share of a crawl's `size` images with a copy at or above a threshold.

    Of k copies of an image a sample of a share f holds f k on average, and of pairs of them f^2;
    by Cauchy and Schwarz at least E[k]^2 / E[k^2] of the images have a copy. Not less than have
    one in the sample. Replicates of it vary by 1 - f, as those of samples of a finite crawl do.
    """
    share = min(1.0, (looked.images - 1) / max(1, size - 1))
    weights = 1 + np.sqrt(1 - share) * (bootstrap.images - 1)
    images, ends = np.unique(np.stack([looked.one, looked.other]), return_inverse=True)
    ends = ends.reshape(2, -1)
    drawn = weights[:, images]
    found = np.empty((len(weights), len(thresholds)))
    for at, threshold in enumerate(thresholds):
        copies = looked.same & (looked.cosine >= np.float32(threshold))
        pairs = looked.weight[copies]
        count, square = (
            sum(np.bincount(end, values, len(images)) for end in ends[:, copies])
            for values in (pairs, pairs**2)
        )
        first = drawn @ count
        second = drawn @ (count**2 - square)
        known = drawn @ (count > 0)
        least = first**2 / np.maximum(second + share * first, 1e-12)
        found[:, at] = np.minimum(1, np.maximum(known, least) / looked.images)
    return Shares(found[0], found[1:])


def depth(cosines: Float[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Return -log(1 - cosine), finite at 1."""
    return -np.log(np.maximum(1 - np.asarray(cosines, np.float64), _NEAREST))


def survival(
    excess: Float64[np.ndarray, " n"],
    weights: Float64[np.ndarray, " n"],
    beyond: Float64[np.ndarray, " t"],
) -> Float64[np.ndarray, " t"]:
    """Return the share of exceedances that reach `beyond`, by a generalised Pareto fit to them.

    The shape is kept between -0.1 and 0.5, and so that the largest exceedance is possible.
    """
    kept = weights > 0
    order = np.argsort(excess[kept], kind="stable")
    values, mass = excess[kept][order], weights[kept][order]
    total = mass.sum()
    if len(values) < 2 or values[-1] <= 0:
        return (beyond <= 0).astype(np.float64)
    mean = float(mass @ values / total)
    above = total - np.cumsum(mass)
    moment = float((mass * values) @ (above / (total - mass)) / total)
    shape = 2 - mean / max(mean - 2 * moment, 1e-12)
    shape = float(
        np.clip(shape, max(_SHAPES[0], -mean / max(values[-1] - mean, 1e-12)), _SHAPES[1])
    )
    scale = mean * (1 - shape)
    if abs(shape) < 1e-6:
        return np.exp(-beyond / scale)
    return np.maximum(0, 1 + shape * beyond / scale) ** (-1 / shape)
