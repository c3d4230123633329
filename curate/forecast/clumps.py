"""Unit vectors that lie as image embeddings lie, with planted near-copies at known places."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

_COMMON = 0.08  # squared share of a centre that all centres have in common: embeddings fill a cone
_FAMILY = 0.27  # squared share of a centre that the centres of its family have in common
_SERIES = 0.5  # squared share of a member's noise that its series has in common
_NEW_SERIES = 0.8  # probability that a member starts a series
_SPECTRUM = 0.375  # noise amplitude falls with this power of the direction's number
_BLOCK = 16_384
_ROUNDS = 100
_POOL = 4_096


def clumps(
    n: int,
    dim: int = 384,
    clumps: int | None = None,
    planted: int | None = None,
    threshold: float = 0.9,
    seed: int = 0,
    dtype: type[np.floating] = np.float32,
) -> tuple[np.ndarray, np.ndarray]:
    """Return unit vectors [n, dim] and planted pairs int64 [planted, 2] of their rows.

    They are made in float32 and kept as `dtype`, so that millions take no more than that.

    **Scales.** Centres come in about sqrt(clumps) families: a centre is a direction common to all,
    plus one of its family, plus its own (cosines near 0.08 between families, near 0.35 inside one).
    Clump sizes are log-normal (sigma 1.5), so that the largest holds a tenth of everything, and
    k-means with sqrt(n) clusters splits the large clumps and merges small ones. `clumps` defaults
    to sqrt(n) / 2.

    **Members.** A member is its centre plus noise, whose spectrum falls as a power law in a basis
    of its family's own: embeddings have far fewer strong directions than dimensions. Clumps differ
    in how tight they are (most are loose), and members in how close to their centre. A third of
    the members come in series (of two, three, ...) that share half of their noise, as frames of
    one scene do. Inside a clump, cosines so spread around 0.25 with a tail of tight clumps and
    series to 0.88; what is not planted practically never reaches 0.9 (some reaches a `threshold`
    set much below that). Spread and tail were set to resemble the mean-centred features that a
    MobileNetV2 has of 10,000 photographs, under k-means with 100 clusters: cosines inside a cluster
    of 0.07, 0.24, 0.46 here and 0.06, 0.23, 0.53 there (5th, 50th, 95th percentile), and a median
    gap between the two nearest centroids of 0.07 in both. (Features that are not centred are harder
    to search by clusters.)

    **Planted pairs.** `planted` (default n / 20) pairs have a cosine uniform in
    [threshold + 0.002, threshold + 0.02]; no vector is in two of them. The first half of `pairs`
    (`planted // 2`) lies across borders: the two ends are nearest to different centres. Such a
    pair straddles the bisector of two neighbouring centres: its middle is their normalised sum plus
    a member's noise, its direction leans towards the line that joins them by a random amount,
    and the bisector cuts it at a random point. So some lie along the shortest way across,
    where a search by clusters sees them worst, and others nearly along the border. The second half
    lies inside clumps: a further member, and a step from it in a random direction. A pair whose
    nearest centres are not as claimed is drawn again.

    The same arguments give the same arrays. Raises ValueError for numbers that do not go together.
    """
    planted = n // 20 if planted is None else planted
    count = max(4, round(math.sqrt(n) / 2)) if clumps is None else clumps
    members = n - 2 * planted
    if count < 2 or planted < 0 or members < count:
        raise ValueError(f"{planted} pairs and {count} clumps do not go into {n} vectors")
    if not 0 < threshold < 0.98:
        raise ValueError(f"threshold {threshold}: planted cosines would not lie between 0 and 1")
    centres, family = clump_centres(count, dim, seed)
    rng = np.random.default_rng([seed, 1])
    bases = _noise_bases(rng, int(family.max()) + 1, dim)
    tightness = (0.12 + 0.43 * rng.random(count) ** 2).astype(np.float32)
    share = rng.lognormal(sigma=1.5, size=count)
    share /= share.sum()

    def members_of(owner: np.ndarray) -> np.ndarray:
        noise = _noise(rng, bases, family[owner], series=True)
        return _around(rng, centres[owner], tightness[owner], noise)

    def inside(k: int) -> tuple[np.ndarray, np.ndarray]:
        first = members_of(np.sort(rng.choice(count, k, p=share)))
        away = _orthogonal(rng.standard_normal((k, dim), np.float32), first)
        return _pair(first, away, _angles(rng, k, threshold), np.ones(k))

    neighbours = np.argsort(-_without_self(centres @ centres.T), axis=1)[:, : min(4, count - 1)]

    def across(k: int) -> tuple[np.ndarray, np.ndarray]:
        one = np.sort(rng.choice(count, k, p=share))
        other = neighbours[one, rng.integers(neighbours.shape[1], size=k)]
        over = _unit(centres[one] - centres[other])  # orthogonal to the sum of two unit vectors
        noise = _orthogonal(_noise(rng, bases, family[one]), over)
        middle = _around(rng, _unit(centres[one] + centres[other]), tightness[one], noise)
        along = _orthogonal(rng.standard_normal((k, dim), np.float32), over, middle)
        lean = rng.uniform(0.2, 1, (k, 1)).astype(np.float32)
        direction = lean * over + np.sqrt(1 - lean**2) * along
        return _pair(middle, direction, _angles(rng, k, threshold), rng.uniform(0.05, 0.95, k))

    place = rng.permutation(n)
    vectors = np.empty((n, dim), dtype)
    owner = np.repeat(np.arange(count), 1 + rng.multinomial(members - count, share))
    for start in range(0, members, _BLOCK):
        vectors[place[start : min(start + _BLOCK, members)]] = members_of(
            owner[start : start + _BLOCK]
        )
    half = planted // 2
    ends = place[members:].reshape(planted, 2)
    cross, stay = (
        lambda a, b: _owner(a, centres) != _owner(b, centres),
        lambda a, b: _owner(a, centres) == _owner(b, centres),
    )
    _fill(vectors, ends[:half], across, cross, threshold)
    _fill(vectors, ends[half:], inside, stay, threshold)
    return vectors, np.sort(ends, axis=1)


def clump_pieces(n: int, dim: int, piece: int, seed: int, draws: int) -> Iterator[np.ndarray]:
    """Yield members of the clumps of `n` vectors, none planted, float32 [up to `piece`, dim] each.

    For more vectors than fit in memory: clumps are as those of `clumps`, and what is drawn by other
    `draws` has the same. Noise is the sum of two of `_POOL` of its family's, so that it costs little.
    """
    count = max(4, round(math.sqrt(n) / 2))
    centres, family = clump_centres(count, dim, seed)
    rng = np.random.default_rng([seed, 1])
    bases = _noise_bases(rng, int(family.max()) + 1, dim)
    tightness = (0.12 + 0.43 * rng.random(count) ** 2).astype(np.float32)
    share = rng.lognormal(sigma=1.5, size=count)
    pool = np.stack([_noise(rng, base[None], np.zeros(_POOL, int)) for base in bases])
    rng = np.random.default_rng([seed, 2, draws])
    for start in range(0, n, piece):
        rows = min(piece, n - start)
        owner = rng.choice(count, rows, p=share / share.sum())
        one, other = (pool[family[owner], rng.integers(_POOL, size=rows)] for _ in range(2))
        yield _around(rng, centres[owner], tightness[owner], _unit(one + other))


def clump_centres(clumps: int, dim: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the unit centres float32 [clumps, dim] behind `clumps`, and the family of each."""
    rng = np.random.default_rng([seed, 0])
    families = max(1, round(math.sqrt(clumps)))
    family = np.sort(rng.integers(families, size=clumps))
    common, of_family, own = (
        _unit(rng.standard_normal((rows, dim), np.float32)) for rows in (1, families, clumps)
    )
    parts = math.sqrt(_COMMON) * common + math.sqrt(_FAMILY) * of_family[family]
    return _unit(parts + math.sqrt(1 - _COMMON - _FAMILY) * own), family


