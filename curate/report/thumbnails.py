"""Thumbnails of the images on the contact sheets."""

from __future__ import annotations

import io
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from curate.report.contact_sheets import Tile
from shared.errors import LvdError
from shared.failures import kind_of
from shared.images import ImageError, decode

SIDE = 150  # pixels of the longer side
MAX_PIXELS = 50_000_000  # decoding a larger one takes longer than the rest of a report
ReadImage = Callable[[str], bytes | None]


def thumbnails(
    out: Path, tiles: Iterable[Tile], read_image: ReadImage, read_seeds: Mapping[str, ReadImage]
) -> dict[tuple[str | None, str], bytes]:
    """Return JPEG bytes by `(seed, key)` for the tiles whose images can be read and decoded.

    Kept images are read from `out/shards`, if there are any, each shard opened once; others through
    `read_image`, those of a seed through what `read_seeds` has for it. Either returns None where the
    bytes are gone.
    """
    copied = (out / "shards").is_dir()
    wanted = {(tile.seed, tile.key): tile for tile in tiles if not tile.hidden}
    by_shard: dict[str, dict[str, tuple[str | None, str]]] = defaultdict(dict)
    found = {}
    for name, tile in sorted(wanted.items(), key=lambda item: (item[0][0] or "", item[0][1])):
        if copied and tile.shard is not None and tile.shard_key is not None:
            by_shard[tile.shard][tile.shard_key] = name
        else:
            read = read_image if tile.seed is None else read_seeds.get(tile.seed)
            found[name] = _thumbnail(_read(read, tile.key)) if read else None
    for shard, names in sorted(by_shard.items()):
        for shard_key, data in _members(out / "shards" / f"{shard}.tar", set(names)).items():
            found[names[shard_key]] = _thumbnail(data)
    return {name: jpeg for name, jpeg in found.items() if jpeg is not None}


def _read(read: ReadImage, key: str) -> bytes | None:
    # The crawl may have moved or changed since the run; the report shows what is left.
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


def _thumbnail(data: bytes | None) -> bytes | None:
    if data is None:
        return None
    try:
        image = decode(data, max_pixels=MAX_PIXELS, reduce_to=SIDE)
    except ImageError:
        return None
    image.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85)
    return stream.getvalue()
