"""`lvd-curate remove --near`: near copies of what was taken out go too, and do not come back."""

import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from growing_crawl import LARGE, Site
from pictures import encoded, picture, write_tar
from PIL import Image

LISTS = "--set=lists={none: {kind: pdq, path: none.txt}}"


def average_hash(pixels):
    """Stand in for `pdqhash.compute`, which may not be installed: 256 bits of a grey picture."""
    grey = np.asarray(Image.fromarray(pixels).convert("L").resize((16, 16)))
    return (grey > np.median(grey)).reshape(256), 100


@pytest.fixture
def site(tmp_path, monkeypatch, grown_work):
    monkeypatch.setitem(sys.modules, "pdqhash", SimpleNamespace(compute=average_hash))
    shutil.copytree(grown_work, tmp_path / "work")
    made = Site(tmp_path, monkeypatch)
    (tmp_path / "none.txt").write_text("")
    (tmp_path / "out.txt").write_text("00001/004\n")
    return made


def remove(site, *words, **more):
    asked = ("--list", site.root / "out.txt", "--kind=key", f"--work={site.work}")
    return site("remove", site.out, *asked, *words, **more)


@pytest.mark.parametrize("is_near", [True, False])
def test_near_copies_that_come_later_stay_out_if_asked_to(site, is_near):
    site("run", LISTS)
    remove(site, *(["--near"] if is_near else []))
    copy = {"4.png": encoded(picture(4, LARGE), "PNG"), "71.jpg": encoded(picture(71))}
    write_tar(site.data / "crawl" / "00003.tar", copy)
    site("update", site.out)
    rows = site.rows()
    assert rows["00003/71"]["decision"] == "kept"
    assert rows["00003/4"]["decision"] == ("unsafe" if is_near else "kept")
    if is_near:
        assert rows["00003/4"]["reason"] == "pdq is within 31 bits of one on the list removed"
    site.require_whole()


def test_near_copies_that_are_there_go_too(site):
    write_tar(site.data / "crawl" / "00003.tar", {"4.png": encoded(picture(4, LARGE), "PNG")})
    site("run", LISTS, "--set=dedup.threshold=0.99999")
    assert {site.rows()[key]["decision"] for key in ("00001/004", "00003/4")} == {"kept"}
    assert "2 images, 2 of them kept" in remove(site, "--near")
    removed = site.rows("removed")
    assert removed["00003/4"]["reason"] == "pdq is within 31 bits of one on the list out"
    assert removed["00003/4"]["pdq"] is None
    assert len(removed["00001/004"]["pdq"]) == 64
    write_tar(site.data / "crawl" / "00004.tar", {"71.jpg": encoded(picture(71))})
    site("update", site.out)
    assert site.rows()["00003/4"]["decision"] == "unsafe"
    site.require_whole()


def test_without_hashes_it_is_one_line(site):
    site("run")
    made = site.files()
    said = " ".join(remove(site, "--near", status=2).split())
    assert "no image has a pdq" in said
    assert "runs with a list of kind pdq in `lists`, be it empty, have it" in said
    assert site.files() == made
