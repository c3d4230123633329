"""Heads of unit vectors: 8-bit numbers whose products bound the cosine from above, in whole numbers.

A head is a unit vector's coordinates along principal axes and the norm of the rest, turned (by a DCT,
which is orthonormal) so that no coordinate stands out, and rounded to a common step. By Cauchy and
Schwarz the product of two vectors is at most that of their unrounded heads; of rounded ones h and g,
whose errors have norms a and b, at most h g + a + b (1 + a). A head carries its error, so that a search
among heads misses no pair.

Sums of products of 8-bit numbers are exact, in int32 and in float32 too (below 2^24): what a search
finds depends neither on the processor nor on how it is cut into blocks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, Int8, Int32, Int64, Integer

if TYPE_CHECKING:
    import torch

AXES = 251
"""Axes of a head, at most; with them it has 252 coordinates, and 253 bytes."""
SLACK = np.float32(1e-4)
"""More than the rounding of float32 in making heads, and of their errors."""
WIDEST = 4.1
"""Standard deviations of a coordinate beyond which it is cut off: four of 100,000."""
PRODUCTS = 2**19
"""Products that are looked at together."""
MANY = 2**29
"""Products from which it pays to import torch for 8-bit ones: two seconds of float32."""


def count_axes(dim: int) -> int:
    """Return how many coordinates of a vector stand for it in its head."""
    return min(dim, AXES)


@cache
def turn(width: int) -> Float32[np.ndarray, "width width"]:
    """Return the orthonormal matrix of the discrete cosine transform (DCT-II), whose entries are small."""
    place = np.arange(width)
    basis = np.cos(np.pi / width * np.outer(place + 0.5, place)) * (2 / width) ** 0.5
    basis[:, 0] /= 2**0.5
    return basis.astype(np.float32)


def heads(
    vectors: Float32[np.ndarray, "n d"], axes: Float32[np.ndarray, "d h"]
) -> Int8[np.ndarray, "n h+2"]:
    """Return the heads of unit vectors along orthonormal axes, the last number of each its error."""
    along = vectors @ axes
    rest = np.sqrt(np.maximum(0, 1 - np.einsum("nh,nh->n", along, along)))
    return _rounded(np.column_stack([along, rest]))


def heads_along(
    vectors: Float32[np.ndarray, "n d"], axes: Float32[np.ndarray, "d h"]
) -> Int8[np.ndarray, "n h+2"]:
    """Return heads that lack what the axes leave out: their products are of what lies along these."""
    along = vectors @ axes
    return _rounded(np.column_stack([along, np.zeros(len(along), np.float32)]))


def _rounded(coordinates: Float32[np.ndarray, "n w"]) -> Int8[np.ndarray, "n w+1"]:
    width = coordinates.shape[1]
    turned = coordinates @ turn(width)
    step = _step(width)
    head = np.clip(np.rint(turned / step), -127, 127)
    turned -= head * step
    error = np.sqrt(np.einsum("nh,nh->n", turned, turned))
    return np.column_stack([head, np.minimum(127, np.ceil(127 * np.sqrt(error)))]).astype(np.int8)


def errors(head: Int8[np.ndarray, "n h"]) -> Float32[np.ndarray, " n"]:
    """Return a bound of the norm of each head's error."""
    coded = head[:, -1].astype(np.float32) / 127
    return coded * coded


def rests(head: Int8[np.ndarray, "n h"]) -> Float32[np.ndarray, " n"]:
    """Return a bound of the norm of what the axes leave out of each head's vector."""
    width = head.shape[1] - 1
    along_last = head[:, :width].astype(np.float32) @ turn(width)[-1]
    return np.abs(along_last) * np.float32(_step(width)) + errors(head)


def product_unit(width: int) -> np.float32:
    """Return what one of a product of heads of `width` coordinates stands for."""
    return np.float32(_step(width)) ** 2


