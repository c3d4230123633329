"""A second look at two images: do their pixels show one picture, whatever an embedder thinks?

Of thumbnails, eleven times as fast as `curate/pixels`, which finds more edited copies (99 % of 510, not
96 %), and takes crops that overlap by half for copies: among seed images these are no copies.
"""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from curate.pixels.same import Verdict

SIDE = 32
SAME, UNSURE = 0.65, 0.55
"""Correlations of details from which two pictures are one, or may be one. On Tiny-ImageNet's shards 10
to 19, 96 % of 1,100 single edits of 100 photographs reach the first, and two in three of their borders
of 15 %. Of 3,555 copies of photographs of shards 0 to 19 (the edits of `benchmarks/planted.py`) 8 do
not, and all reach the second, as 7 % of the 518 nearest pairs of different photographs do."""
SAME_DRAWN = 0.8
"""Of two drawn ones, the correlation from which they are one; from `SAME` on they may be. Of 125 pairs of
different charts, screens and pages of the built-in sample's kind, near by `bundled-copies`, 38 %
reach `SAME` and 11 % this; of 30 edits of such pictures each, all of JPEG, a third, colour, mirror
and grey, 0.80 of caption, 0.70 of crop, 0.60 of rotation and 0.23 of border."""

REPEATED, SHIFTS = 0.5, 2
"""Correlation of the details of a thumbnail with themselves elsewhere, and at how many shifts (with their
opposites), from which it shows a pattern, of which one piece is like another. All of 112 crops of drawn
walls, tiles, facades, fences and fabric and of scikit-image's bricks reach it, none of 32 of its grass and
gravel, and 1 % of 800 photographs of Tiny-ImageNet's shard 3; at one shift alone 4 % of these, and 7 % of
pictures of a few soft colours."""

_FLAT = 2.0
_FAR, _COMMON = 4, 0.4
"""Pixels to elsewhere at least, and the share of a thumbnail that lies on itself there."""
_SIGMA = 2.5
_NOISE = 4.0
_MARGIN = 1
_SIZES = (
    *((side, side) for side in (32, 30, 29, 28, 27, 26, 25, 24)),
    *((29, 32), (28, 32), (27, 32)),
)
"""Heights and widths at which one is looked for inside the other: whole, crops to 80 % of the area,
borders of 15 %, and strips of 10, 15 and 20 % above or below."""
_ANGLES = (-5, 5)
_UPRIGHT = 28
"""Side of what is left of a rotated square without its corners."""
_KEPT = 2_048
"""So many thumbnails at one size are kept for other pairs of theirs, in some 20 MB."""

Thumbnail = UInt8[np.ndarray, "32 32"]
Pictures = UInt8[np.ndarray, "n _ _"]
Details = Float32[np.ndarray, "n _ _"]


def thumbnail(image: Image.Image) -> Thumbnail:
    """Return what `same_picture` compares: grey, squeezed to a square."""
    grey = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(grey, dtype=np.uint8)


def same_picture(one: Thumbnail, other: Thumbnail) -> bool:
    """Tell whether two thumbnails are of one picture, either of them edited, or pieces of one pattern.

    Flat pictures equal flat ones only.
    """
    flat = _are_flat(one, other)
    return all(flat) if any(flat) else alignment(one, other) >= SAME


def judge_thumbnails(one: Thumbnail, other: Thumbnail, are_drawn: bool = False) -> Verdict:
    """Tell whether they are of one picture, and where it is hard to say, as of pieces of one pattern.

    Of drawn ones it is told more strictly, and never doubted for their lines and grids. Flat pictures
    equal flat ones only.
    """
    flat = _are_flat(one, other)
    if any(flat):
        return "same" if all(flat) else "other"
    same, unsure = (SAME_DRAWN, SAME) if are_drawn else (SAME, UNSURE)
    found = alignment(one, other, same)
    if found >= same:
        repeats = not are_drawn and any(_repeats(each.tobytes()) for each in (one, other))
        return "unsure" if repeats else "same"
    return "unsure" if found >= unsure else "other"


def _are_flat(one: Thumbnail, other: Thumbnail) -> tuple[bool, bool]:
    return bool(one.std() < _FLAT), bool(other.std() < _FLAT)


