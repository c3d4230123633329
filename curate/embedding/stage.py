"""Stage embed: what is missing of a dataset is embedded, then its images are catalogued."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyarrow.parquet import read_table

from curate.catalogue.collection import Catalogued, Collection, PartOutputs
from curate.catalogue.content import key_prefix, place_of, recall
from curate.catalogue.part_files import SCORES
from curate.catalogue.write import VERSION as CATALOGUE_VERSION
from curate.catalogue.write import Judged, catalogue
from curate.embedding.embed import Forwards, embed_part, weight_of
from curate.embedding.lend_repeats import lend_repeats
from curate.embedding.request import EmbedRequest, unit_name
from curate.filters.looks import LOOKS
from curate.filters.scores import score_column
from curate.stage import Failure, Runner, Stage, Unit, Workers
from shared.datasets.dataset import Part
from shared.datasets.parts import PartReader
from shared.embedders.embedder import may_use_gpu
from shared.embedders.settings import EmbedderSettings
from shared.errors import LvdError
from shared.storage.commits import committed, digest_of
from shared.storage.failures import reword
from shared.storage.files import fingerprint, read_json, write_json
from shared.storage.stores import is_there, publish, side_by_side

PARTS_LOOKED_AT = 16
"""Parts, evenly spread, in which a filter's column is looked for before anything is embedded."""
ASIDE = "aside"
NOT_JUDGED = Judged()


@dataclass(frozen=True)
class SetAside:
    """A part that failed for its own reasons, and how."""

    part: str
    line: str


@dataclass(frozen=True)
class EmbeddedParts:
    """The parts of a dataset that are embedded, in key order, with the content of each."""

    role: str
    name: str
    parts: list[Part]
    contents: list[str]
    aside: list[SetAside]
    request: EmbedRequest
    predicted: dict[str, list[Path]] = field(default_factory=dict)
    """By content, the files of what stage predict computed of its vectors."""
    lent: dict[str, int] = field(default_factory=dict)
    """How many `images` there are, and how many of them are `lent` the vector of another of their hash."""
    fitted: Path | None = None
    """Where the hash was fitted by which vectors are lent."""

    @property
    def images(self) -> int:
        """How many images they hold, those that cannot be read too."""
        return sum(
            (committed(self.request.facts / content) or {})["images"] for content in self.contents
        )

    @property
    def ignored(self) -> dict[str, Any]:
        """How many files are no images, by name or content, and a few of them."""
        stats = [committed(self.request.facts / content) or {} for content in self.contents]
        examples = [name for each in stats for name in each["ignored_examples"]]
        return {"files": sum(each["ignored"] for each in stats), "examples": examples[:3]}

    @property
    def problems(self) -> list[str]:
        """What is wrong with parts, a line each."""
        found = [f"{self.name}: {each.part}: set aside: {each.line}" for each in self.aside]
        for part, content in zip(self.parts, self.contents, strict=True):
            stats = committed(self.request.facts / content) or {}
            found += [f"{self.name}: {part.name}: {text}" for text in stats["problems"]]
        return found