class HeadIndex:
    """Heads that others are compared with: by 8-bit products of torch, or float32 ones that are equal.

    `card` computes them where there is one. Torch is used once it is imported (`expect_products`).
    """

    def __init__(self, base: Int8[np.ndarray, "m h"], card: torch.device | None = None) -> None:
        self._error = errors(base)
        self._width = base.shape[1] - 1
        self._unit = product_unit(self._width)
        self._reach = _reach_by(base[:, : self._width], card)
        self._together = max(16, PRODUCTS // max(1, len(base)))

    def reaching(
        self, asked: Int8[np.ndarray, "n h"], least: float | np.float32
    ) -> Iterator[tuple[slice, Int64[np.ndarray, " p"], Int64[np.ndarray, " p"]]]:
        """Yield all pairs of heads whose vectors' cosine may reach `least`, by some of the asked in turn.

        Yields the slice of these, and the rows of the pairs: of the asked, counted from the slice's
        start, ascending, and of the base.
        """
        most = float(self._error.max(initial=0))
        for at in range(0, len(asked), self._together):
            some = slice(at, min(at + self._together, len(asked)))
            error = errors(asked[some])
            lowest = least - SLACK - _both(float(error.max(initial=0)), most)
            row, found, product = self._reach(
                asked[some, : self._width], int(np.floor(lowest / self._unit))
            )
            bound = product * self._unit + _both(error[row], self._error[found])
            may = bound >= least - SLACK
            yield some, row[may], found[may]


def expect_products(count: float) -> None:
    """Import torch where so many products of heads pay for it: then they are 8-bit ones."""
    if count >= MANY:
        _eight_bit()


def _both(
    a: Float32[np.ndarray, " p"] | float, b: Float32[np.ndarray, " p"] | float
) -> Float32[np.ndarray, " p"] | float:
    """Return by how much the product of two vectors may exceed that of heads with such errors."""
    return a + b * (1 + a)


def _step(width: int) -> float:
    return min(1.0, WIDEST / width**0.5) / 127


Reaching = tuple[
    Int64[np.ndarray, " p"],
    Int64[np.ndarray, " p"],
    Integer[np.ndarray, " p"] | Float32[np.ndarray, " p"],
]


def _reach_by(
    base: Int8[np.ndarray, "m w"], card: torch.device | None
) -> Callable[[Int8[np.ndarray, "n w"], int], Reaching]:
    """Return what finds, of asked heads, the rows of both sides whose products reach a number."""
    if card is not None:
        from curate.neighbours.on_card import FlatOnCard

        index = FlatOnCard(base.astype(np.float32), card)

        def on_card(asked: Int8[np.ndarray, "n w"], least: int) -> Reaching:
            limits, product, found = index.range_search(asked.astype(np.float32), least - 0.5)
            return np.repeat(np.arange(len(asked)), np.diff(limits)), found, product

        return on_card

    multiply = products_with(base)

    def on_processor(asked: Int8[np.ndarray, "n w"], least: int) -> Reaching:
        products = multiply(asked)
        flat = np.flatnonzero(products >= products.dtype.type(least))
        row, found = np.divmod(flat, max(1, len(base)))
        return row, found, products.ravel()[flat]

    return on_processor


def products_with(
    base: Int8[np.ndarray, "m w"],
) -> Callable[[Int8[np.ndarray, "n w"]], Int32[np.ndarray, "n m"] | Float32[np.ndarray, "n m"]]:
    """Return what multiplies heads, without their errors, with these: whole numbers below 2^23."""
    multiply = _eight_bit() if "torch" in sys.modules and len(base) else None
    other = base.copy("C") if multiply else base.astype(np.float32)

    def products(
        asked: Int8[np.ndarray, "n w"],
    ) -> Int32[np.ndarray, "n m"] | Float32[np.ndarray, "n m"]:
        if multiply is not None and len(asked):
            return multiply(asked, other)
        return asked.astype(np.float32) @ other.T

    return products


@cache
def _eight_bit() -> Callable[[np.ndarray, np.ndarray], Int32[np.ndarray, "n m"]] | None:
    """Return what multiplies 8-bit rows into int32, or None where the processor does not (by VNNI)."""
    import torch

    able: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    if not (able.get("avx512_vnni") or able.get("avx_vnni")) or not hasattr(torch, "_int_mm"):
        return None

    def multiply(one: np.ndarray, other: np.ndarray) -> Int32[np.ndarray, "n m"]:
        product: torch.Tensor = torch._int_mm(torch.from_numpy(one), torch.from_numpy(other).T)
        return product.numpy()

    return multiply
