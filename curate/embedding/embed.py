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

from contextlib import ExitStack, closing
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from jaxtyping import Float32

from curate.catalogue.content import Copy, local_copy, remember
from curate.embedding.decoder import Decoder
from curate.embedding.journal import FOLDER, Journal
from curate.embedding.lent_vectors import lacking_sha256
from curate.embedding.new_vectors import Batches, NewVectors
from curate.embedding.part_tables import write_facts, write_look, write_scores
from curate.embedding.previous import find_previous
from curate.embedding.reading import Prepared, Reading, Row, once_each, read_ahead
from curate.embedding.repeats import lent_by
from curate.embedding.request import EmbedRequest
from curate.filters.looks import LOOKS
from curate.state import State
from shared.datasets.dataset import Part
from shared.datasets.parts import PartReader
from shared.embedders.embedder import Preparation, load_forward, load_preparation, runtime
from shared.embedders.settings import EmbedderSettings
from shared.storage.commits import UnderWay, building, commit, committed

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
    """Commit the `missing` units of a part."""
    content, facts = copy.content, request.facts / copy.content
    with ExitStack() as stack:
        reader = stack.enter_context(PartReader(copy.part, scratch, request.columns))
        if request.columns and (scores := request.scores / content) in missing:
            with building(scores, scratch) as beside:
                write_scores(reader.members, request.columns, beside)
                copy.require_unchanged()
                commit(beside, scores, {"images": len(reader.members)})
            if missing == [scores]:
                return
        beside = stack.enter_context(building(facts, scratch))
        UnderWay(0, len(reader.members), weight).write(beside)
        only = _only(request, content)
        stored = len(reader.members) if request.lends is None else len(only or ())
        outputs = {
            place: NewVectors(
                stack.enter_context(building(out, scratch)),
                (stored, state.call("dim", place).result()),
            )
            for place, each in enumerate(request.embedders)
            if (out := request.vectors(each) / content) in missing
        }
        read = Reading(
            reader,
            Decoder(
                stack.enter_context(Journal(request.work / FOLDER / content)),
                max_pixels=request.settings.max_pixels,
                seconds=request.settings.decode_seconds,
            ),
            tuple(map(preparation, request.embedders)),
            tuple(outputs),
            find_previous(request, copy, [request.embedders[place] for place in outputs]),
            facts in missing,
            tuple(LOOKS[name] for name in request.looks if request.look(name) / content in missing),
            only,
        )
        rows = _fill(
            state, request, read, outputs, UnderWay(0, len(reader.members), weight), beside
        )
        copy.require_unchanged()
        for place, output in outputs.items():
            used = state.call("runtime", place).result()
            out = request.vectors(request.embedders[place]) / content
            counts = {"images": len(rows), "vectors": output.close()}
            if request.own and only is not None:
                output.lack([row.sha256 not in only for row in rows])
                counts["own"] = len(only)
            commit(output.folder, out, counts, used)
        for look in read.looks:
            unit = request.look(look.name) / content
            with building(unit, scratch) as of_look:
                write_look(rows, look, of_look)
                commit(of_look, unit, {"images": len(rows)})
        if facts in missing:
            write_facts(rows, copy.part, beside)
            counts = {
                "images": len(rows),
                "corrupt": sum(bool(row.picture.problem) for row in rows),
            }
            said = ("problems", "ignored", "ignored_examples")
            commit(beside, facts, counts | {name: getattr(reader, name) for name in said})


def _only(request: EmbedRequest, content: str) -> frozenset[str] | None:
    """Return the sha256 of the images of a part that are embedded; None: all of them."""
    if request.own:
        return lacking_sha256(request, content)
    return None if request.lends is None else lent_by(request, content)


def _fill(
    state: State,
    request: EmbedRequest,
    read: Reading,
    outputs: dict[int, NewVectors],
    ahead: UnderWay,
    beside: Path,
) -> list[Row]:
    """Fill the vectors of a part by one pass over it; return its rows.

    How much of what lies `ahead` is done is said in `beside` meanwhile.
    """
    threads = request.settings.decode_threads or request.threads
    decoded = 2 * max((request.embedders[place].batch_size for place in outputs), default=16)
    batches = Batches(state, request.embedders, outputs)
    rows: list[Row] = []
    first_of: dict[str, int] = {}
    repeats: list[tuple[int, int]] = []
    said = monotonic()
    with closing(read_ahead(read.reader.members, read, decoded, threads)) as every:
        wanted = every if read.only is None or request.own else once_each(every, read.only)
        for number, row in enumerate(wanted):
            rows.append(row)
            picture = row.picture
            first = first_of.setdefault(row.sha256, number) if row.sha256 else number
            if first < number:
                repeats.append((number, first))
            elif read.previous is not None and picture.earlier >= 0:
                for output, known in zip(outputs.values(), read.previous.vectors, strict=True):
                    output.put([number], known[picture.earlier][None])
            for place, image in picture.prepared.items():
                batches.add(place, number, image)
            picture.prepared = {}
            if monotonic() - said >= SAYS_EVERY:
                replace(ahead, done=number + 1).write(beside)
                said = monotonic()
    batches.finish()
    for output in outputs.values():
        output.repeat(repeats)
    return rows
