"""What was computed already of a part's images, by the hash of their bytes.

Of an earlier state of the part, and of images that other parts hold too, by whoever lends them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float16

from curate.catalogue.content import Copy, earlier_content
from curate.catalogue.part_files import FACTS, VECTORS
from curate.embedding.lent_vectors import own_sha256
from curate.embedding.repeats import lenders_of
from curate.embedding.request import EmbedRequest
from curate.filters.looks import LOOKS
from shared.embedders.settings import EmbedderSettings
from shared.pictures.images import Header
from shared.storage.commits import committed


@dataclass(frozen=True)
class Previous:
    """Images by sha256, their vectors by each embedder that is wanted, what was taken of them."""

    images: int
    """How many rows there are."""
    rows: dict[str, tuple[int, Header | None, str, float]]
    """Row, header, problem and contrast of an image."""
    vectors: tuple[Float16[np.ndarray, "_ _"], ...]
    looks: dict[str, list[dict[str, Any]]]
    """By name and row; without those that were not taken of all of them."""


def find_previous(
    request: EmbedRequest, copy: Copy, wanted: Sequence[EmbedderSettings]
) -> Previous | None:
    """Return what there is of the part's images, of each source where all that is wanted of it is there."""
    found = [
        each
        for whence, content, only in _sources(request, copy, wanted)
        if (each := _read(whence, content, only, wanted)) is not None
    ]
    return _joined(found, len(wanted)) if found else None


def _sources(
    request: EmbedRequest, copy: Copy, wanted: Sequence[EmbedderSettings]
) -> Iterator[tuple[EmbedRequest, str, set[str] | None]]:
    """Yield requests, contents that were embedded by them, and the sha256 to take; None: all."""
    earlier = earlier_content(request.work, copy.place)
    if earlier is not None and earlier != copy.content:
        yield request.lent("") if request.own else request, earlier, None
        for lent in map(request.lent, request.earlier):
            if (own := own_sha256(lent, wanted, earlier)) is not None:
                yield lent, earlier, own
    if request.repeats and request.lends is None:
        yield from lenders_of(request, copy.content)


def _read(
    request: EmbedRequest,
    content: str,
    only: set[str] | None,
    wanted: Sequence[EmbedderSettings],
) -> Previous | None:
    folders = [request.vectors(embedder) / content for embedder in wanted]
    if any(committed(folder) is None for folder in [request.facts / content, *folders]):
        return None
    columns = ["sha256", "width", "height", "format", "problem", "contrast"]
    facts = pq.read_table(request.facts / content / FACTS, columns=columns)
    usable = pc.and_(pc.is_valid(facts["sha256"]), pc.equal(facts["problem"], ""))
    if only is not None:
        usable = pc.and_(usable, pc.is_in(facts["sha256"], pa.array(sorted(only), pa.string())))
    taken = np.flatnonzero(usable.to_numpy())
    rows = {
        fact["sha256"]: (row, _header(fact), fact["problem"], fact["contrast"])
        for row, fact in enumerate(facts.take(taken).to_pylist())
    }
    looks = {
        name: pq.read_table(unit / LOOKS[name].file).take(taken).to_pylist()
        for name in request.looks
        if committed(unit := request.look(name) / content) is not None
    }
    vectors = tuple(np.load(folder / VECTORS, mmap_mode="r")[taken] for folder in folders)
    return Previous(len(taken), rows, vectors, looks)


def _joined(found: Sequence[Previous], embedders: int) -> Previous:
    """Return several as one: of an image that two have, the first counts."""
    rows: dict[str, tuple[int, Header | None, str, float]] = {}
    start = 0
    for each in found:
        for sha256, (row, header, problem, contrast) in each.rows.items():
            rows.setdefault(sha256, (start + row, header, problem, contrast))
        start += each.images
    looks = {
        name: [taken for each in found for taken in each.looks[name]]
        for name in found[0].looks
        if all(name in each.looks for each in found)
    }
    vectors = tuple(
        np.concatenate([each.vectors[place] for each in found]) for place in range(embedders)
    )
    return Previous(start, rows, vectors, looks)


def _header(fact: dict[str, Any]) -> Header | None:
    if fact["width"] is None:
        return None
    return Header(fact["width"], fact["height"], fact["format"])
