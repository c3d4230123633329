"""Reads the samples of a shard: fetches images, checks that they are those that were embedded, encodes them."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from curate.catalogue.originals import changed, load_parts
from curate.export.encode import encode
from curate.export.hook import edit
from curate.export.spill import Source, read_spilled
from shared.datasets.dataset import Part
from shared.datasets.sidecars import read_object
from shared.datasets.single_images import fetch, read_ahead
from shared.errors import LvdError
from shared.pictures.images import Header, ImageError
from shared.shard_folder.shards import Sample

if TYPE_CHECKING:
    from curate.export.shards import ExportSettings

AHEAD = 16
"""Images that are asked for before it is their turn."""
THREADS = 8


def read_samples(
    sources: Sequence[Source],
    facts: Sequence[Mapping[str, Any]],
    settings: ExportSettings,
    max_pixels: int,
) -> Iterator[Sample]:
    """Yield the samples of images in the order of `facts`, the rows of `kept_facts`.

    Where one of them has a caption, all have a `.txt`, which is empty where there is none: so
    img2dataset writes them, and readers want the same members in every sample. What is copied from
    a local file is read in its turn, ahead of which the system is told; threads fetch and encode
    the rest. LvdError where an image is another one by now.
    """
    has_captions = any(fact["caption"] for fact in facts)
    ahead: deque[Callable[[], Sample]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for part, fact in zip(_parts_of(sources, facts), facts, strict=True):
            source = sources[fact["source"]]
            read = partial(_read, source, part, fact, settings, has_captions, max_pixels)
            is_near = _is_copied(fact, settings) and part not in source.spills
            if is_near and read_ahead(*_range(source, part, fact)):
                ahead.append(read)
            else:
                ahead.append(pool.submit(read).result)
            if len(ahead) > AHEAD:
                yield ahead.popleft()()
        while ahead:
            yield ahead.popleft()()


def _parts_of(sources: Sequence[Source], facts: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the part of its source that each image is in."""
    numbers = np.array([fact["number"] for fact in facts], np.int64)
    places = np.array([fact["source"] for fact in facts], np.int64)
    parts = np.empty(len(facts), np.int64)
    for place in np.unique(places).tolist():
        mine = places == place
        parts[mine] = sources[place].data.part_of(numbers[mine])
    indices: list[int] = parts.tolist()
    return indices


def _is_copied(fact: Mapping[str, Any], settings: ExportSettings) -> bool:
    """Tell whether an image's bytes surely go out as they are."""
    if settings.hook or settings.resize:
        return False
    is_jpeg = fact["format"] == "jpeg"
    return settings.encode == "never" or (settings.encode == "auto" and is_jpeg)


def _read(
    source: Source,
    part: int,
    fact: Mapping[str, Any],
    settings: ExportSettings,
    has_captions: bool,
    max_pixels: int,
) -> Sample:
    """Return the sample of an image of that part of its source."""
    data, found = _bytes(source, part, fact)
    original = data
    try:
        if settings.hook:
            data = edit(data, settings.hook, fact["key"], max_pixels=max_pixels)
        edited_by = settings.hook if data is not original else None
        stored = Header(fact["width"], fact["height"], fact["format"])
        known = None if edited_by else stored
        data, extension = encode(data, settings, max_pixels=max_pixels, header=known)
    except ImageError as error:
        raise LvdError(f"{fact['key']} was decoded once and now is not: {error}") from error
    size = (stored.width, stored.height) if data is original else None
    row = {
        "url": fact["url"],
        "caption": fact["caption"],
        "original_width": fact["width"],
        "original_height": fact["height"],
        "sha256": fact["sha256"],
        "source_part": fact["part"],
        "source_member": fact["member"],
        "seed_similarity": fact["seed_similarity"],
        "nearest_seed": fact["nearest_seed"],
        "edited_by": edited_by,
    }
    beside = {end: x for end, x in zip(settings.members, found, strict=False) if x is not None}
    said = read_object(beside.pop("json")) if "json" in beside else {}
    if has_captions and not beside.get("txt"):
        beside["txt"] = (fact["caption"] or "").encode("utf-8", "backslashreplace")
    return Sample(fact["key"], data, extension, row, beside, said, size)


def _bytes(source: Source, index: int, fact: Mapping[str, Any]) -> tuple[bytes, list[bytes | None]]:
    """Return the bytes of an image, which must be those that were embedded, and of its members."""
    data: bytes | None = None
    found: list[bytes | None] = []
    if index in source.spills:
        data, *found = read_spilled(source.spills[index], fact["number"])
    if data is None:
        data = fetch(*_range(source, index, fact))
    if hashlib.sha256(data).hexdigest() != fact["sha256"]:
        raise changed(load_parts(source.parts)[index].name)
    return data, found


def _range(
    source: Source, index: int, fact: Mapping[str, Any]
) -> tuple[Part, str, int | None, int]:
    """Return where the bytes of an image are, as `fetch` takes it."""
    return load_parts(source.parts)[index], fact["member"], fact["offset"], fact["bytes"]
