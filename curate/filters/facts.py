"""Filters by the facts of an image: its size, shape, bytes, format, contrast and domain."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float64, Int64
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from curate.filters.addresses import domains_of, host_of, normalise_domain
from curate.filters.filter import Filter, Finding

Format = Literal["jpeg", "png", "webp", "gif", "bmp", "tiff"]


Domain = Annotated[str, AfterValidator(normalise_domain)]


class FactsSettings(BaseModel):
    """An image that one of these excludes is `low_quality`; bounds are inclusive, None is off."""

    model_config = ConfigDict(extra="forbid")

    min_side: int | None = Field(32, ge=1)
    """Shorter side in pixels."""
    max_aspect: float | None = Field(8.0, ge=1)
    """Longer side over shorter side."""
    min_pixels: int | None = Field(None, ge=1)
    """Width times height."""
    min_bytes_per_pixel: float | None = Field(None, gt=0)
    """Bytes of the file over pixels: what is below is compressed beyond use, or nearly flat."""
    odd_size: float | None = Field(None, ge=0)
    """How many interquartile ranges beyond the crawl's quartiles the root of the area may lie, as in
    cleanvision, which takes 3."""
    formats: list[Format] | None = Field(None, min_length=1)
    """The formats that are wanted, by content."""
    domains: list[Domain] | None = Field(None, min_length=1)
    """The domains that are wanted, with those below them; an image without a URL is of none."""
    denied_domains: list[Domain] | None = Field(None, min_length=1)
    """The domains that are not wanted, with those below them."""
    min_contrast: float | None = Field(2.0, ge=0, le=127)
    """Standard deviation of the luminance, of 255: below it the image is near-blank."""


def _sides(facts: pa.Table) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Return widths and heights; 1 where there was no header, as in a corrupt image."""
    width, height = (
        facts[side].fill_null(1).to_numpy().astype(np.int64) for side in ("width", "height")
    )
    return width, height


def _find_small(facts: pa.Table, least: int) -> Finding:
    short = np.minimum(*_sides(facts))
    return short < least, lambda row: f"shorter side {short[row]} px is below {least}"


def _find_long(facts: pa.Table, most: float) -> Finding:
    sides = _sides(facts)
    short, long = np.minimum(*sides), np.maximum(*sides)

    def reason(row: int) -> str:
        return f"aspect ratio {long[row] / max(1, short[row]):.5g} is above {most:g}"

    return long > most * short, reason


def _find_few_pixels(facts: pa.Table, least: int) -> Finding:
    width, height = _sides(facts)
    pixels = width * height
    return pixels < least, lambda row: f"area {pixels[row]:,} px is below {least:,}"


def _find_few_bytes(facts: pa.Table, least: float) -> Finding:
    width, height = _sides(facts)
    share = facts["bytes"].to_numpy() / np.maximum(1, width * height)
    return share < least, lambda row: f"{share[row]:.4g} bytes a pixel are below {least:g}"


def _roots(facts: pa.Table) -> Float64[np.ndarray, " n"]:
    """Return the side in pixels of a square of each image's area."""
    width, height = _sides(facts)
    roots: Float64[np.ndarray, " n"] = np.sqrt(width.astype(np.float64) * height)
    return roots


def _usual_sizes(facts: pa.Table, ranges: float) -> list[float]:
    """Return the least and the most root of an area that is usual among readable images."""
    readable = facts.filter(pc.and_(pc.is_valid(facts["width"]), pc.equal(facts["problem"], "")))
    if not len(readable):
        return [0.0, 0.0]
    low, high = np.percentile(_roots(readable), [25, 75])
    beyond = ranges * (high - low)
    return [float(max(0, low - beyond)), float(high + beyond)]


def _find_odd_size(facts: pa.Table, usual: list[float]) -> Finding:
    roots, (least, most) = _roots(facts), usual

    def reason(row: int) -> str:
        side = "below" if roots[row] < least else "above"
        return (
            f"odd size: the root of its area, {roots[row]:.1f} px, is {side} "
            f"the crawl's usual {least:.1f} to {most:.1f}"
        )

    return (roots < least) | (roots > most), reason


def _find_other_formats(facts: pa.Table, wanted: list[str]) -> Finding:
    formats = facts["format"]
    failing = pc.invert(pc.is_in(formats, pa.array(wanted, pa.string()))).to_numpy()
    said = ", ".join(wanted)
    return failing, lambda row: f"format {formats[row].as_py() or 'unknown'} is none of {said}"


def _hosts(facts: pa.Table) -> list[str]:
    return [host_of(url) for url in facts["url"].to_pylist()]


def _domain_among(host: str, domains: set[str]) -> str:
    """Return which of the domains a host is, or is below; "" where none."""
    return next((domain for domain in domains_of(host) if domain in domains), "")


def _find_other_domains(facts: pa.Table, wanted: list[str]) -> Finding:
    hosts, domains = _hosts(facts), set(wanted)
    failing = np.array([not _domain_among(host, domains) for host in hosts], bool)
    return failing, lambda row: f"domain {hosts[row] or 'unknown'} is none of quality.domains"


def _find_denied_domains(facts: pa.Table, denied: list[str]) -> Finding:
    hosts, domains = _hosts(facts), set(denied)
    found = [_domain_among(host, domains) for host in hosts]
    failing = np.array([bool(domain) for domain in found], bool)
    return failing, lambda row: f"domain {hosts[row]} is denied by {found[row]}"


def _find_blank(facts: pa.Table, least: float) -> Finding:
    contrast = facts["contrast"].to_numpy()

    def reason(row: int) -> str:
        return f"near-blank: contrast {contrast[row]:.1f} is below {least:g}"

    return contrast < np.float32(least), reason


MIN_SIDE = Filter("min_side", ("width", "height"), _find_small)
MAX_ASPECT = Filter("max_aspect", ("width", "height"), _find_long)
MIN_PIXELS = Filter("min_pixels", ("width", "height"), _find_few_pixels)
MIN_BYTES_PER_PIXEL = Filter("min_bytes_per_pixel", ("width", "height", "bytes"), _find_few_bytes)
ODD_SIZE = Filter("odd_size", ("width", "height", "problem"), _find_odd_size, _usual_sizes)
FORMATS = Filter("formats", ("format",), _find_other_formats)
DOMAINS = Filter("domains", ("url",), _find_other_domains, may_lack="url")
DENIED_DOMAINS = Filter("denied_domains", ("url",), _find_denied_domains, may_lack="url")
MIN_CONTRAST = Filter("min_contrast", ("contrast",), _find_blank)
