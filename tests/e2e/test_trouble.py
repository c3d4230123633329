"""Full disks, units that fail, and parts that are no tars."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from curated_site import Site, content, leftovers
from drawn_crawl import encoded, wave, write_tar
from saboteurs import DiskFull, Raising, sabotage


def small_disk(folder: Path, kilobytes: int) -> None:
    """Mount a small file system at `folder`, or skip the test."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if (
        os.geteuid()
        or shutil.which("mount") is None
        or subprocess.run(words, check=False).returncode
    ):
        pytest.skip("mounting a small disk needs root")


@pytest.fixture
def disk(tmp_path):
    """Return a function that mounts a small disk; all are unmounted at the end."""
    mounted = []

    def mount(kilobytes: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        small_disk(folder, kilobytes)
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_below_work_is_one_line_and_the_run_goes_on(undisturbed, disk):
    place = disk(2_048)
    for stage in ("facts", "scores", "vectors", "stamps"):
        shutil.copytree(undisturbed.work / stage, place / "work" / stage)
    filler = place / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(place).free - 16 * 1_024))
    site = Site(place, undisturbed.data, place / "work")
    said = site.run(status=2)
    assert "no space left below" in said.splitlines()[-1]
    assert "Traceback" not in said
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=16m", str(place)], check=True)
    site.run()
    assert content(place / "out") == content(undisturbed.root / "out")
    assert leftovers(site) == []


def test_a_full_disk_below_out_is_one_line_and_the_run_goes_on(undisturbed, disk):
    place = disk(64)
    site = Site(place, undisturbed.data, undisturbed.work)
    said = site.run(status=2)
    assert "no space left below" in said.splitlines()[-1]
    assert "Traceback" not in said
    subprocess.run(["mount", "-o", "remount,size=16m", str(place)], check=True)
    site.run()
    assert content(place / "out") == content(undisturbed.root / "out")
    assert leftovers(site) == []


def test_a_unit_that_finds_the_disk_full_is_one_line_and_is_done_again(
    undisturbed, monkeypatch, tmp_path
):
    fuse = sabotage(monkeypatch, DiskFull, "curate.selection.decide", "select", tmp_path / "fuse")
    other = "--set=retrieve.threshold=0.21"
    said = undisturbed.run(other, out="full", status=2)
    assert f"no space left below {undisturbed.work / 'select'}" in said
    fuse.unlink()
    undisturbed.run(other, out="full")
    assert leftovers(undisturbed) == []


def test_a_unit_that_raises_is_one_line_with_stage_unit_and_trace(
    undisturbed, monkeypatch, tmp_path
):
    fuse = sabotage(monkeypatch, Raising, "curate.dedup.near", "search", tmp_path / "fuse")
    said = undisturbed.run("--set=dedup.threshold=0.9", out="failed", status=2)
    line = said.strip().splitlines()[-1]
    assert line.startswith("lvd-curate: dedup failed on search-0-")
    assert "ValueError: the moon is full (trace: " in line
    trace = Path(line.rpartition("(trace: ")[2].rstrip(")"))
    assert "in harm" in trace.read_text()
    assert "Traceback" not in said
    fuse.unlink()
    undisturbed.run("--set=dedup.threshold=0.9", out="failed")


@pytest.fixture(scope="module")
def damaged(undisturbed, tmp_path_factory) -> tuple[Site, str]:
    """A crawl with damaged tars among good ones, and how to name it."""
    crawl = tmp_path_factory.mktemp("damaged") / "crawl"
    shutil.copytree(undisturbed.data / "crawl", crawl)
    whole = crawl / "whole.tar"
    write_tar(whole, {f"cut{n}.jpg": encoded(wave(n)) for n in range(70, 74)})
    (crawl / "10000.tar").write_bytes(whole.read_bytes()[:-14_000])
    whole.unlink()
    (crawl / "10001.tar").write_bytes(b"<html>404 not found</html>" * 100)
    (crawl / "10002.tar").touch()
    return undisturbed, f"--set=datasets.crawl.path={crawl}"


def test_damaged_tars_are_reported_and_cost_only_themselves(damaged):
    site, crawl = damaged
    site.run(crawl, out="damaged")
    funnel = json.loads((site.root / "damaged/reports/funnel.json").read_text())
    assert {text.split(": ")[1] for text in funnel["problems"]} == {"10000", "10001", "10002"}
    assert funnel["decisions"]["corrupt"] == 5
    assert funnel["images"] > 54


def test_retry_corrupt_reads_only_the_parts_with_corrupt_images_again(damaged):
    site, crawl = damaged
    site.run(crawl, out="damaged")
    # A removed file's inode may be the next one's: the time tells them apart.
    before = {path: path.stat().st_mtime_ns for path in site.work.glob("facts/*/*/unit.json")}
    said = site.run(crawl, "--retry=corrupt", out="damaged")
    assert "nothing to do" in said
    assert "reading 4 parts" in said
    again = [path for path, made in before.items() if path.stat().st_mtime_ns != made]
    assert len(again) == 4


def test_a_crawl_without_a_single_image_is_one_line(undisturbed, tmp_path):
    (tmp_path / "00000.tar").touch()
    said = undisturbed.run(f"--crawl={tmp_path}/00000.tar", "--set=filters=[]", out="x", status=2)
    assert "hold no image" in said.splitlines()[-1]
