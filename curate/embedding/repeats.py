"""A pass over bytes before embedding: images of the same bytes in several parts are embedded once.

Bytes are read and hashed, and no picture is decoded. What several parts of a dataset hold is *lent* by a
part that is embedded already, else by the first that holds it, which embeds what it lends before any
part is embedded whole, into units of their own. Each part that holds it takes it from there
(`previous.py`), so that the units of a part are those of its bytes alone, as they are without this pass.

Units: `digest_part` (a map over parts), `find_repeats` (a reduce of some 210 bytes for each image of
parts that are to be embedded), and `embed_part` of a request that lends (a map over parts).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int64, Shaped

from curate.catalogue.content import local_copy
from curate.catalogue.digests import Digests, digests_of
from curate.catalogue.part_files import FACTS
from curate.embedding.request import EmbedRequest
from curate.state import State
from shared.datasets.dataset import Part
from shared.datasets.parts import PartReader
from shared.pictures.images import ImageError
from shared.storage.commits import building, commit, committed

VERSION = 1
STAGE, REPEATS = "digests", "repeats"
"""Of WORK: a unit for each content of a part, and one for each call."""
DIGESTS = "digests.npy"
TODO, BOUNDS, LENDER, LENDERS, APART = (
    *("todo.npy", "bounds.npy", "lender.npy"),
    *("lenders.npy", "apart.npy"),
)


@dataclass(frozen=True)
class Lender:
    """A content of a part that has units already."""

    content: str
    facts: Path
    apart: str = ""
    """The address of the `find_repeats` by which it lent them, in units of their own."""


def digest_part(
    state: State, part: Part, request: EmbedRequest, *, scratch: Path
) -> dict[str, Any]:
    """Commit the distinct digests of a part's images, `S32` in their order; return its content.

    Without them where that is embedded already.
    """
    with local_copy(part, scratch) as copy:
        out = request.work / STAGE / str(VERSION) / copy.content
        if request.lacking(copy.content) and committed(out) is None:
            with building(out, scratch) as beside, PartReader(copy.part, scratch) as reader:
                found = set()
                for member in reader.members:
                    with suppress(ImageError):
                        found.add(hashlib.sha256(reader.read(member)).digest())
                np.save(beside / DIGESTS, np.array(sorted(found), "S32"))
                copy.require_unchanged()
                commit(beside, out, {"distinct": len(found)})
        return {"content": copy.content}


def commit_repeats(
    state: State, out: Path, todo: Sequence[str], known: Sequence[Lender], *, scratch: Path
) -> dict[str, Any]:
    """Commit `find_repeats`: no result is made of it, so that it is no stage of a run."""
    if (result := committed(out)) is not None:
        return result
    with building(out, scratch) as beside:
        return commit(beside, out, find_repeats(out, todo, known, beside))


def find_repeats(
    out: Path, todo: Sequence[str], known: Sequence[Lender], beside: Path
) -> dict[str, Any]:
    """Write who lends what to parts that are to be embedded, whose distinct contents are `todo`.

    Files: `todo.npy`, sorted; `bounds.npy` int64 [parts + 1], the rows of each; by row,
    `digests.npy`, and `lender.npy` int64, a place in `lenders.npy` and `apart.npy`: what lends it,
    and by which `find_repeats`. Returns the contents that are to `lend`.
    """
    todo, own = sorted(todo), out.parent.name
    digests = out.parents[2] / STAGE / str(VERSION)
    each = [
        np.load(digests / content / DIGESTS) if committed(digests / content) else np.empty(0, "S32")
        for content in todo
    ]
    holder = np.repeat(np.arange(len(todo)), list(map(len, each)))
    distinct, first, place, count = np.unique(
        np.concatenate([np.empty(0, "S32"), *each]),
        return_index=True,
        return_inverse=True,
        return_counts=True,
    )
    lender = np.full(len(distinct), -1, np.int64)
    for number, one in enumerate(known if len(distinct) else ()):
        if committed(one.facts / one.content) is None:  # another run that lends has ended
            continue
        held = _without_problem(one.facts / one.content)
        at = np.minimum(np.searchsorted(distinct, held), len(distinct) - 1)
        at = at[distinct[at] == held]
        lender[at[lender[at] < 0]] = number
    new = (lender < 0) & (count > 1)
    lender[new] = len(known) + holder[first[new]]
    shared = lender[place] >= 0
    np.save(beside / TODO, np.array(todo, "S"))
    np.save(beside / BOUNDS, np.searchsorted(holder[shared], np.arange(len(todo) + 1)))
    np.save(beside / DIGESTS, distinct[place[shared]])
    np.save(beside / LENDER, lender[place[shared]])
    np.save(beside / LENDERS, np.array([*(one.content for one in known), *todo], "S"))
    np.save(beside / APART, np.array([*(one.apart for one in known), *[own] * len(todo)], "S"))
    return {"lend": [todo[at] for at in np.unique(holder[first[new]])]}


def lent_by(request: EmbedRequest, content: str) -> frozenset[str]:
    """Return the sha256 of what a part is to lend."""
    rows = _rows_of(request, content)
    return frozenset(_as_sha256(rows.digests[rows.lender == rows.number]))


def lenders_of(request: EmbedRequest, content: str) -> Iterator[tuple[EmbedRequest, str, set[str]]]:
    """Yield whence a part takes what others hold too: a request, a content of it, and sha256."""
    rows = _rows_of(request, content)
    for number in np.unique(rows.lender):
        found = set(_as_sha256(rows.digests[rows.lender == number]))
        apart = rows.apart[number].decode()
        yield request.lending(apart) if apart else request, rows.lenders[number].decode(), found


@dataclass(frozen=True)
class _Rows:
    """What `find_repeats` wrote of a part, which is the lender of that `number`."""

    number: int
    digests: Digests
    lender: Int64[np.ndarray, " n"]
    lenders: Shaped[np.ndarray, " all"]
    apart: Shaped[np.ndarray, " all"]


def _rows_of(request: EmbedRequest, content: str) -> _Rows:
    """Return no rows of a part that has changed since, nor where another run has ended this work."""
    assert request.repeats
    folder = request.work / REPEATS / request.repeats / "all"
    if committed(folder) is None:  # another run has done all this
        nothing = np.empty(0, np.int64)
        return _Rows(0, np.empty(0, "S32"), nothing, nothing, nothing)
    todo, bounds, digests, lender, lenders, apart = (
        np.load(folder / name, mmap_mode="r")
        for name in (TODO, BOUNDS, DIGESTS, LENDER, LENDERS, APART)
    )
    at = int(np.searchsorted(todo, np.bytes_(content)))
    is_there = at < len(todo) and todo[at] == np.bytes_(content)
    own = slice(*bounds[at : at + 2]) if is_there else slice(0)
    number = len(lenders) - len(todo) + at
    return _Rows(number, digests[own], lender[own], lenders, apart)


def _as_sha256(digests: Digests) -> list[str]:
    return [bytes(row).hex() for row in digests.view(np.uint8).reshape(-1, 32)]


def _without_problem(facts: Path) -> Digests:
    table = pq.read_table(facts / FACTS, columns=["sha256", "problem"])
    return digests_of(table.filter(pc.equal(table["problem"], "")))