@lru_cache(_KEPT)
def _repeats(picture: bytes) -> bool:
    """Tell whether the details of a thumbnail lie well on themselves at several shifts, as a wall's do."""
    from scipy import fft
    from scipy.ndimage import maximum_filter

    [details, _] = _sought(picture, _SIZES[0])
    period, whole = (2 * SIDE, 2 * SIDE), np.ones_like(details)
    spectra = [fft.rfft2(values, period) for values in (details, details**2, whole)]
    alike, energy, common = (
        fft.irfft2(one * other.conj(), period)
        for one, other in ((spectra[0], spectra[0]), (spectra[1], spectra[2]), (spectra[2],) * 2)
    )
    there = np.roll(energy[::-1, ::-1], 1, (0, 1))  # what of itself lies on it
    steps = fft.fftfreq(2 * SIDE, 1 / (2 * SIDE))
    far = (np.hypot(*np.meshgrid(steps, steps)) >= _FAR) & (common >= _COMMON * SIDE**2)
    score = alike / np.sqrt(np.maximum(energy * there, np.float32(1e-6)))
    peaks = far & (score >= REPEATED) & (score == maximum_filter(score, 3, mode="wrap"))
    return bool(peaks.sum() >= 2 * SHIFTS)


def alignment(one: Thumbnail, other: Thumbnail, enough: float = SAME) -> float:
    """Return the highest correlation of details over mirroring, sizes, shifts and small rotations.

    It is at most 1. Details are what is left of a picture without its coarse lights and shades,
    which horizons and lit objects have in common. Looks no further once it reaches `enough`.
    """
    first, second = one.tobytes(), other.tobytes()
    whole_one, whole_other = (_sought(picture, _SIZES[0])[0] for picture in (first, second))
    best = -1.0
    for size in _SIZES:
        best = max(best, _correlate(whole_one, _sought(second, size)))
        best = max(best, _correlate(whole_other, _sought(first, size)))
        if best >= enough:
            return best
    return max(best, _correlate(whole_one, _sought_rotated(second)))


@lru_cache(_KEPT)
def _sought(picture: bytes, size: tuple[int, int]) -> Details:
    """Return the details of a thumbnail and of its mirror image at that height and width."""
    return _details(_resized(_both_ways(picture), size))


@lru_cache(_KEPT // len(_SIZES))
def _sought_rotated(picture: bytes) -> Details:
    """Return the details of a thumbnail and of its mirror image, each rotated, without corners."""
    rotated = np.stack([_rotated(way, angle) for way in _both_ways(picture) for angle in _ANGLES])
    corner = (SIDE - _UPRIGHT) // 2
    inner = slice(corner, corner + _UPRIGHT)
    return _details(rotated)[:, inner, inner]


def _both_ways(picture: bytes) -> Pictures:
    whole = np.frombuffer(picture, np.uint8).reshape(SIDE, SIDE)
    return np.stack([whole, whole[:, ::-1]])


def _details(pictures: Pictures) -> Details:
    """Return pictures without their low frequencies, of equal contrast everywhere."""
    values = pictures.astype(np.float32)
    fine = values - _blurred(values)
    return fine / (np.sqrt(_blurred(fine**2)) + np.float32(_NOISE))


def _blurred(pictures: Details) -> Details:
    height, width = pictures.shape[1:]
    return _blur(height) @ pictures @ _blur(width).T


@cache
def _blur(side: int) -> Float32[np.ndarray, "side side"]:
    """Return the matrix that blurs columns of that length."""
    from scipy.ndimage import gaussian_filter1d  # slow to import

    return gaussian_filter1d(np.eye(side, dtype=np.float32), _SIGMA, axis=0)


def _correlate(whole: Float32[np.ndarray, "32 32"], parts: Details) -> float:
    """Return the highest correlation of any part, without its margin, with any window of whole."""
    cut = parts[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    windows = np.lib.stride_tricks.sliding_window_view(whole, cut.shape[1:])
    rows, others = windows.reshape(-1, cut[0].size), cut.reshape(len(cut), -1)
    others = others - others.mean(axis=1, keepdims=True)
    products = rows @ others.T  # the mean of a row adds nothing: the others are centred
    spread = np.einsum("np,np->n", rows, rows) - rows.mean(axis=1) ** 2 * rows.shape[1]
    norms = np.sqrt(np.outer(spread.clip(0), np.einsum("np,np->n", others, others)))
    return float(min(1.0, (products / np.maximum(norms, np.float32(1e-6))).max()))


def _resized(pictures: Pictures, size: tuple[int, int]) -> Pictures:
    box = Image.Resampling.BOX
    return np.stack([np.asarray(Image.fromarray(p).resize(size[::-1], box)) for p in pictures])


def _rotated(picture: Thumbnail, angle: int) -> Thumbnail:
    return np.asarray(Image.fromarray(picture).rotate(angle, Image.Resampling.BICUBIC))
