"""Stage embed: the images of a part become a table of facts and, for each embedder, vectors.

A map over parts. What is made of a part is addressed by its content (`catalogue.content`) and by
what makes it: `facts/`, `scores/` (columns of the crawl's own tables), a folder for each look (what
filters and lists want of pictures) and `vectors/` (one folder an embedder) hold a unit for each
content. One pass over the part makes whichever are missing, with one decode of an image for all that
see it at the same scale: embedders and looks. Images of the same bytes are decoded and embedded once.
Rows in = rows out: what cannot be read or decoded is a row with a problem. Rows are sorted by name, so
by key.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import lru_cache
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Float16, Float32

from curate.catalogue.content import Copy, local_copy, name_of, remember
from curate.catalogue.part_files import COLUMNS, FACTS, LENT, ROW_GROUP, SCORES, VALID, VECTORS
from curate.embedding.decoder import Decoder
from curate.embedding.journal import FOLDER, Journal
from curate.embedding.lent_vectors import lacking_sha256
from curate.embedding.previous import find_previous
from curate.embedding.reading import Prepared, Reading, Row, once_each, read_ahead
from curate.embedding.repeats import lent_by
from curate.embedding.request import EmbedRequest
from curate.filters.look import Look
from curate.filters.looks import LOOKS
from curate.filters.scores import score_column
from curate.state import Pending, State
from shared.datasets.dataset import Part
from shared.datasets.parts import Member, PartReader
from shared.embedders.embedder import Preparation, load_forward, load_preparation, runtime
from shared.embedders.settings import EmbedderSettings
from shared.storage.commits import UnderWay, building, commit, committed

UNDER_WAY = 2
"""Batches of an embedder that are computed while the next is decoded."""
SAYS_EVERY = 1.0
"""Seconds between two words of a part at work on how far it is."""


class Forwards:
    """The loaded networks of a request, by their place in it: what an embed worker holds."""

    def __init__(self, settings: tuple[EmbedderSettings, ...], threads: int) -> None:
        self._settings, self._threads = settings, threads
        self._loaded = [load_forward(each, threads) for each in settings]

    def dim(self, place: int) -> int:
        """Return the length of an embedder's vectors."""
        return self._loaded[place].dim

    def runtime(self, place: int) -> dict[str, Any]:
        """Return what an embedder is computed with here."""
        return runtime(self._settings[place], self._threads)

    def embed(self, place: int, batch: list[Prepared]) -> Float32[np.ndarray, "n d"]:
        """Return the vectors of prepared images."""
        return self._loaded[place].embed(batch)


def embed_part(state: State, part: Part, request: EmbedRequest, *, scratch: Path) -> dict[str, Any]:
    """Commit what is missing of a part's facts, scores and vectors; return images and content.

    The part is read whole once to learn its content: where that is known, nothing else is done.
    Images of an earlier state of the part are not decoded again, nor those that another part lends.
    """
    with local_copy(part, scratch) as copy:
        missing = [unit for unit in request.units(copy.content) if committed(unit) is None]
        if missing:
            _make(state, copy, request, missing, scratch, weight_of(part))
        if request.lends is None and not request.own:
            # Of a request for facts alone the vectors of what was there are still to be found.
            remember(request.work, part, copy.content, scratch, is_newest=request.by is None)
        unit = request.units(copy.content)[-1] if request.own else request.facts / copy.content
        made = committed(unit)
        assert made is not None  # committed by now
        return {"images": made["own" if request.own else "images"], "content": copy.content}


def weight_of(part: Part) -> int:
    """Return what a part counts for in a guess at what all parts hold: its bytes, where known."""
    return max(1, part.nbytes)


def to_stored(
    vectors: Float[np.ndarray, "n d"],
) -> tuple[Float16[np.ndarray, "n d"], Bool[np.ndarray, " n"]]:
    """Return vectors as they are stored, and which of them are finite and not zero."""
    stored = np.asarray(vectors, np.float32).astype(np.float16)
    return stored, np.isfinite(stored).all(1) & (stored != 0).any(1)


def preparation(embedder: EmbedderSettings) -> Preparation:
    """Return what prepares images for an embedder; made once in a process."""
    return _preparation(embedder.model_dump_json(exclude_unset=True))


