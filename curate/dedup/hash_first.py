"""Hashes before embedding (`embed.once: hash`): of the images of a hash only the best is embedded.

First all that parts tell without a network: facts, scores and looks, of one decode at the scale that
these need. Then the hash, its groups and the best of each, by the units and the policy of stage dedup
(`hashes.py`, `keep.py`), over the images that nothing is decided about by facts, lists and columns. The
best are embedded, part by part, and lend their vectors (`embedding.lent_vectors`).

Units: those of `catalogue` and `hash_pass.py`, and `write_lenders` (a reduce of some 110 bytes an image).

What is lent depends on all parts, so that a grown crawl may have other lenders: what was embedded by
earlier ones is taken from there. A part that fails to embed is set aside, and all begins anew without it.
Where an image that lends gets no vector, the next best of its hash lends; where that gets none either,
each image of the hash is embedded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from curate.catalogue.collection import Collection
from curate.catalogue.content import remember
from curate.catalogue.write import Judged
from curate.dedup import groups, hashes, keep
from curate.dedup.groups import REPRESENTATIVES
from curate.dedup.hash_pass import FIT, cover_by_hash, rank_images
from curate.dedup.keep import NUMBER, RANK
from curate.dedup.near import DedupSettings
from curate.embedding.embed import embed_part
from curate.embedding.lend_repeats import discard_all
from curate.embedding.lent_vectors import (
    STAGE,
    UNIT,
    Lenders,
    find_failing,
    lacking,
    lend_vectors,
)
from curate.embedding.request import EmbedRequest, unit_name
from curate.embedding.stage import (
    EmbeddedParts,
    SetAside,
    aside_line,
    catalogue_stage,
    catalogued,
    embed,
    embed_workers,
    known_content,
    set_aside,
)
from curate.filters.decisions import CODE
from curate.stage import Failure, Runner, Stage, Unit
from shared.datasets.dataset import Part
from shared.errors import LvdError
from shared.storage.commits import committed, digest_of
from shared.storage.files import fingerprint, read_json, write_json
from shared.storage.stores import is_there, publish

VERSION = 2
NOTES = "lenders"
REMEMBERED = 4
"""Earlier lenders of a crawl whose vectors are looked for."""


@dataclass(frozen=True)
class Barred:
    """What lends nothing, as it got no vector when it lent."""

    images: frozenset[str] = frozenset()
    """Their sha256."""
    rounds: int = 0
    """How often some were found."""

    def and_failing(self, images: frozenset[str]) -> Barred:
        """Return these with more, which lent after them."""
        return Barred(self.images | images, self.rounds + 1)

    @property
    def alone(self) -> bool:
        """Whether nothing of their hashes lends: of copies of one picture else one after another fails."""
        return self.rounds > 1


def embed_by_hash(
    runner: Runner,
    name: str,
    parts: Sequence[Part],
    request: EmbedRequest,
    settings: DedupSettings,
    judged: Judged,
) -> EmbeddedParts:
    """Embed the best image of each hash of a crawl, and lend its vector to the others.

    `judged` is without what scores vectors.
    """
    seen = embed(runner, "crawl", name, parts, request.without_vectors())
    barred = Barred()
    while seen.images:
        crawl = catalogued(runner, seen, None, judged)
        stage = hash_stage(crawl.address, settings, barred)
        counts = find_lenders(runner, stage, crawl.collection, settings, barred)
        lent = _lent(request, stage, name)
        _note(runner, lent, name)
        if failed := _embed_lenders(runner, seen, lent, request):
            seen, barred = _without(seen, failed), Barred()
        elif failing := _failing(runner, seen, lent):
            barred = barred.and_failing(failing)
        else:
            _lend(runner, seen, lent)
            fitted = runner.folder(stage) / FIT
            return replace(seen, request=lent, lent=counts, fitted=fitted)
    return replace(seen, request=request)


def known_lenders(
    name: str,
    parts: Sequence[Part],
    request: EmbedRequest,
    settings: DedupSettings,
    judged: Judged,
) -> tuple[EmbedRequest, dict[str, int]] | None:
    """Return the request for vectors of which some are lent, and its counts; None before they are known."""
    first = request.without_vectors()
    there = [part for part in parts if aside_line(request, part) is None]
    contents = [content for part in there if (content := known_content(first, part)) is not None]
    if not contents or len(contents) < len(there):
        return None
    seen = EmbeddedParts("crawl", name, there, contents, [], first)
    catalogue, _ = catalogue_stage(seen, None, judged)
    barred = Barred()
    while True:
        stage = hash_stage(catalogue.address, settings, barred)
        counts = committed(request.work / stage.name / stage.address / UNIT)
        if counts is None:
            return None
        lent = _lent(request, stage, name)
        found = [find_failing(each, lent, scratch=request.work) for each in dict.fromkeys(contents)]
        failing = frozenset(sha256 for each in found for sha256 in each["failing"])
        if not failing:
            return lent, counts
        barred = barred.and_failing(failing)


def hash_stage(crawl: str, settings: DedupSettings, barred: Barred) -> Stage:
    """Return the stage that says who lends to whom, in the crawl whose catalogue has that address.

    Images that are `barred` lend nothing.
    """
    versions = [VERSION, hashes.VERSION, keep.VERSION, groups.VERSION]
    asked = [settings.hash, settings.keep, settings.seed, sorted(barred.images), barred.alone]
    return Stage(STAGE, versions, crawl, asked)


def find_lenders(
    runner: Runner,
    stage: Stage,
    collection: Collection,
    settings: DedupSettings,
    barred: Barred,
) -> dict[str, int]:
    """Find the best image of each hash; return how many images there are and how many are lent to."""
    ranks = rank_images(runner, stage, collection, settings)
    hashed = cover_by_hash(runner, stage, collection, settings, ranks)
    assert hashed is not None  # settings ask for one
    args = (collection, ranks, hashed.stands.parent, barred)
    [counts] = runner.run(stage, write_lenders, [Unit(UNIT, args)])
    return counts


def write_lenders(
    collection: Collection, ranks: Path, covered: Path, barred: Barred, *, out: Path
) -> dict[str, int]:
    """Write who lends to whom as `Lenders`, of what `cover_copies` wrote. A reduce.

    What no hash covers has the vector of the best image of its bytes; an image that takes no part, but
    can be decoded, stands alone. Of a hash whose best is `barred`, the best of the others lends, or none
    where those are to be `alone`.
    """
    number, digests = np.arange(len(collection)), collection.digests()
    rank, stands = np.load(ranks / RANK), np.load(covered / REPRESENTATIVES)
    takes_part = rank >= 0
    lender = number.copy()
    lender[takes_part] = np.load(ranks / NUMBER)[rank[takes_part]]
    of_bytes = lender.copy()
    lender = np.where(stands >= 0, stands, lender)
    if barred.images:
        known = np.array([bytes.fromhex(each) for each in sorted(barred.images)], "S32")
        is_barred = np.isin(digests, known)
        takers = np.flatnonzero(takes_part & ~is_barred & is_barred[lender])
        takers = takers[np.lexsort((rank[takers], lender[takers]))]
        _, first, group = np.unique(lender[takers], return_index=True, return_inverse=True)
        lender[is_barred] = of_bytes[is_barred]
        lender[takers] = of_bytes[takers if barred.alone else takers[first[group]]]
    lender[collection.decision[:] == CODE["corrupt"]] = -1
    lent = (lender >= 0) & (digests[lender] != digests)
    contents = np.array([Path(part.facts).name for part in collection.parts], "S")
    distinct, first, place = np.unique(contents, return_index=True, return_inverse=True)
    starts = np.concatenate([[0], np.cumsum(np.diff(collection.starts)[first])])
    moved = number + (starts[place] - collection.starts[:-1])[collection.part_of(number)]
    of_content = np.full(starts[-1], -1, np.int64)
    is_lent = np.zeros(starts[-1], bool)
    # of parts of the same content one that takes part comes last
    order = np.argsort(takes_part, kind="stable")
    of_content[moved[order]] = np.where(lender >= 0, moved[lender], -1)[order]
    is_lent[moved[order]] = lent[order]
    lends = np.zeros(starts[-1], bool)
    lends[of_content[is_lent]] = True
    Lenders(distinct, starts, of_content, is_lent, lends).save(out)
    return {"images": len(lender), "lent": int(lent.sum())}


def _lent(request: EmbedRequest, stage: Stage, name: str) -> EmbedRequest:
    """Return the request for lent vectors: settings that change no lender change no address of theirs."""
    unit = request.work / stage.name / stage.address / UNIT
    lent = request.lent(digest_of(unit), stage.address)
    return replace(lent, earlier=_earlier(lent, name))


def _failing(runner: Runner, seen: EmbeddedParts, lent: EmbedRequest) -> frozenset[str]:
    """Return the sha256 of the images that lend and got no vector."""
    units = [Unit(content, (content, lent)) for content in dict.fromkeys(seen.contents)]
    failing: set[str] = set()
    for result in runner.map(find_failing, units):
        if isinstance(result, Failure):
            raise LvdError(result.line)
        failing.update(result["failing"])
    return frozenset(failing)


def _embed_lenders(
    runner: Runner, seen: EmbeddedParts, lent: EmbedRequest, request: EmbedRequest
) -> list[SetAside]:
    """Embed what lends and is in no unit yet; return the parts that failed.

    That is noted of the `request`, whoever lends, so that a dry run and `--retry parts` find it.
    """
    parts: dict[str, Part] = {}
    for part, content in zip(seen.parts, seen.contents, strict=True):
        parts.setdefault(content, part)
    failed, units, todo, left = [], [], [], 0
    for content, part in parts.items():
        wanted = lacking(lent, content)
        if not wanted:
            continue
        if (line := aside_line(request, part)) is not None:
            failed.append(SetAside(part.name, line))
            continue
        images = max(int(rows.sum()) for rows in wanted.values())
        asked = lent.owning(lent.embedders[place] for place in wanted)
        units.append(Unit(unit_name(part), (part, asked), weight=max(1, images)))
        todo.append(part)
        left += images
    done = max(0, seen.images - left)
    results = runner.map(embed_part, units, workers=embed_workers(lent), done=done)
    for part, result in zip(todo, results, strict=True):
        if isinstance(result, Failure):
            failed.append(set_aside(request, part, result.line, runner.scratch))
    return failed


def _lend(runner: Runner, seen: EmbeddedParts, lent: EmbedRequest) -> None:
    """Write the vectors of all parts, own and lent, and remove what only they were made of."""
    contents = list(dict.fromkeys(seen.contents))
    units = [Unit(content, (content, lent)) for content in contents]
    for result in runner.map(lend_vectors, units):
        if isinstance(result, Failure):
            raise LvdError(result.line)
    for part, content in zip(seen.parts, seen.contents, strict=True):
        remember(lent.work, part, content, runner.scratch)
    own = lent.owning(lent.embedders)
    discard_all(
        (own.vectors(each) / content for each in lent.embedders for content in contents),
        runner.scratch,
    )
    for content in contents:
        for unit in lent.units(content):
            runner.use(unit)


def _without(seen: EmbeddedParts, failed: Sequence[SetAside]) -> EmbeddedParts:
    names = {each.part for each in failed}
    there = [x for x in zip(seen.parts, seen.contents, strict=True) if x[0].name not in names]
    return replace(
        seen,
        parts=[part for part, _ in there],
        contents=[content for _, content in there],
        aside=sorted([*seen.aside, *failed], key=lambda each: each.part),
    )


def _earlier(lent: EmbedRequest, name: str) -> tuple[str, ...]:
    """Return the other lenders that the crawl of that name has had, the newest last."""
    path = _note_file(lent, name)
    found = read_json(path)["lenders"] if is_there(path) else []
    return tuple(each for each in found if each != lent.lenders)


def _note(runner: Runner, lent: EmbedRequest, name: str) -> None:
    path = _note_file(lent, name)
    known = [*lent.earlier, lent.lenders][-REMEMBERED:]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"lenders": known}, runner.scratch)
    publish(path)


def _note_file(request: EmbedRequest, name: str) -> Path:
    return request.work / NOTES / f"{fingerprint([name])}.json"
