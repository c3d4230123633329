"""Tells by their pixels whether two pictures are copies, whatever an embedder thinks of them.

By `benchmarks/second_look.py` on 64 px photographs (Tiny-ImageNet train-00010 to 00019; thresholds
chosen on others of them): of 800 edited copies one is called another and none is unsure, of 50 with
a band of words across them 2 and 4. Of the look-alikes by two embedders, the 150 hardest of 3,000
each, some 15 are unsure, and one pair, which is one picture, is called a copy for certain. Of 30
copies turned by quarters, squashed by 1.4 to 1.8 or with a vignette all are known again, of windows
of 1.4 to 1.7 times the side 0.93, of twice the side 0.70. An edited copy takes 14 ms, a look-alike 33.
Two pages of one template, and crops that overlap by half, can pass for copies; pieces of one pattern
(walls, fences, fabric) hardly do, and crops of such pictures are mostly missed.
Calibration, which looks at thousands of pairs, has a faster and coarser one,
`curate/calibration/same_picture.py`, and asks this one of the few that it leaves unsure. The figures are
of the look before pieces of patterns were laid on each other both ways, and two greys made a drawing.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image

from curate.pixels.align import (
    LEAST,
    Alignment,
    Grey,
    Other,
    alignments,
    blurred,
    laid_on,
    other_shifts,
)

VERSION = 3

SAME, OTHER = 0.62, 0.52
CLEAR = 0.75
"""Nothing better is looked for, unless asked."""
ALONE = 0.85
"""What makes copies without any other sign. Of 218 near pairs of Tiny-ImageNet's shards 0 to 19 that are
clear all 213 planted ones reach it, and none of the others, of which one is a copy."""
DRAWN, TWO = 1 / 3, 1 / 2
"""Share of a picture that has one grey, and that has one of two, from which it is a drawing. Of 6 pairs of
charts of crawl-small all have more of one (0.43 and up). Of its parts 0 to 3, 0.96 of the charts, half of
the screenshots and 0.02 of the photographs are drawings, and 0.009 of Tiny-ImageNet's shard 3."""

ALONE_LEAVES = 0.45
"""Of two shifts that lay a picture on another, what the best may leave unlike, of what the second
leaves, so that it tells one piece of a pattern from others; the less of both is seen, the less of it."""
WHOLE = 0.85
"""Share of the larger picture that lies on the other, from which they lie frame on frame."""

_FINE = 3.0
_WINDOW = 4.0
_FORGIVEN = 0.2
_NOISE = 4.0
_FLAT = 2.0
_EQUAL = 8.0

Verdict = Literal["same", "other", "unsure"]


def judge(one: Image.Image, other: Image.Image) -> Verdict:
    """Tell whether two RGB pictures are edited copies of one: `unsure` where it is hard to say."""
    found = similarity(one, other)
    return "same" if found >= SAME else "other" if found < OTHER else "unsure"


def is_clear_copy(one: Image.Image, other: Image.Image) -> bool:
    """Tell whether two RGB pictures are copies for certain (`ALONE`); two drawn ones never are.

    Charts and pages of one template pass for copies here, so that pixels decide nothing about them.
    """
    return not (is_drawn(one) and is_drawn(other)) and similarity(one, other, ALONE) >= ALONE


def is_drawn(picture: Image.Image) -> bool:
    """Tell whether one or two greys cover much of a picture: a page, the ground of a chart, a chat."""
    most, next_most = sorted(picture.convert("L").histogram(), reverse=True)[:2]
    pixels = picture.width * picture.height
    return most >= DRAWN * pixels or most + next_most >= TWO * pixels


