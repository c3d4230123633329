"""Lays one picture on another: mirrored, scaled, shifted and turned, as edited copies are.

Coarse to fine. Shifts of both mirror images in nine sizes and more, and of the six others of a picture
that is turned by quarters in three, are ranked by masked normalised correlation (Padfield, 2012, by
FFT), then the best ones are refined by inverse compositional Gauss-Newton steps (Baker and Matthews,
2004) on affine maps that may deviate a little.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Complex64, Float32, Float64, Integer
from PIL import Image

VERSION = 4

SIDE = 64
"""Longer side of what is compared: small enough for a third of a thumbnail to hold it all."""
LEAST = 0.5
"""Share of the smaller picture that must lie on the other."""
_MOST = 0.8
"""The same where one is turned, or a window around the other: of these much is tried, and chance finds more."""

_COARSE = 32
_FEWEST_PIXELS = 24
_SIZES = [1.13**power for power in range(-4, 5)]
_WINDOWED, _IN_WINDOW = [1.13**power for power in (5, 6)], [1.13**power for power in (-6, -5)]
"""Of a picture in a window of twice its side, and of the window around it."""
_TURNED_SIZES = [1.13**power for power in (-1, 0, 1)]
_LEAST_TURNED = 0.5
"""Correlation from which a turned picture is worth a finer look."""
_STEPS = 10
_CANVAS = 48
_PERIOD = 80  # of the correlation: a canvas beside a picture
_WINDOW_CANVAS, _WINDOW_PERIOD = 68, 100
"""The same where what is beside a picture is twice as large."""
_LARGE_CANVAS, _LARGE_PERIOD = 112, 176
"""The same of what is compared at last: a picture of 64 beside one 1.7 times as large."""
_REPEATS = 0.35
_SHIFTS = 4
_FAR, _NEAR = 5, 3
"""Pixels from an alignment to another shift, as it is looked for and as it is found."""
_LARGEST, _SMALLEST = 2.2, 0.45
"""Scales of a map between two pictures whose longer sides are equal."""
_STRETCH = 1.25
_SQUEEZED = 1.1
_BORDER_SIDE = 128
_PLAIN = 8.0
_LEFT = 0.25

_TURNS = [
    np.array(rows, np.float32)
    for rows in (
        *(((0, 1), (-1, 0)), ((0, -1), (1, 0)), ((-1, 0), (0, -1))),
        *(((0, 1), (1, 0)), ((0, -1), (-1, 0)), ((-1, 0), (0, 1))),
    )
]
"""By quarters, and mirrored; the last is a mirror image upside down."""

Grey = Float32[np.ndarray, "h w"]
Other = Float32[np.ndarray, "i j"]
Points = Float32[np.ndarray, "2 h w"]
"""The y of points, and their x."""
Matrix = Float32[np.ndarray, "2 2"]
Vector = Float32[np.ndarray, "2"]


@dataclass(frozen=True)
class Alignment:
    """A point `p` of a picture lies on `matrix @ p + shift` of the other, in (y, x) from the middles."""

    matrix: Matrix
    shift: Vector


def alignments(one: Image.Image, other: Image.Image) -> Iterator[tuple[Grey, Other, Alignment]]:
    """Yield both pictures as they are compared, and ways to lay one on the other, likely ones first.

    The finer half is computed as it is asked for.
    """
    one, other = without_border(one), without_border(other)
    side = max(_FEWEST_PIXELS, min(SIDE, max(one.size), max(other.size)))
    first, second = _grey(one, side), _grey(other, side)
    edges, others = _features(first), _features(second)
    coarse, coarse_others = (_features(_grey(picture, _COARSE)) for picture in (one, other))
    for start in _starts(coarse, coarse_others):
        found = _refined(coarse, coarse_others, start)
        found = Alignment(found.matrix, found.shift * np.float32(side / _COARSE))
        found = _refined(edges, others, found)
        if _is_edit(start.matrix, found.matrix):
            yield first, second, found


def other_shifts(one: Grey, other: Other, alignment: Alignment) -> Iterator[Alignment]:
    """Yield ways to lay one picture on the other by another shift than `alignment` has, likely ones first.

    Of one that repeats, such as a wall, a fence or a fabric, these are about as good. None is near it.
    """
    from scipy.ndimage import maximum_filter  # slow to import

    edges, others = _features(one), _features(other)
    [score], _ = _correlations(edges, others, alignment.matrix[None], _LARGE_CANVAS, _LARGE_PERIOD)
    own = np.linalg.solve(alignment.matrix, alignment.shift)
    peaks = np.argwhere((score == maximum_filter(score, 5, mode="wrap")) & (score >= _REPEATS))
    found = []
    for place in peaks:
        away = _away(place, edges.shape, _LARGE_CANVAS, _LARGE_PERIOD)
        if np.hypot(*(away - own)) >= _FAR:
            found.append((-float(score[tuple(place)]), away))
    for _, away in sorted(found, key=lambda each: each[0])[:_SHIFTS]:
        start = Alignment(alignment.matrix, (alignment.matrix @ away).astype(np.float32))
        shifted = _refined(edges, others, start)
        if np.hypot(*np.linalg.solve(alignment.matrix, shifted.shift - alignment.shift)) >= _NEAR:
            yield shifted


def laid_on(
    picture: Other, shape: tuple[int, int], alignment: Alignment
) -> tuple[Grey, Bool[np.ndarray, "h w"]]:
    """Return what of `picture` lies on a picture of `shape`, and where that is."""
    points = _points(shape)
    return _sampled(picture, _mapped(points, alignment))


def blurred(picture: Grey, sigma: float) -> Grey:
    """Return a Gaussian blur."""
    from scipy.ndimage import gaussian_filter  # slow to import

    smooth: np.ndarray = gaussian_filter(picture, sigma, mode="nearest", truncate=2.5)
    return smooth


def without_border(picture: Image.Image) -> Image.Image:
    """Return what is inside edges of one colour; the whole where little would be left."""
    scale = min(1, _BORDER_SIDE / max(picture.size))
    width, height = (max(1, round(length * scale)) for length in picture.size)
    pixels = np.asarray(picture.resize((width, height), Image.Resampling.BOX), np.float32)
    top, bottom = (_plain_rows(pixels[::way]) for way in (1, -1))
    left, right = (_plain_rows(pixels.swapaxes(0, 1)[::way]) for way in (1, -1))
    box = left, top, width - right, height - bottom
    if box[2] - box[0] < _LEFT * width or box[3] - box[1] < _LEFT * height:
        return picture
    across, down = picture.width / width, picture.height / height
    left, right = round(box[0] * across), round(box[2] * across)
    top, bottom = round(box[1] * down), round(box[3] * down)
    return picture.crop((left, top, right, bottom))


def _plain_rows(pixels: Float32[np.ndarray, "h w 3"]) -> int:
    """Return how many of the first rows have the colour of the first one, all over."""
    away = np.abs(pixels - np.median(pixels[0], axis=0)).max(-1).mean(-1)
    return int(np.argmax(np.append(away, np.inf) > _PLAIN))


def _grey(picture: Image.Image, side: int) -> Grey:
    """Return brightness with the longer side `side`."""
    scale = side / max(picture.size)
    width, height = (max(_FEWEST_PIXELS // 2, round(length * scale)) for length in picture.size)
    small = picture.convert("L").resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3)
    return blurred(np.asarray(small, np.float32), 0.5)


def _features(picture: Grey) -> Grey:
    """Return edges, as strong in dull places as in bright ones."""
    edges = blurred(picture, 0.7) - blurred(picture, 4.0)
    even: Grey = edges / np.sqrt(blurred(edges * edges, 4.0) + 4)
    return even


def _starts(edges: Grey, others: Other) -> Iterator[Alignment]:
    """Yield the two pictures frame on frame, then the two best of all shifts of all sizes.

    Of either mirror image the best is one of those that follow; a turned one is the last.
    """
    height, width = (there / here for there, here in zip(others.shape, edges.shape, strict=True))
    for mirror in (1, -1):
        yield Alignment(_diagonal(height, mirror * width), np.zeros(2, np.float32))
    shapes = [(1.0, 1.0)]
    if max(height / width, width / height) > _SQUEEZED:
        shapes.append((height, width))  # one may be the other squeezed into another frame
    matrices = [
        _diagonal(size * height, mirror * size * width)
        for height, width in shapes
        for mirror in (1, -1)
        for size in _SIZES
    ]
    ranked = _shifted(edges, others, matrices)
    windowed = [_diagonal(size, size) for size in _WINDOWED]
    ranked += _shifted(edges, others, windowed, least=_MOST)
    around = [_diagonal(size, size) for size in _IN_WINDOW]
    ranked += _shifted(edges, others, around, _WINDOW_CANVAS, _WINDOW_PERIOD, _MOST)
    ranked.sort(key=lambda each: -each[0])
    ways = [float(np.linalg.det(found.matrix)) > 0 for _, found in ranked]
    for row in sorted({0, 1} | {ways.index(way) for way in ways}):
        yield ranked[row][1]
    turned = [np.float32(size) * turn for turn in _TURNS for size in _TURNED_SIZES]
    framed = [
        _diagonal(*others.shape) @ turn @ _diagonal(*1 / np.array(edges.shape)) for turn in _TURNS
    ]
    turned += [each.astype(np.float32) for each in framed if np.linalg.cond(each) > _SQUEEZED]
    score, found = max(_shifted(edges, others, turned, least=_MOST), key=lambda each: each[0])
    if score >= _LEAST_TURNED:
        yield found


def _shifted(
    edges: Grey,
    others: Other,
    matrices: Sequence[Matrix],
    canvas: int = _CANVAS,
    period: int = _PERIOD,
    least: float = LEAST,
) -> list[tuple[float, Alignment]]:
    """Return how alike both are at the best shift of each matrix, less where little is seen, and that.

    At least that share of the smaller one has to be seen.
    """
    score, covered = _correlations(edges, others, np.stack(matrices), canvas, period)
    ranked = np.where((score > -1) & (covered >= least), score * (0.7 + 0.3 * covered), -1)
    places = ranked.reshape(len(matrices), -1)
    found = []
    for matrix, own in zip(matrices, places, strict=True):
        place = int(own.argmax())
        away = _away(np.array(divmod(place, period)), edges.shape, canvas, period)
        shift = (matrix @ away).astype(np.float32)
        found.append((float(own[place]), Alignment(matrix, shift)))
    return found


def _correlations(
    edges: Grey,
    others: Other,
    matrices: Float32[np.ndarray, "n 2 2"],
    canvas: int,
    period: int,
) -> tuple[Float32[np.ndarray, "n period period"], Float32[np.ndarray, "n period period"]]:
    """Return how alike both are at all shifts of each matrix, and the share of the smaller that is seen.

    The other is laid on a square of side `canvas`; where too little is seen, they are alike by -1.
    """
    from scipy import fft

    points = _points((canvas, canvas))
    none = np.zeros(2, np.float32)
    warped, there = zip(
        *(_sampled(others, _mapped(points, Alignment(each, none))) for each in matrices),
        strict=True,
    )
    mask = np.stack(there).astype(np.float32)
    moved = np.stack(warped) * mask

    def spectrum(values: Float32[np.ndarray, "*n h w"]) -> Complex64[np.ndarray, "*n k l"]:
        result: np.ndarray = fft.rfft2(values, (period, period))
        return result

    def correlated(
        one: Complex64[np.ndarray, "k l"], moved: Complex64[np.ndarray, "n k l"]
    ) -> Float32[np.ndarray, "n period period"]:
        result: np.ndarray = fft.irfft2(one * moved.conj(), (period, period))
        return result

    whole, moved_spectrum, mask_spectrum = (
        spectrum(np.ones_like(edges)),
        spectrum(moved),
        spectrum(mask),
    )
    common = correlated(whole, mask_spectrum)
    energy = correlated(spectrum(edges * edges), mask_spectrum)
    energy = energy * correlated(whole, spectrum(moved * moved))
    score = correlated(spectrum(edges), moved_spectrum) / np.sqrt(np.maximum(energy, 1e-3))
    smaller = np.minimum(mask.sum((1, 2), keepdims=True), edges.size)
    return np.where(common >= LEAST * smaller, score, -1), common / np.maximum(smaller, 1)


def _away(
    place: Integer[np.ndarray, " 2"], shape: tuple[int, ...], canvas: int, period: int
) -> Vector:
    """Return where on a canvas the middle of a picture lies, from its own, at a place of correlations."""
    by = np.where(place >= period - canvas, place - period, place).astype(np.float32)
    away: np.ndarray = _middle(shape) - _middle((canvas, canvas)) - by
    return away


def _refined(edges: Grey, others: Other, start: Alignment) -> Alignment:
    """Return the affine map near `start` under which the edges are most alike."""
    points = _points(edges.shape)
    radius = max(edges.shape) / 2
    across = np.stack(np.gradient(edges))
    along = (across[:, None] * points / radius).reshape(4, *edges.shape)
    change = np.concatenate([along, across]).astype(np.float64)
    best, found, now = -1.0, start, start
    for _ in range(_STEPS):
        values, there = _sampled(others, _mapped(points, now))
        if there.sum() < LEAST * edges.size / 4:
            break
        own, lain = (part - part.mean() for part in (edges[there], values[there]))
        alike = float((own * lain).sum())
        gain = alike / max(1e-6, float((own * own).sum()))
        correlation = alike / max(1e-6, float((own * own).sum() * (lain * lain).sum())) ** 0.5
        if correlation > best:
            best, found = correlation, now
        if gain <= 0.05:
            break
        directions = change[:, there]
        # Not by a matrix product: its order of summation depends on the number of threads.
        normal = np.einsum("in,jn->ij", directions, directions)
        error = lain / max(gain, 0.2) - own
        side = np.einsum("in,n->i", directions, error.astype(np.float64))
        step = np.linalg.solve(normal + 1e-3 * len(own) * np.eye(6), side)
        if np.abs(step).max() < 0.01:
            break
        now = _before(step, radius, now)
    return found


def _before(step: Float64[np.ndarray, " 6"], radius: float, now: Alignment) -> Alignment:
    """Return `now` behind the inverse of a small step."""
    matrix = now.matrix @ np.linalg.inv(np.eye(2) + step[:4].reshape(2, 2) / radius)
    shift = now.shift - matrix @ step[4:]
    return Alignment(matrix.astype(np.float32), shift.astype(np.float32))


def _is_edit(start: Matrix, found: Matrix) -> bool:
    """Tell whether a map scales as edits do, and is near where it started."""
    scales = np.linalg.svd(found, compute_uv=False)
    changes = np.linalg.svd(found @ np.linalg.inv(start), compute_uv=False)
    return bool(
        scales[0] < _LARGEST
        and scales[1] > _SMALLEST
        and changes[0] < _STRETCH * changes[1]
        and changes[0] < _STRETCH**1.5
        and changes[1] > _STRETCH**-1.5
    )


def _diagonal(height: float, width: float) -> Matrix:
    return np.array([[height, 0], [0, width]], np.float32)


def _middle(shape: tuple[int, ...]) -> Vector:
    return (np.array(shape, np.float32) - 1) / 2


def _points(shape: tuple[int, ...]) -> Points:
    """Return (y, x) of every pixel from the middle."""
    points: np.ndarray = np.indices(shape, np.float32) - _middle(shape)[:, None, None]
    return points


def _mapped(points: Points, alignment: Alignment) -> Points:
    y, x = points
    rows = zip(alignment.matrix, alignment.shift, strict=True)
    return np.stack([a * y + b * x + shift for (a, b), shift in rows])


def _sampled(picture: Other, points: Points) -> tuple[Grey, Bool[np.ndarray, "h w"]]:
    """Return values between pixels (bilinear), and which of the points lie on the picture."""
    height, width = picture.shape
    middle = _middle(picture.shape)
    lasts = np.float32(height - 1), np.float32(width - 1)
    y, x = (values + half for values, half in zip(points, middle, strict=True))
    there = (y >= 0) & (y <= lasts[0]) & (x >= 0) & (x <= lasts[1])
    inside = [
        np.minimum(np.maximum(values, np.float32(0)), last - np.float32(1e-3))
        for values, last in zip((y, x), lasts, strict=True)
    ]
    (top, left) = corner = [np.floor(values) for values in inside]
    down, right = (values - whole for values, whole in zip(inside, corner, strict=True))
    at = (top * width + left).astype(np.int32)
    flat = picture.ravel()
    above = flat[at] * (1 - right) + flat[at + 1] * right
    below = flat[at + width] * (1 - right) + flat[at + width + 1] * right
    values: Grey = above * (1 - down) + below * down
    return values, there
