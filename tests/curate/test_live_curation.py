"""The live page of a curation says what its status file says, with pictures of the first whole shard."""

import io
import json
import os
import socket
import tarfile
import time

import pytest
from PIL import Image

from curate.execution.live import PICTURES, SIDE, live_page
from curate.execution.session import status_file


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
    page = live_page(out)()
    facts = dict(page.facts)
    assert (facts["stage"], facts["done"]) == ("embed", "30 of 100 images")
    assert facts["rate"].startswith("5")
    assert facts["left in this stage"] == "14.0 s"
    assert facts["failures"] == "2 units failed"
    assert facts["since it began"].startswith("6")
    assert (page.share, page.pictures) == (0.3, [])


def test_pictures_come_from_the_first_whole_shard_and_are_small(out):
    show, shards = live_page(out), out.with_name("out.partial") / "shards"
    write_shard(shards, whole=False)
    assert show().pictures == []
    write_shard(shards, whole=True)
    pictures = show().pictures
    assert len(pictures) == PICTURES - 1
    assert pictures[1][0] == "kept: 000000002.jpg"
    assert max(Image.open(io.BytesIO(pictures[0][1])).size) == SIDE
    assert show().pictures == pictures


def test_a_run_that_says_nothing_yet_is_starting(tmp_path):
    page = live_page(tmp_path / "out")()
    assert page.facts == [("stage", "starting, or at its end")]
    assert page.share is None
