"""Lends what several parts of a dataset hold, byte by byte: the order of the units of `repeats`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from curate.catalogue.content import earlier_content, place_of, recall
from curate.embedding.embed import embed_part
from curate.embedding.repeats import REPEATS, STAGE, VERSION, Lender, commit_repeats, digest_part
from curate.embedding.request import EmbedRequest, unit_name
from curate.stage import Failure, Runner, Unit, Workers
from shared.datasets.dataset import Part
from shared.errors import LvdError
from shared.storage.commits import committed, discard
from shared.storage.files import fingerprint


@contextmanager
def lend_repeats(
    runner: Runner,
    request: EmbedRequest,
    todo: Sequence[Part],
    known: Iterable[str],
    workers: Workers,
) -> Iterator[tuple[EmbedRequest, set[str]]]:
    """Embed what several parts hold; give the request by which all of them take it from there.

    And the names of parts that hold all bytes of an earlier one. What fails here fails again, and is
    told, when its part is embedded whole. What was lent is removed at the end.
    """
    new = [part for part in todo if request.lacking(recall(request.work, part))]
    units = [Unit(unit_name(part), (part, request)) for part in new]
    parts: dict[str, Part] = {}
    again = {
        part.name
        for part, result in zip(new, runner.map(digest_part, units, workers=workers), strict=True)
        if not isinstance(result, Failure) and parts.setdefault(result["content"], part) is not part
    }
    by_content = {content: request.lacking(content) for content in parts}
    parts = {content: part for content, part in parts.items() if by_content[content]}
    digests = [request.work / STAGE / str(VERSION) / content for content in by_content]
    if not parts:  # the others lack something else
        discard_all(digests, runner.scratch)
        yield request, again
        return
    lacking = [each for each in request.embedders if any(each in x for x in by_content.values())]
    there = [earlier_content(request.work, place_of(part)) for part in todo]
    there += [*by_content, *(recall(request.work, part) for part in todo)]
    whole = {x for x in there if x and x not in parts and not request.lacking(x)} | set(known)
    lenders = [Lender(content, request.facts) for content in sorted(whole)]
    for folder in sorted((request.work / REPEATS).glob("*/all")):  # of runs that were cut off
        lending = request.lending(folder.parent.name, lacking)
        for content in (committed(folder) or {"lend": []})["lend"]:
            if all(committed(unit) is not None for unit in lending.units(content)):
                lenders.append(Lender(content, lending.facts, lending.repeats))
    about = [[one.content, one.apart] for one in lenders]
    by = [request.vectors(each).name for each in lacking]
    address = fingerprint([REPEATS, sorted(parts), about, request.facts.name, by])
    folder = request.work / REPEATS / address / "all"
    [found] = runner.map(
        commit_repeats, [Unit(REPEATS, (folder, list(parts), lenders))], workers=workers
    )
    if isinstance(found, Failure):
        raise LvdError(found.line)
    lending = request.lending(address, lacking)
    units = [
        Unit(unit_name(parts[content]), (parts[content], lending)) for content in found["lend"]
    ]
    runner.map(embed_part, units, workers=workers)
    yield replace(request, repeats=address), again
    mine = parts.keys() | whole
    lent = [(lending, content) for content in found["lend"]]
    lent += [
        (request.lending(x.apart, lacking), x.content)
        for x in lenders
        if x.apart and x.content in mine
    ]
    units_lent = [unit for each, content in lent for unit in each.units(content)]
    discard_all([*digests, *units_lent, folder], runner.scratch)


def discard_all(units: Iterable[Path], scratch: Path) -> None:
    """Remove those of the units that are committed."""
    for unit in units:
        if committed(unit) is not None:
            discard(unit, scratch)