@lru_cache(maxsize=16)
def _preparation(embedder: str) -> Preparation:
    return load_preparation(EmbedderSettings.model_validate_json(embedder))


def _make(
    state: State,
    copy: Copy,
    request: EmbedRequest,
    missing: list[Path],
    scratch: Path,
    weight: int,
) -> None:
    content = copy.content
    wanted = [
        place
        for place, each in enumerate(request.embedders)
        if request.vectors(each) / content in missing
    ]
    only = lent_by(request, content) if request.lends is not None else None
    only = lacking_sha256(request, content) if request.own else only
    facts, scores = request.facts / content, request.scores / content
    looks = [LOOKS[name] for name in request.looks if request.look(name) / content in missing]
    with ExitStack() as stack:
        reader = stack.enter_context(PartReader(copy.part, scratch, request.columns))
        if request.columns and scores in missing:
            with building(scores, scratch) as beside:
                _write_scores(reader.members, request.columns, beside)
                copy.require_unchanged()
                commit(beside, scores, {"images": len(reader.members)})
        if missing == [scores]:
            return
        count = stack.enter_context(building(facts, scratch))
        UnderWay(0, len(reader.members), weight).write(count)
        said = monotonic()
        outputs = {
            place: _Vectors(
                stack.enter_context(building(request.vectors(each) / content, scratch)),
                (
                    len(reader.members) if request.lends is None else len(only or ()),
                    state.call("dim", place).result(),
                ),
            )
            for place, each in enumerate(request.embedders)
            if place in wanted
        }
        previous = find_previous(request, copy, [request.embedders[place] for place in wanted])
        journal = stack.enter_context(Journal(request.work / FOLDER / content))
        decoder = Decoder(
            journal,
            max_pixels=request.settings.max_pixels,
            seconds=request.settings.decode_seconds,
        )
        read = Reading(
            reader,
            decoder,
            tuple(map(preparation, request.embedders)),
            tuple(wanted),
            previous,
            facts in missing,
            tuple(looks),
            only,
        )
        forward = _Forward(state, request, outputs)
        rows: list[Row] = []
        threads = request.settings.decode_threads or request.threads
        ahead = 2 * max((request.embedders[place].batch_size for place in wanted), default=16)
        first_of: dict[str, int] = {}
        repeats: list[tuple[int, int]] = []
        wanted_rows: Iterator[Row] = stack.enter_context(
            closing(read_ahead(reader.members, read, ahead, threads))
        )
        if only is not None and not request.own:
            wanted_rows = once_each(wanted_rows, only)
        for number, row in enumerate(wanted_rows):
            rows.append(row)
            picture = row.picture
            first = first_of.setdefault(row.sha256, number) if row.sha256 else number
            if first < number:
                repeats.append((number, first))
            elif previous is not None and picture.earlier >= 0:
                for at, place in enumerate(wanted):
                    outputs[place].put([number], previous.vectors[at][picture.earlier][None])
            for place, image in picture.prepared.items():
                forward.add(place, number, image)
            picture.prepared = {}
            if monotonic() - said >= SAYS_EVERY:
                UnderWay(number + 1, len(reader.members), weight).write(count)
                said = monotonic()
        forward.finish()
        for output in outputs.values():
            output.repeat(repeats)
        copy.require_unchanged()
        for place, output in outputs.items():
            valid = output.close()
            folder = request.vectors(request.embedders[place]) / content
            used = state.call("runtime", place).result()
            counts = {"images": len(rows), "vectors": valid}
            if request.own and only is not None:
                own = np.array([row.sha256 in only for row in rows], bool)
                np.save(output.folder / LENT, ~own)
                counts["own"] = len(only)
            commit(output.folder, folder, counts, used)
        for look in looks:
            unit = request.look(look.name) / content
            with building(unit, scratch) as beside:
                _write_look(rows, look, beside)
                commit(beside, unit, {"images": len(rows)})
        if facts in missing:
            _write_facts(rows, copy.part, count)
            result = {
                "images": len(rows),
                "corrupt": sum(bool(row.picture.problem) for row in rows),
                "problems": reader.problems,
                "ignored": reader.ignored,
                "ignored_examples": reader.ignored_examples,
            }
            commit(count, facts, result)


