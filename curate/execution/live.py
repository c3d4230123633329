"""What the live page of a run shows: its own status file, and pictures of the first whole shard."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from curate.execution.session import status_file
from curate.plan import PARTIAL
from shared.pages.live import LivePage
from shared.pictures.images import ImageError, decode
from shared.progress import duration, rate
from shared.storage.files import read_optional

PICTURES, SIDE = 12, 128


def live_page(out: Path) -> Callable[[], LivePage]:
    """Return what gives the page of the run that builds `out`, whenever it is called."""
    shards = out.with_name(out.name + PARTIAL) / "shards"
    pictures: list[tuple[str, bytes]] = []

    def show() -> LivePage:
        if not pictures:
            pictures.extend(_first_pictures(shards))
        return _page(out, read_optional(status_file(out)), pictures)

    return show


def _page(out: Path, report: dict[str, Any], pictures: list[tuple[str, bytes]]) -> LivePage:
    title = f"Curating into {out}"
    if not report:
        return LivePage(title, [("stage", "starting, or at its end")], pictures=pictures)
    done, total = report.get("done"), report.get("total")
    facts = [("stage", report["stage"] or "starting")]
    if done is not None:
        of = "" if total is None else f" of {total:,}"
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


def _first_pictures(shards: Path) -> list[tuple[str, bytes]]:
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
            try:
                image = decode(stream.read(), reduce_to=SIDE)
            except ImageError:
                continue
            image.thumbnail((SIDE, SIDE))
            data = io.BytesIO()
            image.save(data, "JPEG", quality=85)
            found.append((f"kept: {member.name}", data.getvalue()))
    return found
