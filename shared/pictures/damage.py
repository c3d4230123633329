"""Repairs what browsers overlook: a JPEG's missing end marker, damaged metadata of JPEG and PNG."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np

# Where a JPEG's pixels differ with what is put behind it, it lacks some. libjpeg resumes at one of
# these restart markers, whichever it waits for: a tail that begins with one of the next two is lost.
# Of a last block only one pixel may show, and noise can give it its colour: hence several noises.
_NOISES = np.random.default_rng(0).integers(1, 255, (2, 64), np.uint8)
_END = b"\xff\xd9"
_TAILS = tuple(
    b"".join(noise.tobytes() + bytes((0xFF, 0xD0 + (first + n) % 8)) for n in range(9)) + _END
    for noise in (*_NOISES, *~_NOISES)
    for first in (0, 4)
)
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)
_SAMSUNG_TRAILER = re.compile(rb"\0\0.\x0a(?:.\0\0\0)?[A-Z][A-Za-z]+_\w+", re.DOTALL)
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_APPLICATION = frozenset({*range(0xE0, 0xF0), 0xFE})
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# What decides over colours and the way up; whatever else an application wrote can be left out.
_NEEDED_SEGMENTS = {0xE0: (b"JFIF\0", 14), 0xE1: (b"Exif\0\0", 14), 0xEE: (b"Adobe", 12)}
_TRANSPARENCY_SIZES = {0: range(2, 3), 2: range(6, 7), 3: range(1, 257)}  # by PNG's colour type


def without_metadata(data: bytes, name: str) -> bytes:
    """Return a PNG or JPEG without the chunks or segments that no pixel depends on."""
    if name == "png":
        return data[:8] + b"".join(_needed_chunks(data))
    if name == "jpeg":
        return b"".join(_without_segments(data))
    return data


def _needed_chunks(data: bytes) -> Iterator[bytes]:
    at = 8
    while len(data) - at >= 12:
        length, kind = struct.unpack_from(">I4s", data, at)
        chunk = data[at : at + 12 + length]
        at += 12 + length
        critical = kind[:1].isupper()
        useful = kind == b"eXIf" or (
            kind == b"tRNS" and length in _TRANSPARENCY_SIZES.get(data[25], ())
        )
        if critical or (useful and chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4]))):
            yield chunk
        if kind == b"IEND":
            return
    yield data[at:]


def _segments(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield a JPEG's segments up to its end marker: marker, start, start of the content, end."""
    end = 0
    while found := _MARKER.search(data, end):
        marker, end = found[1][0], found.end()
        if marker not in (_SOI, _EOI):
            end += max(2, int.from_bytes(data[end : end + 2], "big"))
        yield marker, found.start(), min(found.end() + 2, end), end
        if marker == _EOI:
            return


def _without_segments(data: bytes) -> Iterator[bytes]:
    behind = 0
    for marker, start, content, end in _segments(data):
        if marker == _SOS:
            break
        name, least = _NEEDED_SEGMENTS.get(marker, (b"", end))
        needed = data.startswith(name, content) and end - content >= least
        if marker in _APPLICATION and not needed:
            yield data[behind:start]
            behind = end
    yield data[behind:]


def with_end_marker(data: bytes, pixels: Callable[[bytes], bytes]) -> bytes | None:
    """Return a JPEG with its end marker, or None where pixels are missing before it.

    One without the marker is whole if its scans bring every coefficient to its last bit, and if
    what `pixels` decodes does not depend on what follows. A file that was never filled ends in
    zeros, which would decode. Raises what `pixels` raises.
    """
    if data.endswith(_END):
        return data
    trailer = _SAMSUNG_TRAILER.search(data) if data.endswith(b"SEFT") else None
    body = data[: trailer.start()] if trailer else data
    scan = next((end for marker, *_, end in _segments(body) if marker == _SOS), 0)
    if body.find(_END, scan) >= 0:
        return data
    if body.endswith(b"\0\0"):
        body = body.rstrip(b"\0")
        body += b"\0" * body.endswith(b"\xff")  # an escaped byte of the picture
    elif body.endswith(b"\xff"):
        body = body[:-1]
    if _scans_are_complete(body):
        ended = pixels(body + _END)
        if all(pixels(body + tail) == ended for tail in _TAILS):
            return body + _END
    return None


def _scans_are_complete(data: bytes) -> bool:
    """Tell whether a JPEG's scans bring all coefficients of all its components."""
    missing: dict[int, list[int]] = {}  # bits of each coefficient that no scan brought yet
    for marker, _, content, end in _segments(data):
        said = data[content:end]
        try:
            if marker in _FRAMES:
                missing = {said[6 + 3 * n]: [1] * 64 for n in range(said[5])}
            elif marker == _SOS:
                first, last, bits = said[-3:]
                for n in range(said[0]):
                    missing[said[1 + 2 * n]][first : last + 1] = [bits & 15] * (last + 1 - first)
        except (IndexError, KeyError, ValueError):
            return False
    return bool(missing) and not any(any(bits) for bits in missing.values())