class _Vectors:
    """The vectors of a part, float16 [n, d] in a file, and which of them are finite and not zero."""

    def __init__(self, folder: Path, shape: tuple[int, int]) -> None:
        self.folder = folder
        self._valid = np.zeros(shape[0], bool)
        self._file: Float16[np.ndarray, "n d"]
        if all(shape):
            self._file = np.lib.format.open_memmap(folder / VECTORS, "w+", np.float16, shape)
        else:  # an empty file cannot be mapped
            self._file = np.empty(shape, np.float16)
            np.save(folder / VECTORS, self._file)

    def put(self, rows: list[int], vectors: Float[np.ndarray, "n d"]) -> None:
        """Store vectors in these rows; what is not finite stays zero."""
        stored, usable = to_stored(vectors)
        places = np.asarray(rows)[usable]
        self._file[places] = stored[usable]
        self._valid[places] = True

    def repeat(self, rows: list[tuple[int, int]]) -> None:
        """Store in the first row of each pair what the second holds."""
        for row, first in rows:
            self._file[row], self._valid[row] = self._file[first], self._valid[first]

    def close(self) -> int:
        """Close both files, which the unit's commit flushes; return how many vectors there are."""
        del self._file
        np.save(self.folder / VALID, self._valid)
        return int(self._valid.sum())


class _Forward:
    """Hands prepared images to the embedders in batches, a few of which are under way."""

    def __init__(self, state: State, request: EmbedRequest, outputs: dict[int, _Vectors]) -> None:
        self._state, self._request, self._outputs = state, request, outputs
        self._batches: dict[int, tuple[list[int], list[Prepared]]] = defaultdict(lambda: ([], []))
        self._under_way: deque[tuple[int, list[int], Pending]] = deque()

    def add(self, place: int, row: int, image: Prepared) -> None:
        """Take an image; a full batch is started."""
        rows, images = self._batches[place]
        rows.append(row)
        images.append(image)
        if len(rows) == self._request.embedders[place].batch_size:
            self._start(place)

    def finish(self) -> None:
        """Embed what is left, and wait for all."""
        for place in sorted(self._batches):
            self._start(place)
        while self._under_way:
            self._store()

    def _start(self, place: int) -> None:
        rows, images = self._batches.pop(place)
        self._under_way.append((place, rows, self._state.call("embed", place, images)))
        while len(self._under_way) > UNDER_WAY * len(self._outputs):
            self._store()

    def _store(self) -> None:
        place, rows, pending = self._under_way.popleft()
        self._outputs[place].put(rows, pending.result())


def _write_facts(rows: list[Row], part: Part, folder: Path) -> None:
    values = {
        "name": [name_of(row.member, part) for row in rows],
        "member": [row.member.member for row in rows],
        "url": [row.member.url for row in rows],
        "caption": [row.member.caption for row in rows],
        "sha256": [row.sha256 for row in rows],
        "width": [row.picture.header and row.picture.header.width for row in rows],
        "height": [row.picture.header and row.picture.header.height for row in rows],
        "format": [row.picture.header and row.picture.header.format for row in rows],
        "bytes": [row.size for row in rows],
        "offset": [row.member.offset for row in rows],
        "problem": [row.picture.problem for row in rows],
        "contrast": [row.picture.contrast for row in rows],
    }
    pq.write_table(
        pa.table(values, COLUMNS), folder / FACTS, row_group_size=ROW_GROUP, compression="zstd"
    )


def _write_look(rows: list[Row], look: Look, folder: Path) -> None:
    values = {name: [row.picture.looks.get(name) for row in rows] for name in look.columns.names}
    pq.write_table(
        pa.table(values, look.columns),
        folder / look.file,
        row_group_size=ROW_GROUP,
        compression="zstd",
    )


def _write_scores(members: list[Member], columns: tuple[str, ...], folder: Path) -> None:
    scores = {
        score_column(column): pa.array(
            [_number(member.columns.get(column)) for member in members], pa.float64()
        )
        for column in columns
    }
    pq.write_table(pa.table(scores), folder / SCORES, row_group_size=ROW_GROUP, compression="zstd")


def _number(value: object) -> float | None:
    try:
        return None if value is None else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
