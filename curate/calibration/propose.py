"""Calibration: the two thresholds of an embedder, found on the images that they will be used on.

Dedup: an image and its edited copies should reach the threshold, an image and its nearest non-copy
should not. Retrieve: a seed image should find its own kind, so the threshold is taken from the
similarity of each seed image to its nearest other.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64, UInt8
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from shared.errors import LvdError

SIDE = 64
SAME = 0.85
"""Correlation from which two pictures are copies. Measured on crawl-small: copies of photographs
reach 0.90 to 1.00, different photographs with the nearest vectors 0.72 at most."""

_SCALES = (60, 57, 54)
_FLAT = 2.0

FEWEST = 8
"""Calibration on fewer images than this says nothing."""
RETRIEVE_QUANTILE = 0.1
SEPARATES_AT = 0.8
"""Best F1 below which an embedder does not tell copies from others, whatever the threshold."""
TOLERATED = 0.01
"""False-positive rate that is accepted where F1 says nothing."""
_PLATEAU = 0.01
_MOST_COPIES = 64
_QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
_BINS = 20
_BLOCK = 1024

Thumbnail = UInt8[np.ndarray, "64 64"]
Thumbnails = Callable[[int], Thumbnail | None]
"""Gives `thumbnail` of the image in a row of the vectors; None when unreadable."""


@dataclass(frozen=True)
class Distribution:
    """Cosines, summed up for reading: their number, quantiles, and counts in the shared bins."""

    name: str
    count: int
    quantiles: dict[str, float]
    histogram: tuple[int, ...]


@dataclass(frozen=True)
class Calibration:
    """A proposed threshold, and what is to be expected of it."""

    kind: str
    """`dedup` or `retrieve`."""
    threshold: float
    recall: float
    """Share of edited copies (dedup) or of other seed-like images (retrieve) that pass."""
    false_positive_rate: float | None
    """Dedup: share of images whose nearest non-copy among the sampled passes."""
    crawl_share: float | None
    """Retrieve: share of the sampled crawl that passes, relevant or not."""
    f1: float | None
    """Dedup: the harmonic mean of recall and precision, of one copy and one non-copy an image."""
    positives: Distribution
    negatives: Distribution
    bins: tuple[float, ...]
    recall_by_edit: dict[str, float] = field(default_factory=dict)

    @property
    def separates(self) -> bool:
        """False where no threshold tells copies from others: the embedder does not fit."""
        return self.f1 is None or self.f1 >= SEPARATES_AT

    def to_dict(self) -> dict:
        """Return all fields, JSON-able."""
        return asdict(self)


def edits(image: Image.Image, rng: np.random.Generator) -> dict[str, Image.Image]:
    """Return edited copies of an RGB image, by the name of the edit, as crawls are full of them."""
    width, height = image.size
    brightness = rng.uniform(1.2, 1.4)
    if rng.random() < 0.5:
        brightness = 1 / brightness
    share = rng.uniform(0.90, 0.95)
    crop = max(1, round(width * share)), max(1, round(height * share))
    left = int(rng.integers(0, width - crop[0] + 1))
    top = int(rng.integers(0, height - crop[1] + 1))
    blur = ImageFilter.GaussianBlur(min(width, height) * rng.uniform(0.003, 0.006))
    half = max(1, width // 2), max(1, height // 2)
    return {
        "jpeg": _reencoded(image, int(rng.integers(20, 41))),
        "half": image.resize(half, Image.Resampling.LANCZOS),
        "blur": image.filter(blur),
        "brightness": ImageEnhance.Brightness(image).enhance(brightness),
        "crop": image.crop((left, top, left + crop[0], top + crop[1])),
        "grey": ImageOps.grayscale(image).convert("RGB"),
        "caption": _captioned(image),
    }


def thumbnail(image: Image.Image) -> Thumbnail:
    """Return what `same_picture` compares: grey, squeezed to a square."""
    grey = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(grey, dtype=np.uint8)


def same_picture(one: Thumbnail, other: Thumbnail) -> bool:
    """Tell whether two thumbnails are of one picture, either of them cropped to 84% or more.

    The test is the highest correlation, over sizes and shifts, of one inside the other. Flat
    pictures equal flat ones only.
    """
    flat = one.std() < _FLAT, other.std() < _FLAT
    if any(flat):
        return all(flat)
    if np.corrcoef(one.ravel(), other.ravel())[0, 1] >= SAME:
        return True
    return _found_inside(one, other) or _found_inside(other, one)


def calibrate_dedup(
    originals: Float[np.ndarray, "n d"],
    edited: Float[np.ndarray, "n e d"],
    crawl: Float[np.ndarray, "m d"],
    rows: Int64[np.ndarray, " n"],
    thumbnail_of: Thumbnails,
    edit_names: tuple[str, ...] = (),
) -> Calibration:
    """Return the dedup threshold of best F1 between edited copies and nearest non-copies.

    `originals` are sampled images, `edited` their edited copies, and `rows` where the originals
    stand in `crawl`, the sample searched for non-copies. A crawl is full of copies that nobody
    lists, so of an image's neighbours the nearest is taken that is another picture by its pixels
    (`same_picture`), whatever the embedder thinks of it. F1 weighs each image's one non-copy like
    one copy. Where it hardly changes with the threshold, the middle of that range is proposed. An
    embedder whose best F1 is below 0.8 gets the lowest threshold with a false-positive rate of at
    most 1%: it finds few copies, and drops little else.

    Expected rates are those of the sample: in a larger crawl the nearest non-copy is nearer.
    Raises LvdError when there are too few images.
    """
    originals, edited, crawl = _unit(originals), _unit(edited), _unit(crawl)
    negatives = nearest_other(originals, crawl, np.asarray(rows), thumbnail_of)
    negatives = negatives[np.isfinite(negatives)]
    if len(negatives) < FEWEST:
        raise LvdError(
            f"calibration found {len(negatives)} images with a non-copy beside them and needs "
            f"{FEWEST}: declare the embedder's thresholds.dedup, or use a larger crawl"
        )
    positives = np.einsum("ned,nd->ne", edited, originals)
    threshold, f1 = _best_threshold(positives.ravel(), negatives)
    names = edit_names or tuple(str(number) for number in range(positives.shape[1]))
    bins = _bins(threshold, positives, negatives)
    return Calibration(
        kind="dedup",
        threshold=threshold,
        recall=float((positives >= threshold).mean()),
        false_positive_rate=float((negatives >= threshold).mean()),
        crawl_share=None,
        f1=f1,
        positives=_distribution("edited copies", positives, bins),
        negatives=_distribution("nearest non-copies", negatives, bins),
        bins=tuple(bins.tolist()),
        recall_by_edit={
            name: float((positives[:, column] >= threshold).mean())
            for column, name in enumerate(names)
        },
    )


def calibrate_retrieve(
    seeds: Float[np.ndarray, "s d"],
    crawl: Float[np.ndarray, "m d"],
    rows: Int64[np.ndarray, " n"],
    thumbnail_of: Thumbnails,
    quantile: float = RETRIEVE_QUANTILE,
) -> Calibration:
    """Return the relevance threshold: the `quantile` of leave-one-out seed similarities.

    Each seed image of `rows` is taken out and looked up among the others, as a crawled image of
    its kind would be. At the quantile 0.1, nine in ten of such images are found; lower ones are
    ruled by the oddest seed images. Copies among the seeds are passed over (`same_picture`), or
    they would raise the threshold. `thumbnail_of` speaks of rows of `seeds`.

    Raises LvdError when there are too few seed images.
    """
    seeds, crawl = _unit(seeds), _unit(crawl)
    rows = np.asarray(rows)
    left_out = nearest_other(seeds[rows], seeds, rows, thumbnail_of)
    left_out = left_out[np.isfinite(left_out)]
    if len(left_out) < FEWEST:
        raise LvdError(
            f"calibration found {len(left_out)} different seed images and needs {FEWEST}: declare "
            "the embedder's thresholds.retrieve, or give more seed images"
        )
    threshold = _rounded(float(np.quantile(left_out, quantile, method="lower")), np.floor)
    crawled = np.concatenate(
        [_nearest(crawl[start : start + _BLOCK], seeds) for start in range(0, len(crawl), _BLOCK)]
        or [np.empty(0, np.float32)]
    )
    bins = _bins(threshold, left_out, crawled)
    return Calibration(
        kind="retrieve",
        threshold=threshold,
        recall=float((left_out >= threshold).mean()),
        false_positive_rate=None,
        crawl_share=float((crawled >= threshold).mean()) if len(crawled) else 0.0,
        f1=None,
        positives=_distribution("seeds to other seeds", left_out, bins),
        negatives=_distribution("crawl to seeds", crawled, bins),
        bins=tuple(bins.tolist()),
    )


def nearest_other(
    queries: Float32[np.ndarray, "n d"],
    vectors: Float32[np.ndarray, "m d"],
    rows: Int64[np.ndarray, " n"],
    thumbnail_of: Thumbnails,
) -> Float64[np.ndarray, " n"]:
    """Return each unit query's cosine to its nearest neighbour that shows another picture.

    `rows` is where the queries themselves stand in `vectors`. NaN where the `_MOST_COPIES` nearest
    are all copies, or there is no other. Thumbnails are asked for only as far as they are needed.
    """
    known: dict[int, Thumbnail | None] = {}

    def look_up(row: int) -> Thumbnail | None:
        if row not in known:
            known[row] = thumbnail_of(row)
        return known[row]

    found = np.full(len(queries), np.nan)
    for start in range(0, len(queries), _BLOCK):
        cosines = (queries[start : start + _BLOCK] @ vectors.T).clip(-1, 1)
        for at, near in enumerate(np.argsort(-cosines, axis=1, kind="stable"), start):
            own = int(rows[at])
            for row in near[: _MOST_COPIES + 1].tolist():
                if row == own or _are_copies(look_up(own), look_up(row)):
                    continue
                found[at] = cosines[at - start, row]
                break
    return found


def render(calibration: Calibration) -> str:
    """Return both distributions as text, at most 100 columns wide, and what is expected below."""
    positives, negatives, bins = calibration.positives, calibration.negatives, calibration.bins
    width = 33
    lines = [f"{'cosine':>15}   {positives.name:<{width + 6}}   {negatives.name}"]
    marked = min(bisect_right(bins, calibration.threshold), len(bins) - 1) - 1
    for at in reversed(range(len(bins) - 1)):
        cells = [_bar(side, at, width) for side in (positives, negatives)]
        lines.append(
            f"{bins[at]:7.4f} {bins[at + 1]:7.4f}{'>' if at == marked else ' '} |{' |'.join(cells)}"
        )
    if calibration.kind == "dedup":
        expected = (
            f"expected: finds {calibration.recall:.1%} of edited copies; "
            f"{calibration.false_positive_rate:.1%} of images have a non-copy that reaches it"
        )
    else:
        expected = (
            f"expected: finds {calibration.recall:.1%} of seed-like images; "
            f"{calibration.crawl_share:.1%} of the crawl reaches it"
        )
    lines += [f"{calibration.kind} threshold {calibration.threshold}", expected]
    if calibration.recall_by_edit:
        by_edit = (f"{name} {share:.0%}" for name, share in calibration.recall_by_edit.items())
        lines.append(f"recall by edit: {', '.join(by_edit)}")
    if not calibration.separates:
        lines.append(
            f"no threshold tells copies from others with this embedder (best F1 {calibration.f1:.2f}"
            f", {SEPARATES_AT} at least is usable)"
        )
    return "\n".join(lines)


def _found_inside(whole: Thumbnail, part: Thumbnail) -> bool:
    from skimage.feature import match_template

    for side in _SCALES:
        size = (side, side)
        template = np.asarray(Image.fromarray(part).resize(size, Image.Resampling.BOX))
        if match_template(whole, template).max() >= SAME:
            return True
    return False


def _reencoded(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer, formats=["JPEG"]).convert("RGB")


def _captioned(image: Image.Image) -> Image.Image:
    """Return the image with a white strip below it that holds a line of something dark."""
    width, height = image.size
    strip = max(1, round(height * 0.1))
    canvas = Image.new("RGB", (width, height + strip), "white")
    canvas.paste(image, (0, 0))
    line = (
        width // 10,
        height + strip // 3,
        max(width // 10, width * 9 // 10),
        height + strip * 2 // 3,
    )
    ImageDraw.Draw(canvas).rectangle(line, fill=(30, 30, 30))
    return canvas


def _are_copies(one: Thumbnail | None, other: Thumbnail | None) -> bool:
    return one is not None and other is not None and same_picture(one, other)


def _best_threshold(
    positives: Float[np.ndarray, " p"], negatives: Float[np.ndarray, " n"]
) -> tuple[float, float]:
    """Return the threshold by the criterion of `calibrate_dedup`, and the best F1."""
    values = np.unique(np.concatenate([positives, negatives]).astype(np.float64))
    candidates = np.concatenate([values[:1], (values[1:] + values[:-1]) / 2])
    scores = _f1(positives, negatives, candidates)
    if scores.max() < SEPARATES_AT:
        rates = 1 - np.searchsorted(np.sort(negatives), candidates) / len(negatives)
        tolerated = candidates[rates <= TOLERATED]
        return _rounded(tolerated[0] if len(tolerated) else 1.0, np.ceil), float(scores.max())
    good = scores >= scores.max() - _PLATEAU
    first = last = int(scores.argmax())
    while first > 0 and good[first - 1]:
        first -= 1
    while last < len(good) - 1 and good[last + 1]:
        last += 1
    return _rounded((candidates[first] + candidates[last]) / 2, np.round), float(scores.max())


def _f1(
    positives: Float[np.ndarray, " p"],
    negatives: Float[np.ndarray, " n"],
    thresholds: Float64[np.ndarray, " t"],
) -> Float64[np.ndarray, " t"]:
    recall, false = (
        1 - np.searchsorted(np.sort(values), thresholds, side="left") / len(values)
        for values in (positives.astype(np.float64), negatives.astype(np.float64))
    )
    return 2 * recall / (recall + false + 1)


def _rounded(threshold: float, towards: Callable[[float], float]) -> float:
    """Return few enough digits to paste, and enough of them where all cosines are nearly 1."""
    scale = 10**4 if threshold < 0.99 else 10**7
    return min(1.0, float(towards(threshold * scale) / scale))


def _nearest(
    block: Float32[np.ndarray, "n d"], others: Float32[np.ndarray, "m d"]
) -> Float32[np.ndarray, " n"]:
    return (block @ others.T).max(1).clip(-1, 1)


def _unit(vectors: Float[np.ndarray, "*n d"]) -> Float32[np.ndarray, "*n d"]:
    """Return rows of length 1; zero rows stay zero."""
    vectors = np.asarray(vectors, np.float32)
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def _bins(threshold: float, *cosines: Float[np.ndarray, ...]) -> Float64[np.ndarray, " edges"]:
    """Return shared bin edges around the threshold; the lowest twentieth is in the first bin."""
    both = np.concatenate([values.ravel() for values in cosines])
    low, high = float(np.quantile(both, 0.05)), float(both.max())
    low, high = min(low, threshold), max(high, threshold)
    return np.linspace(low if high - low > 1e-6 else high - 1e-6, high, _BINS + 1)


def _distribution(
    name: str, cosines: Float[np.ndarray, ...], bins: Float64[np.ndarray, " edges"]
) -> Distribution:
    values = np.asarray(cosines, np.float64).ravel()
    counts, _ = np.histogram(values.clip(bins[0], bins[-1]), bins)
    quantiles = np.quantile(values, _QUANTILES) if len(values) else np.zeros(len(_QUANTILES))
    return Distribution(
        name=name,
        count=len(values),
        quantiles={f"{q:g}": float(v) for q, v in zip(_QUANTILES, quantiles, strict=True)},
        histogram=tuple(counts.tolist()),
    )


def _bar(distribution: Distribution, at: int, width: int) -> str:
    share = distribution.histogram[at] / max(1, distribution.count)
    most = max(distribution.histogram) / max(1, distribution.count)
    return f"{'#' * round(width * share / max(most, 1e-9)):<{width}} {share:5.1%}"