def embed(
    runner: Runner, role: str, name: str, parts: Sequence[Part], request: EmbedRequest
) -> EmbeddedParts:
    """Embed what is not embedded yet of a dataset by the embedders of the request.

    A part of the crawl that fails again and again for its own reasons is set aside, and stays so
    until it changes or is retried. Raises LvdError where that happens to a seed or a holdout.
    """
    known_contents = side_by_side(lambda part: known_content(request, part), parts, request.facts)
    contents = dict(zip([part.name for part in parts], known_contents, strict=True))
    notes = {part.name: _aside_note(request, part) for part in parts}
    aside = [
        SetAside(part.name, read_json(notes[part.name])["line"])
        for part in parts
        if contents[part.name] is None and is_there(notes[part.name])
    ]
    left_out = {each.part for each in aside}
    todo = [part for part in parts if contents[part.name] is None and part.name not in left_out]
    known = (request.scores / content for content in contents.values() if content)
    wanted = _columns_without_values(request.columns, known)
    check_columns(name, todo or parts, wanted, runner.scratch)
    done = sum((committed(request.facts / c) or {})["images"] for c in contents.values() if c)
    is_embedding = request.by is None
    workers = embed_workers(request)
    embedded_already = filter(None, known_contents)
    with (
        lend_repeats(runner, request, todo, embedded_already, workers)
        if todo and len(parts) > 1 and request.settings.once == "bytes"
        else nullcontext((request, set[str]()))
    ) as (asked, again):
        todo.sort(key=lambda part: part.name in again)
        units = [
            Unit(unit_name(part), (part, asked), weight=weight_of(part) if is_embedding else 0)
            for part in todo
        ]
        first = len(todo) - len(again)
        done = done if is_embedding else 0
        results = runner.map(embed_part, units[:first], workers=workers, done=done)
        results += runner.map(embed_part, units[first:], workers=workers)
    for part, result in zip(todo, results, strict=True):
        if not isinstance(result, Failure):
            contents[part.name] = result["content"]
            continue
        if role != "crawl":
            raise LvdError(f"{role} {name}: {result.line}: mend or leave out that part")
        aside.append(set_aside(request, part, result.line, runner.scratch))
    there = [part for part in parts if contents[part.name] is not None]
    embedded = EmbeddedParts(
        role,
        name,
        there,
        [content for part in parts if (content := contents[part.name]) is not None],
        sorted(aside, key=lambda each: each.part),
        request,
    )
    for content in embedded.contents:
        for unit in request.units(content):
            runner.use(unit)
    return embedded


def embed_workers(request: EmbedRequest) -> Workers:
    """Return what holds the networks of a request."""
    embedders = request.embedders if request.by != () else ()
    gpus = any(map(may_use_gpu, embedders))
    return Workers(Forwards, (embedders, request.threads), gpus=gpus)


def set_aside(request: EmbedRequest, part: Part, line: str, scratch: Path) -> SetAside:
    """Note that a part failed for its own reasons, until it changes or is retried."""
    note = _aside_note(request, part)
    note.parent.mkdir(parents=True, exist_ok=True)
    write_json(note, {"part": part.name, "line": line}, scratch)
    publish(note)
    return SetAside(part.name, line)


def aside_line(request: EmbedRequest, part: Part) -> str | None:
    """Return how a part failed that is set aside; None of any other."""
    note = _aside_note(request, part)
    return read_json(note)["line"] if is_there(note) else None


def catalogued(
    runner: Runner,
    embedded: EmbeddedParts,
    embedder: EmbedderSettings | None,
    judged: Judged = NOT_JUDGED,
) -> Catalogued:
    """Return a dataset as an embedder sees it, with what facts, scores and lists decide of its images.

    Without an embedder it has no vectors yet.
    """
    stage, outputs = catalogue_stage(embedded, embedder, judged)
    labels = [judged.labels.folder] if judged.labels else []
    for folder in (*(each.folder for each in judged.lists), *labels):
        runner.use(folder)
    runner.run(stage, catalogue, [Unit("all", (outputs, embedded.request.work, judged))])
    collection = Collection(runner.folder(stage) / "all")
    return Catalogued(embedded.name, embedded.parts, collection, stage.address)


