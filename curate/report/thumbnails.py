"""Thumbnails of the images on the contact sheets."""

from __future__ import annotations

import io
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from curate.report.contact_sheets import Tile
from shared.errors import LvdError
from shared.pictures.images import ImageError, decode
from shared.storage.failures import kind_of

SIDE = 150  # pixels of the longer side
ENLARGED = 260  # the same, of pictures that a page enlarges
ENLARGED_BYTES = 24_000
"""Of a picture that a page enlarges, at most, where the page has room."""
SMALL = 96  # pixels; smaller pictures keep all of them
_SMALLER = ((ENLARGED, 82), (ENLARGED, 60), (180, 60), (SIDE, 40), (SMALL, 30))
"""Sides and qualities that are tried until a picture is small enough."""
MAX_PIXELS = 50_000_000  # decoding a larger one takes longer than the rest of a report
ReadImage = Callable[[str], bytes | None]


def thumbnails(
    out: Path,
    tiles: Iterable[Tile],
    read_image: ReadImage,
    read_seeds: Mapping[str, ReadImage],
    limit: int | None = None,
) -> dict[tuple[str | None, str], bytes]:
    """Return JPEG bytes by `(seed, key)` for the tiles whose images can be read and decoded.

    Kept images are read from `out/shards`, if there are any, each shard opened once; others through
    `read_image`, those of a seed through what `read_seeds` has for it. Either returns None where the
    bytes are gone. With `limit` they are for a page that enlarges them, of so many bytes at most if
    they can be, and very small pictures are PNGs of all their pixels.
    """
    reduce = _thumbnail if limit is None else partial(_within, limit=limit)
    copied = (out / "shards").is_dir()
    wanted = {(tile.seed, tile.key): tile for tile in tiles if not tile.hidden}
    by_shard: dict[str, dict[str, tuple[str | None, str]]] = defaultdict(dict)
    found = {}
    for name, tile in sorted(wanted.items(), key=lambda item: (item[0][0] or "", item[0][1])):
        if copied and tile.shard is not None and tile.shard_key is not None:
            by_shard[tile.shard][tile.shard_key] = name
        else:
            read = read_image if tile.seed is None else read_seeds.get(tile.seed)
            found[name] = _shrunk(read_or_none(read, tile.key), reduce) if read else None
    for shard, names in sorted(by_shard.items()):
        for shard_key, data in _members(out / "shards" / f"{shard}.tar", set(names)).items():
            found[names[shard_key]] = _shrunk(data, reduce)
    return {name: jpeg for name, jpeg in found.items() if jpeg is not None}


def read_or_none(read: ReadImage, key: str) -> bytes | None:
    """Return an image's bytes; None where the crawl has moved or changed since the run."""
    try:
        return read(key)
    except (ImageError, LvdError, OSError) as error:
        if kind_of(error) == "transient":
            raise
        return None


def _members(shard: Path, keys: set[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                key, _, extension = member.name.partition(".")
                picture = key in keys and extension not in ("json", "txt") and member.isreg()
                if picture and (stream := archive.extractfile(member)):
                    found[key] = stream.read()
                    if len(found) == len(keys):
                        break
    except (OSError, tarfile.TarError):
        pass
    return found


def _shrunk(data: bytes | None, reduce: Callable[[bytes], bytes]) -> bytes | None:
    if data is None:
        return None
    try:
        return reduce(data)
    except ImageError:
        return None


def _thumbnail(data: bytes, side: int = SIDE, quality: int = 85) -> bytes:
    image = decode(data, max_pixels=MAX_PIXELS, reduce_to=side)
    image.thumbnail((side, side))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def _within(data: bytes, limit: int) -> bytes:
    """Return the largest of `_SMALLER` that has at most `limit` bytes, or the last."""
    image = decode(data, max_pixels=MAX_PIXELS, reduce_to=ENLARGED)
    if max(image.size) <= SMALL:
        stream = io.BytesIO()
        image.save(stream, "PNG")
        if len(stream.getvalue()) <= limit:
            return stream.getvalue()
    for side, quality in _SMALLER:
        small = image.copy()
        small.thumbnail((side, side))
        stream = io.BytesIO()
        small.save(stream, "JPEG", quality=quality)
        if len(stream.getvalue()) <= limit:
            break
    return stream.getvalue()