def similarity(one: Image.Image, other: Image.Image, enough: float = CLEAR) -> float:
    """Return how alike two RGB pictures are in [-1, 1], in the best alignment that is found.

    It is the correlation of what is finer than a twentieth of the picture, in windows of that
    order, each weighted by how much there is to see in it. The worst 20% are forgiven, for
    captions. Where another shift is about as good, as of pieces of a wall, and the pictures do not lie
    frame on frame, it is below `SAME`. Nothing better than `enough` is looked for. Brightness,
    contrast and colour matter little. Flat pictures equal flat ones of their colour only.
    """
    flat = [_is_flat(picture) for picture in (one, other)]
    if any(flat):
        return 1.0 if all(flat) and _is_of_one_colour(one, other) else -1.0
    best, told = _best(one, other, enough)
    if best >= SAME > told:  # a pattern, which the finer of both may lie on more clearly
        told = max(told, _best(other, one, enough)[1])
    return told


def _best(one: Image.Image, other: Image.Image, enough: float) -> tuple[float, float]:
    """Return how alike they are as `other` is laid on `one`, and what of that is told by one shift alone."""
    best, told = -1.0, -1.0
    for first, second, alignment in alignments(one, other):
        alike = _alike(first, second, alignment)
        if alike > best:
            best = alike
            told = alike if alike < OTHER else _told_alone(first, second, alignment, alike)
        if told >= enough:
            break
    return best, told


def _told_alone(one: Grey, other: Other, alignment: Alignment, alike: float) -> float:
    """Return `alike`, or less where another shift leaves about as little unlike, as of walls and fences.

    Then the best shift tells that both show one pattern, not that they show one piece of it. Frame on
    frame it does: of two pieces that is unlikely.
    """
    found = [(alike, alignment)]
    for shifted in other_shifts(one, other, alignment):
        found.append((_alike(one, other, shifted), shifted))
    found.sort(key=lambda each: -each[0])
    alike, best = found[0]
    shared = _shared(one, other, best)
    if len(found) == 1 or found[1][0] < OTHER or shared >= WHOLE:
        return alike
    left, least = (1 - alike) / max(1e-6, 1 - found[1][0]), ALONE_LEAVES * shared
    doubt = (left - least) / (1 - least)
    return alike if doubt < 0 else min(alike, SAME - 1e-3 - doubt * (SAME - OTHER))


def _shared(one: Grey, other: Other, alignment: Alignment) -> float:
    """Return the share of the larger picture that lies on the smaller one."""
    _, there = laid_on(other, one.shape, alignment)
    larger = max(one.size, other.size / abs(float(np.linalg.det(alignment.matrix))))
    return float(there.sum() / larger)


def _alike(one: Grey, other: Other, alignment: Alignment) -> float:
    lain, there = laid_on(other, one.shape, alignment)
    mask = there.astype(np.float32)
    smaller = min(one.size, other.size / abs(float(np.linalg.det(alignment.matrix))))
    if mask.sum() < LEAST * smaller:
        return -1.0

    def mean(values: Grey, sigma: float) -> Grey:
        result: Grey = blurred(values * mask, sigma) / np.maximum(blurred(mask, sigma), 1e-3)
        return result

    own, lain = (values - mean(values, _FINE) for values in (one, lain))
    own, lain = (values - mean(values, _WINDOW) for values in (own, lain))
    deviations = [np.sqrt(mean(values * values, _WINDOW)) for values in (own, lain)]
    local = mean(own * lain, _WINDOW) / (deviations[0] * deviations[1] + _NOISE)
    seen = deviations[0] + deviations[1]
    weight = (seen / (seen + 20))[there]
    local = local[there]
    order = np.argsort(local, kind="stable")
    counted = order[np.cumsum(weight[order]) >= _FORGIVEN * weight.sum()]
    alike = float((local[counted] * weight[counted]).sum() / max(1e-6, weight[counted].sum()))
    return alike


def _is_flat(picture: Image.Image) -> bool:
    return (
        float(np.asarray(picture.convert("L").resize((32, 32), Image.Resampling.BOX)).std()) < _FLAT
    )


def _is_of_one_colour(one: Image.Image, other: Image.Image) -> bool:
    means = [np.asarray(picture).reshape(-1, 3).mean(0) for picture in (one, other)]
    return bool(np.abs(means[0] - means[1]).max() < _EQUAL)