def _noise_bases(rng: np.random.Generator, families: int, dim: int) -> np.ndarray:
    """Return float32 [families, dim, dim]: maps from white noise to each family's noise."""
    amplitude = np.arange(1, dim + 1)[:, None] ** -_SPECTRUM
    rotations = [np.linalg.qr(rng.standard_normal((dim, dim))).Q for _ in range(families)]
    return np.stack([amplitude * rotation for rotation in rotations]).astype(np.float32)


def _noise(
    rng: np.random.Generator, bases: np.ndarray, family: np.ndarray, series: bool = False
) -> np.ndarray:
    """Return unit noise float32 [len(family), dim]; with `series`, some rows resemble the last."""
    shape = (len(family), bases.shape[1])
    white = rng.standard_normal(shape, np.float32)
    if series:
        starts = rng.random(len(family)) < _NEW_SERIES
        shared = rng.standard_normal(shape, np.float32)[np.cumsum(starts) - starts[:1]]
        white = math.sqrt(_SERIES) * shared + math.sqrt(1 - _SERIES) * white
    noise = np.empty_like(white)
    for one in np.unique(family):
        noise[family == one] = white[family == one] @ bases[one]
    return _unit(noise)


def _around(
    rng: np.random.Generator, centres: np.ndarray, tightness: np.ndarray, noise: np.ndarray
) -> np.ndarray:
    """Return members: two of equal tightness m have a cosine of about m, more in one series."""
    jitter = rng.normal(scale=0.05, size=len(tightness))
    squared = np.clip(tightness + jitter, 0.08, 0.68).astype(np.float32)[:, None]
    return _unit(np.sqrt(squared) * centres + np.sqrt(1 - squared) * noise)


