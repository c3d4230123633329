"""What the live page of a run shows: its status file, and pictures: of the first part that is embedded,
later of the first whole shard."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.catalogue.content import recall
from curate.catalogue.part_files import FACTS
from curate.execution.session import status_file
from curate.plan import PARTIAL, Plan
from shared.datasets.dataset import Part
from shared.datasets.single_images import direct, fetch
from shared.errors import LvdError
from shared.pages.live import LivePage
from shared.pictures.images import ImageError, decode
from shared.progress import duration, rate
from shared.storage.files import read_optional

PICTURES, SIDE = 12, 128
PARTS_LOOKED_AT = 32
"""Of the crawl, the first ones: which of them are embedded is asked anew for each page."""
MOST_BYTES = 20_000_000
"""Of a crawled image that is shown."""
Pictures = list[tuple[str, bytes]]


def live_page(out: Path, plan: Plan) -> Callable[[], LivePage]:
    """Return what gives the page of the run of `plan` that builds `out`, whenever it is called."""
    shards = out.with_name(out.name + PARTIAL) / "shards"
    crawled: Pictures = []
    kept: Pictures = []

    def show() -> LivePage:
        if not kept:
            kept.extend(_first_kept(shards))
        if not kept and not crawled and _may_show_crawled(plan):
            crawled.extend(_first_crawled(plan.work, plan.crawl.parts))
        return _page(out, read_optional(status_file(out)), kept or crawled)

    return show


def _may_show_crawled(plan: Plan) -> bool:
    """Tell whether nothing in the settings can call an image of the crawl unsafe."""
    settings = plan.request.settings
    unsafe = any(each.decision == "unsafe" for each in settings.filters)
    return not (unsafe or settings.lists or settings.labels)


def _page(out: Path, report: dict[str, Any], pictures: Pictures) -> LivePage:
    title = f"Curating into {out}"
    if not report:
        return LivePage(title, [("stage", "starting, or at its end")], pictures=pictures)
    done, total = report.get("done"), report.get("total")
    facts = [("stage", report["stage"] or "starting")]
    if done is not None:
        about = "about " if report.get("is_guess") else ""
        of = "" if total is None else f" of {about}{total:,}"
        facts.append(("done", f"{done:,}{of} images"))
    if report.get("rate"):
        facts.append(("rate", rate(1, 1 / report["rate"])))
    if report.get("left"):
        facts.append(("left in this stage", duration(report["left"])))
    facts.append(("since it began", duration(max(0.0, time.time() - report["began"]))))
    facts.append(
        ("failures", f"{report['failures']:,} units failed" if report["failures"] else "none")
    )
    facts.append(("process", f"{report['pid']} on {report['host']}"))
    share = min(1.0, done / total) if done is not None and total else None
    return LivePage(title, facts, share, pictures)


def _first_crawled(work: Path, parts: list[Part]) -> Pictures:
    """Return thumbnails of images of the first part that is embedded, evenly spread; none before.

    Of images that a worker could decode, in parts whose images can be read one by one.
    """
    for part in parts[:PARTS_LOOKED_AT]:
        try:
            content = recall(work, part)
            facts = next((work / "facts").glob(f"*/{content}/{FACTS}"), None) if content else None
            if facts is None or not direct(part):
                continue
            table = pq.read_table(facts, columns=["name", "member", "offset", "bytes", "problem"])
            decoded = pc.equal(pc.fill_null(table["problem"], ""), "")
            usable = pc.and_(decoded, pc.less(table["bytes"], MOST_BYTES))
            rows = table.filter(usable).to_pylist()
            chosen = rows[:: max(1, len(rows) // PICTURES)][:PICTURES]
            found = [
                (f"crawled: {row['name']}", small)
                for row in chosen
                if (small := _small(fetch(part, row["member"], row["offset"], row["bytes"])))
            ]
        except (LvdError, OSError):  # the run itself will say what is wrong
            continue
        if found:
            return found
    return []


def _first_kept(shards: Path) -> Pictures:
    """Return thumbnails of the first images of the first shard that is whole; none before."""
    whole = sorted(shards.glob("*_stats.json"))
    if not whole:
        return []
    tar = shards / f"{whole[0].name.removesuffix('_stats.json')}.tar"
    found = []
    with tarfile.open(tar) as members:
        images = (m for m in members if m.isfile() and not m.name.endswith((".json", ".txt")))
        for member in islice(images, PICTURES):
            stream = members.extractfile(member)
            assert stream is not None  # a file has one
            if small := _small(stream.read()):
                found.append((f"kept: {member.name}", small))
    return found


def _small(data: bytes) -> bytes | None:
    """Return a thumbnail as JPEG; None of what is no picture."""
    try:
        image = decode(data, reduce_to=SIDE)
    except ImageError:
        return None
    image.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85)
    return stream.getvalue()
