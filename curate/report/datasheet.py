"""The datasheet of a result: what it is made of, how, and what is known to be wrong with it.

In the spirit of "Datasheets for Datasets" (Gebru et al., arXiv 1803.09010), of whose questions a run
can answer those on composition, collection and preprocessing. Everything is taken from what
the result holds already, so that the same run gives the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from curate.export.selection_list import list_files
from curate.filters.decisions import DECISIONS
from curate.report.false_copies import false_copies
from curate.report.summary import SOURCES, by_hash, by_look, cosine_from, share
from curate.report.tables import open_tables, read_funnel, rows
from shared.config import flat
from shared.progress import printable, size
from shared.storage.files import read_json

VERSION = 3
DATASHEET = "datasheet.md"
QUARTILES = ("smallest", "first quartile", "median", "third quartile", "largest")
PROBLEMS = 20  # lines; the rest is in funnel.json
_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~$&])")


def write_datasheet(out: Path) -> None:
    """Write `datasheet.md` of the result in `out`, from its run.json, its reports, and its shards or list."""
    (out / DATASHEET).write_text("\n".join(datasheet(out)) + "\n", encoding="utf-8")


def datasheet(out: Path) -> Iterator[str]:
    """Yield the lines of the datasheet of a result, in Markdown."""
    run, funnel = read_json(out / "run.json"), read_funnel(out)
    kept = f"{funnel['decisions']['kept']:,} of {funnel['images']:,} images"
    images = "`selection.parquet`" if list_files(out) else "`shards/`"
    yield f"# Datasheet: {_text(run['crawl'])}, curated"
    yield ""
    yield (
        f"{kept} of the crawl {_text(run['crawl'])} were kept for the seed {_text(run['seed'])}, by "
        f"lvd-curate. Written from `run.json`, `reports/` and {images}, which say more; what only people "
        "know (why the images were collected, who consented, what they may be used for) it does not say."
    )
    for title, lines in (
        ("Sources", _sources(run)),
        ("Composition", _composition(out, funnel)),
        ("Process", _process(run, funnel)),
        ("Known limits", _limits(funnel)),
        ("Versions", _table(("library", "version"), sorted(run["versions"].items()))),
    ):
        yield from ("", f"## {title}", "", *lines)


def _sources(run: dict[str, Any]) -> Iterator[str]:
    notes = ("licence", "source", "homepage")
    described = []
    for role, about in run["datasets"].items():
        of = " captions" if about["settings"]["text"] else ""
        said = (about["settings"].get(note) or "not stated" for note in notes)
        described.append((role.partition(" ")[0], about["name"], f"{about['images']:,}{of}", *said))
    yield from _table(("role", "dataset", "images", *notes), described)
    yield ""
    yield (
        "Licences, sources and homepages are those of `datasets` in the configuration; where the data "
        "lay, `run.json` says. Each image has its URL in `reports/images.parquet` where the crawl says "
        "it, and rights of its own."
    )


def _composition(out: Path, funnel: dict[str, Any]) -> Iterator[str]:
    images = funnel["images"]
    yield "What became of the crawled images:"
    yield ""
    yield from _table(
        ("decision", "images", "share"),
        [
            (name, f"{count:,}", share(count, images))
            for name, count in ((name, funnel["decisions"][name]) for name in DECISIONS)
        ],
    )
    with open_tables(out) as tables:
        kept = "from images where decision = 'kept'"
        formats = rows(tables, f"select format, count(*) n {kept} group by format order by format")
        quantiles = ", ".join(
            f"quantile_disc({name}, [0, 0.25, 0.5, 0.75, 1]) as {name}"
            for name in ("width", "height", "bytes")
        )
        [sizes] = rows(tables, f"select {quantiles} {kept}")
        [said] = rows(tables, f"select count(url) url, count(caption) caption {kept}")
    yield ""
    yield "The kept images of the crawl, as they were crawled:"
    yield ""
    yield from _table(
        ("format", "images"), [(each["format"], f"{each['n']:,}") for each in formats]
    )
    yield ""
    if sizes["width"]:
        yield from _table(
            ("pixels, bytes", *QUARTILES),
            [(name, *(f"{value:,}" for value in sizes[name])) for name in sizes],
        )
        yield ""
    yield f"{said['url']:,} of them have a URL, {said['caption']:,} a caption."
    groups = funnel["groups"]
    yield (
        f"Of each of the {groups['count']:,} groups of copies ({groups['members']:,} images) one at most "
        "was kept."
    )
    if hashed := funnel.get("dedup_hash"):
        yield (
            f"Before any vector was compared, {by_hash(hashed)} were found among the "
            f"{hashed['hashed']:,} distinct images that have one."
        )
        if hashed.get("lent") is not None:
            yield (
                f"{hashed['lent']:,} images were not embedded, but lent the vector of the best of their "
                "hash."
            )
    if looks := funnel.get("dedup_looks"):
        yield (
            f"Below the threshold of copies, from cosine {looks['floor']:.4f}, {by_look(looks)} by a "
            f"look at their pixels, so that {looks['joined']:,} images joined the groups of others."
        )
    for name, seed in funnel.get("seeds", {}).items():
        if count := seed.get("included", {}).get("kept"):
            yield f"With them go {count:,} images of the seed {_text(name)} itself."
    if lists := list_files(out):
        listed = sum(pq.read_metadata(path).num_rows for path in lists)
        yield f"In all {listed:,} images are listed in `selection.parquet`, and none was copied."
        return
    stats = [read_json(path) for path in sorted((out / "shards").glob("*_stats.json"))]
    yield (
        f"In all {sum(each['count'] for each in stats):,} images in {len(stats):,} shards of "
        f"{size(sum(each['bytes'] for each in stats))}."
    )


def _process(run: dict[str, Any], funnel: dict[str, Any]) -> Iterator[str]:
    settings = run["settings"]
    yield "Models that judged the images:"
    yield ""
    yield from _table(
        ("model", "purpose", "identity"),
        [
            (
                about["name"],
                _purpose(stage),
                ", ".join(f"{k} {v}" for k, v in flat(about["identity"]).items() if v is not None),
            )
            for stage, about in run["embedders"].items()
        ],
    )
    yield ""
    yield "Thresholds (cosines, inclusive), and how they came to be:"
    yield ""
    known = {name: each for name, each in run["thresholds"].items() if each}
    yield from _table(
        ("of", "value", "origin"),
        [
            (
                name,
                cosine_from(each, "≥").partition("≥ ")[2],
                SOURCES.get(each["source"], each["source"]),
            )
            for name, each in known.items()
        ],
    )
    measured = run["calibration"].get("dedup")
    if measured:
        yield ""
        sampled = (
            f"{measured['sampled']:,} of {measured['size']:,} different images were sampled, and "
            f"{measured['looked_at']:,} pairs of them looked at again by their pixels"
        )
        asked, source = measured["precision_asked"], known["dedup"]["source"]
        if source in ("calibrated", "kept"):
            yield f"For a precision of {asked} of the copies, {sampled}."
        else:
            yield (
                f"{sampled}: a precision of {asked} of the copies would be had from cosine "
                f"{measured['threshold']:.4f} on, which is not the threshold that was used."
            )
    yield ""
    yield "Seeds:"
    yield ""
    yield from _table(
        ("seed", "images", "retrieved", "how"),
        [
            (
                name,
                f"{seed['images']:,}",
                f"{seed['retrieved']:,}",
                f"{'negative: ' if seed['negative'] else ''}{seed['description']}",
            )
            for name, seed in funnel["seeds"].items()
        ],
    )
    yield ""
    holdouts = ", ".join(map(_text, run["holdouts"])) or "none"
    yield f"Holdouts, whose copies were dropped with all copies of these: {holdouts}."
    lists = ", ".join(map(_text, settings["lists"])) or "none"
    yield f"Lists of known-bad images and opt-outs: {lists}."
    yield ""
    yield f"All settings, of the pipeline {_text(run['settings']['pipeline'])}:"
    yield ""
    dumped = yaml.safe_dump(settings, sort_keys=True, allow_unicode=True, width=96)
    yield from (f"    {printable(line)}" for line in dumped.splitlines())


def _purpose(stage: str) -> str:
    known = {"dedup": "finds copies", "retrieve": "judges likeness to the seed"}
    return known.get(stage) or f"scores images for the filter {stage.removeprefix('filters.')}"


def _limits(funnel: dict[str, Any]) -> Iterator[str]:
    recall = funnel["dedup_recall"]
    if recall.get("recall") is not None:
        yield (
            f"- Of the pairs of copies that an exact search finds ({recall['pairs']:,}, of "
            f"{recall['queries']:,} images) the run found {recall['recall']:.4f}. How many copies "
            "the model itself misses is not measured here."
        )
    precision = false_copies(funnel)
    yield f"- Precision of the copies, estimated: {_text(precision or 'no near copies to look at')}."
    yield (
        "- Likeness to the seed is a model's judgement, with its biases and those of the seed; nobody "
        "looked at the images."
    )
    yield "- What is `unsafe` is what the filters and lists above name, and nothing else."
    if ignored := funnel["ignored"]["files"]:
        yield f"- {ignored:,} crawled files are no images, and were ignored."
    if aside := funnel["set_aside"]:
        yield f"- {len(aside):,} parts of the datasets could not be read, and are missing."
    if removed := funnel.get("removed"):
        lists = ", ".join(_text(name) for name in sorted(removed["lists"]))
        yield f"- {removed['images']:,} images were taken out afterwards, by the lists {lists}."
    problems = funnel["problems"]
    yield from (f"- {_text(problem)}" for problem in problems[:PROBLEMS])
    if len(problems) > PROBLEMS:
        yield f"- and {len(problems) - PROBLEMS:,} more problems, in `reports/funnel.json`"


def _table(names: Sequence[str], lines: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield a table of Markdown; what stands in its cells is text, whatever it looks like."""
    yield f"| {' | '.join(names)} |"
    yield f"|{'---|' * len(names)}"
    for line in lines:
        yield f"| {' | '.join(map(_text, line))} |"


def _text(said: object) -> str:
    """Return what shows as the words themselves in Markdown, on one line."""
    return _SPECIAL.sub(r"\\\1", printable(str(said)))
