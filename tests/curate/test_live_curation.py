"""The live page of a curation says what its status file says, with the first pictures that there are."""

import io
import json
import os
import socket
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from curate.execution.live import PICTURES, SIDE, live_page
from curate.execution.session import status_file
from curate.plan import parts_of
from shared.datasets.dataset import DatasetSettings


@pytest.fixture
def out(tmp_path):
    """What a run that builds this folder says: 30 of 100 images, at 5 a second."""
    out = tmp_path / "out"
    report = {
        **{"out": str(out), "pid": os.getpid(), "host": socket.gethostname(), "stage": "embed"},
        **{"began": time.time() - 60, "stage_began": time.time() - 6, "updated": time.time()},
        **{"failures": 2, "done": 30, "total": 100, "rate": 5.0, "left": 14.0},
    }
    status_file(out).write_text(json.dumps(report))
    return out


def plan(work=Path("none"), parts=(), **settings):
    """What the page is told of a run: its work folder, its crawl, and what may call images unsafe."""
    settings = SimpleNamespace(**{"filters": [], "lists": {}, "labels": None} | settings)
    crawl = SimpleNamespace(parts=list(parts))
    return SimpleNamespace(work=work, crawl=crawl, request=SimpleNamespace(settings=settings))


def crawled(run):
    """Return the parts of a run's crawl."""
    settings = DatasetSettings(path=str(run.data / "crawl"))
    return parts_of(SimpleNamespace(name="crawl", settings=settings), run.work)


def write_shard(shards, *, whole):
    shards.mkdir(parents=True, exist_ok=True)
    with tarfile.open(shards / "00000.tar", "w") as tar:
        for number in range(PICTURES + 3):
            data = io.BytesIO()
            Image.new("RGB", (300, 200), (10 * number, 80, 0)).save(data, "JPEG")
            broken = data.getvalue()[:50] if number == 1 else data.getvalue()
            for end, content in (("jpg", broken), ("json", b"{}")):
                info = tarfile.TarInfo(f"{number:09d}.{end}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    if whole:
        (shards / "00000_stats.json").write_text("{}")


def test_what_the_status_file_says_is_shown(out):
    page = live_page(out, plan())()
    facts = dict(page.facts)
    assert (facts["stage"], facts["done"]) == ("embed", "30 of 100 images")
    assert facts["rate"].startswith("5")
    assert facts["left in this stage"] == "14.0 s"
    assert facts["failures"] == "2 units failed"
    assert facts["since it began"].startswith("6")
    assert (page.share, page.pictures) == (0.3, [])


def test_pictures_come_from_the_first_whole_shard_and_are_small(out):
    show, shards = live_page(out, plan()), out.with_name("out.partial") / "shards"
    write_shard(shards, whole=False)
    assert show().pictures == []
    write_shard(shards, whole=True)
    pictures = show().pictures
    assert len(pictures) == PICTURES - 1
    assert pictures[1][0] == "kept: 000000002.jpg"
    assert max(Image.open(io.BytesIO(pictures[0][1])).size) == SIDE
    assert show().pictures == pictures


def test_a_run_that_says_nothing_yet_is_starting(tmp_path):
    page = live_page(tmp_path / "out", plan())()
    assert page.facts == [("stage", "starting, or at its end")]
    assert page.share is None


def test_images_of_an_embedded_part_are_shown_until_some_are_kept(finished_once, out):
    crawl = crawled(finished_once)
    page = live_page(out, plan(finished_once.work, crawl))()
    assert len(page.pictures) == min(PICTURES, 10)
    assert page.pictures[0][0] == "crawled: 000"
    with tarfile.open(finished_once.data / "crawl" / "00000.tar") as tar:
        own = Image.open(tar.extractfile("000.jpg")).convert("RGB")
    shown = Image.open(io.BytesIO(page.pictures[0][1]))
    assert shown.size == own.size
    assert np.abs(np.asarray(shown, int) - np.asarray(own, int)).mean() < 8
    write_shard(out.with_name("out.partial") / "shards", whole=True)
    assert live_page(out, plan(finished_once.work, crawl))().pictures[0][0].startswith("kept")


def test_no_crawled_image_is_shown_before_it_is_judged_where_some_may_be_unsafe(finished_once, out):
    crawl = crawled(finished_once)
    judged = {"filters": [SimpleNamespace(decision="unsafe")]}
    for settings in (judged, {"lists": {"known": 1}}, {"labels": "said.parquet"}):
        assert live_page(out, plan(finished_once.work, crawl, **settings))().pictures == []


def test_parts_that_are_not_embedded_or_are_gone_show_nothing(finished_once, out, tmp_path):
    crawl = crawled(finished_once)
    assert live_page(out, plan(tmp_path, crawl))().pictures == []
    gone = [replace(part, root=str(tmp_path / "gone")) for part in crawl]
    assert live_page(out, plan(finished_once.work, gone))().pictures == []
