"""Vectors that images are lent by the best of their hash: who lends to whom, and the units of a part.

`dedup.hash_first` decides who lends. Units of a content, beside those of whole parts (`embed.py`): its
*own* vectors, of images that lend and that no unit holds yet, and its *lent* ones, put together of the
own vectors of all parts, where every image has one. Both are addressed by who lends to whom, and say
in `lent.npy` which of the images have no vector of their own there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Bool, Float16, Int64, Shaped

from curate.catalogue.part_files import FACTS, LENT, VALID, VECTORS
from curate.embedding.request import EmbedRequest
from shared.embedders.settings import EmbedderSettings
from shared.storage.commits import building, commit, committed, read_manifest

STAGE, UNIT = "hash", "lenders"
"""Of WORK: where `dedup.hash_first` says who lends to whom."""

Numbers = Int64[np.ndarray, " n"]


@dataclass(frozen=True)
class Lenders:
    """Who lends to whom; images are numbered content by content."""

    contents: Shaped[np.ndarray, " contents"]
    """The contents of parts, sorted."""
    starts: Int64[np.ndarray, " edges"]
    """The number of the first image of each, and one behind the last."""
    lender: Numbers
    """By number, the number of the image whose vector it has, its own where it lends or stands alone;
    -1 without any."""
    lent: Bool[np.ndarray, " n"]
    """By number, whether that is an image of other bytes."""
    lends: Bool[np.ndarray, " n"]
    """By number, whether an image of other bytes has its vector."""

    def save(self, folder: Path) -> None:
        """Write an array for each field."""
        for name, array in vars(self).items():
            np.save(folder / f"{name}.npy", array)

    def numbers(self, content: str) -> slice:
        """Return the numbers of the images of a content."""
        at = int(np.searchsorted(self.contents, np.bytes_(content)))
        return slice(*self.starts[at : at + 2].tolist())


def load_lenders(request: EmbedRequest) -> Lenders:
    """Return who lends to whom by a request; the arrays are memory-mapped."""
    folder = request.work / STAGE / request.lenders_at / UNIT
    names = [field.name for field in fields(Lenders)]
    return Lenders(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in names))


def held(
    request: EmbedRequest, embedder: EmbedderSettings, content: str
) -> Iterator[tuple[Path, Bool[np.ndarray, " n"] | None]]:
    """Yield the units that hold own vectors of a content's images, and which they lack; None: none."""
    for folder, may_lack in request.holders(embedder):
        if committed(unit := folder / content) is not None:
            yield unit, np.load(unit / LENT) if may_lack else None


def lacking(request: EmbedRequest, content: str) -> dict[int, Bool[np.ndarray, " n"]]:
    """Return which images of a content are to be embedded, by the place of an embedder, if any are.

    Of a content of which no image can be decoded that is none of them, by each embedder.
    """
    lenders = load_lenders(request)
    mine = lenders.numbers(content)
    lender = np.asarray(lenders.lender[mine])
    result = {}
    for place, each in enumerate(request.embedders):
        if committed(request.vectors_by(each, request.lenders) / content) is not None:
            continue
        left = lender == np.arange(mine.start, mine.stop)
        units = list(held(request, each, content))
        for _, lack in units:
            left &= False if lack is None else lack
        if left.any() or not (units or (lender >= 0).any()):
            result[place] = left
    return result


def lacking_sha256(request: EmbedRequest, content: str) -> frozenset[str]:
    """Return the sha256 of the images of a content that a request for own vectors embeds."""
    rows = [
        left
        for place, left in lacking(request, content).items()
        if request.by and request.embedders[place] in request.by
    ]
    return (
        frozenset(_sha256(request.facts / content, np.any(rows, axis=0))) if rows else frozenset()
    )


def own_sha256(
    request: EmbedRequest, embedders: Sequence[EmbedderSettings], content: str
) -> set[str] | None:
    """Return the sha256 of a content's images that have vectors of their own in its lent units.

    None where it has no such units by one of the embedders.
    """
    units = [request.vectors(each) / content for each in embedders]
    if any(committed(unit) is None for unit in units):
        return None
    return set(_sha256(request.facts / content, ~np.load(units[0] / LENT)))


def find_failing(content: str, request: EmbedRequest, *, scratch: Path) -> dict[str, list[str]]:
    """Return the sha256 of the images of a content that lend and got no vector: `failing`."""
    lenders = load_lenders(request)
    lends = np.asarray(lenders.lends[lenders.numbers(content)])
    failing = np.zeros_like(lends)
    for embedder in request.embedders if lends.any() else ():
        left = lends.copy()
        for unit, lack in held(request, embedder, content):
            here = left if lack is None else left & ~lack
            failing |= here & ~np.load(unit / VALID)
            left = left & ~here
    return {"failing": _sha256(request.facts / content, failing) if failing.any() else []}


def lend_vectors(content: str, request: EmbedRequest, *, scratch: Path) -> dict[str, Any]:
    """Commit the lent units of a content: each image gets its own vector or that of its lender."""
    lenders = load_lenders(request)
    mine = lenders.numbers(content)
    lender = np.asarray(lenders.lender[mine])
    for embedder in request.embedders:
        out = request.vectors(embedder) / content
        if committed(out) is not None:
            continue
        with building(out, scratch) as beside:
            vectors, valid, runtime = _gather(request, embedder, content, lenders)
            np.save(beside / VECTORS, vectors)
            np.save(beside / VALID, valid)
            np.save(beside / LENT, lenders.lent[mine] | (lender < 0))
            commit(beside, out, {"images": len(lender), "vectors": int(valid.sum())}, runtime)
    return {"images": len(lender)}


def _gather(
    request: EmbedRequest, embedder: EmbedderSettings, content: str, lenders: Lenders
) -> tuple[Float16[np.ndarray, "n d"], Bool[np.ndarray, " n"], dict[str, Any]]:
    """Return the vectors of a content's images, which of them have one, and what computed the first."""
    lender = np.asarray(lenders.lender[lenders.numbers(content)])
    rows = np.flatnonzero(lender >= 0)
    place = np.searchsorted(lenders.starts, lender[rows], side="right") - 1
    sources = [
        (lenders.contents[at].decode(), rows[place == at], int(lenders.starts[at]))
        for at in np.unique(place).tolist()
    ]
    vectors, valid = None, np.zeros(len(lender), bool)
    runtime: dict[str, Any] = {}
    for of, asking, start in sources or [(content, rows, 0)]:
        left, asked = np.ones(len(asking), bool), lender[asking] - start
        for unit, lack in held(request, embedder, of):
            stored = np.load(unit / VECTORS, mmap_mode="r")
            if vectors is None:
                vectors = np.zeros((len(lender), stored.shape[1]), np.float16)
                runtime = (read_manifest(unit) or {}).get("runtime") or {}
            here = left if lack is None else left & ~lack[asked]
            vectors[asking[here]] = stored[asked[here]]
            valid[asking[here]] = np.load(unit / VALID)[asked[here]]
            left = left & ~here
        if left.any():
            raise RuntimeError(f"{of}: {left.sum()} vectors that it lends are gone")
    if vectors is None:
        raise RuntimeError(f"{content}: no unit says how long its vectors are")
    return vectors, valid, runtime


def _sha256(facts: Path, rows: Bool[np.ndarray, " n"]) -> list[str]:
    table = pq.read_table(facts / FACTS, columns=["sha256"])
    found: list[str] = table["sha256"].filter(rows).to_pylist()
    return found