def catalogue_stage(
    embedded: EmbeddedParts, embedder: EmbedderSettings | None, judged: Judged
) -> tuple[Stage, list[PartOutputs]]:
    """Return the stage that catalogues a dataset, and where the units of its parts lie."""
    request, work = embedded.request, embedded.request.work
    outputs, digests = [], []
    for part, content in zip(embedded.parts, embedded.contents, strict=True):
        units = [request.facts / content]
        vectors = request.vectors(embedder) / content if embedder is not None else None
        units += [] if vectors is None else [vectors]
        scores = request.scores / content if request.columns else None
        looks = {name: request.look(name) / content for name in request.looks}
        units += [*([] if scores is None else [scores]), *looks.values()]
        predicted = embedded.predicted.get(content, [])
        units += [file.parent for file in predicted]
        files = [*(unit / LOOKS[name].file for name, unit in looks.items()), *predicted]
        prefix, interleaves = key_prefix(part), part.format == "folder"
        output = PartOutputs(
            part.name,
            prefix,
            str(units[0].relative_to(work)),
            None if scores is None else str(scores.relative_to(work)),
            None if vectors is None else str(vectors.relative_to(work)),
            interleaves,
            [str(file.relative_to(work)) for file in files],
            bool(request.lenders),
        )
        outputs.append(output)
        # The places too: a catalogue must not lean on units of other settings, which gc may remove.
        digests.append([vars(output), *map(digest_of, units)])
    stage = Stage(
        "catalogue",
        CATALOGUE_VERSION,
        digests,
        [
            judged.quality and judged.quality.model_dump(exclude_none=True),
            [entry.rule for entry in judged.filters],
            *([each.name, each.content] for each in judged.lists),
            *([judged.exported.digest] if judged.exported else []),
            *([[judged.labels.content]] if judged.labels else []),
        ],
    )
    return stage, outputs


def set_aside_parts(request: EmbedRequest, parts: Sequence[Part]) -> list[Path]:
    """Return the notes of the parts that are set aside."""
    notes = [_aside_note(request, part) for part in parts]
    return [note for note in notes if is_there(note)]


def is_embedded(request: EmbedRequest, part: Part) -> bool:
    """Tell whether a part is known, and all that the request asks of it is there."""
    return known_content(request, part) is not None


def check_columns(name: str, parts: Sequence[Part], columns: Sequence[str], scratch: Path) -> None:
    """Raise LvdError where a filter's column is in none of a few parts."""
    if not columns:
        return
    missing = set(columns)
    step = max(1, len(parts) // PARTS_LOOKED_AT)
    readable = 0
    for part in parts[::step][:PARTS_LOOKED_AT]:
        try:
            with reword(f"crawl {name}, {part.name}"), PartReader(part, scratch, columns) as reader:
                members = reader.members
        except LvdError:
            raise
        except Exception:  # it is set aside when it is embedded
            continue
        readable += 1
        for member in members:
            missing -= {column for column in missing if member.columns.get(column) is not None}
            if not missing:
                return
    if not readable:
        return
    raise LvdError(
        f"filters: no image of {readable} of the {len(parts)} parts of {name} has a value in "
        f"the column {min(missing)!r}: name a column of its Parquet tables or JSON members, or "
        "drop the filter"
    )


def _columns_without_values(columns: Sequence[str], scores: Iterable[Path]) -> list[str]:
    """Return those of the columns in which no committed unit of scores has a value."""
    missing = list(columns)
    for unit in scores if columns else ():
        table = read_table(unit / SCORES, columns=[score_column(column) for column in missing])
        nulls = (table[score_column(column)].null_count for column in missing)
        missing = [c for c, null in zip(missing, nulls, strict=True) if null == len(table)]
        if not missing:
            break
    return missing


def known_content(request: EmbedRequest, part: Part) -> str | None:
    """Return the content of a part whose units are all there; None otherwise."""
    content = recall(request.work, part)
    if content is None or any(committed(unit) is None for unit in request.units(content)):
        return None
    return content


def _aside_note(request: EmbedRequest, part: Part) -> Path:
    units = request.units("x")
    if request.by is not None:  # the part that fails is the same
        units += [request.vectors_by(each, "") / "x" for each in request.embedders]
    about = [place_of(part), part.stamp, *(str(unit.relative_to(request.work)) for unit in units)]
    return request.work / ASIDE / f"{fingerprint(about)}.json"