def _angles(rng: np.random.Generator, k: int, threshold: float) -> np.ndarray:
    """Return angles whose cosines are uniform in the planted range, float32 rounding left out."""
    return np.arccos(rng.uniform(threshold + 0.002 + 1e-6, threshold + 0.02 - 1e-6, k))


def _pair(
    middle: np.ndarray, direction: np.ndarray, angle: np.ndarray, cut: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return both ends of arcs through `middle` along `direction`, which it cuts at `cut`."""
    ahead, behind = ((angle * share)[:, None].astype(np.float32) for share in (1 - cut, cut))
    first = np.cos(ahead) * middle + np.sin(ahead) * direction
    second = np.cos(behind) * middle - np.sin(behind) * direction
    return _unit(first), _unit(second)


def _fill(
    vectors: np.ndarray,
    ends: np.ndarray,
    draw: Callable[[int], tuple[np.ndarray, np.ndarray]],
    accept: Callable[[np.ndarray, np.ndarray], np.ndarray],
    threshold: float,
) -> None:
    """Draw pairs into the rows `ends` [k, 2] of `vectors` until every one is accepted."""
    for _ in range(_ROUNDS):
        if not len(ends):
            return
        first, second = draw(len(ends))
        _check(first, second, threshold)
        vectors[ends[:, 0]], vectors[ends[:, 1]] = first, second
        ends = ends[~accept(first, second)]
    raise ValueError(
        f"{len(ends)} planted pairs cannot be placed: fewer clumps, or more dimensions"
    )


def _check(first: np.ndarray, second: np.ndarray, threshold: float) -> None:
    cosine = np.einsum("ij,ij->i", first, second, dtype=np.float64)
    if not ((cosine >= threshold + 0.002) & (cosine <= threshold + 0.02)).all():
        raise RuntimeError(
            "planted pairs are not what they should be: a bug in curate/forecast/clumps.py"
        )


def _owner(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return np.argmax(vectors @ centres.T, axis=1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _orthogonal(vectors: np.ndarray, *to: np.ndarray) -> np.ndarray:
    """Return `vectors` less their parts along each of `to` (orthonormal), as unit vectors."""
    for other in to:
        vectors = vectors - np.einsum("ij,ij->i", vectors, other)[:, None] * other
    return _unit(vectors)


def _without_self(similarity: np.ndarray) -> np.ndarray:
    similarity = similarity.copy()
    np.fill_diagonal(similarity, -np.inf)
    return similarity
