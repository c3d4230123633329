"""What was broken is read again when that is asked for, and what stands stays."""

import shutil

from curate.filters.decisions import DECISIONS
from shared.storage.files import read_json


def test_corrupt_images_are_looked_at_again_on_demand(small_run, tmp_path):
    shutil.copytree(small_run.data / "crawl", tmp_path / "crawl")
    whole = (tmp_path / "crawl" / "00001.tar").read_bytes()
    (tmp_path / "crawl" / "00001.tar").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "broken"
    words = ["run", f"--crawl={tmp_path / 'crawl'}", f"--out={out}"]
    status, said = small_run(*words)
    assert status == 0, said
    funnel = read_json(out / "reports" / "funnel.json")
    assert sum(funnel["decisions"][name] for name in DECISIONS) == funnel["images"] < 20
    [problem] = funnel["problems"]
    assert "00001" in problem
    made = {path: path.stat().st_ctime_ns for path in (small_run.work / "facts").glob("*/*")}
    status, said = small_run(*words, "--retry=corrupt")
    assert status == 0, said
    assert any("reading 1 parts with corrupt images again" in line for line in said)
    assert said[-1].endswith("nothing to do")
    again = {path: path.stat().st_ctime_ns for path in (small_run.work / "facts").glob("*/*")}
    assert again.keys() == made.keys()
    assert len(made.items() - again.items()) == 1
    assert not any((small_run.work / "scratch").iterdir())
    assert small_run("verify", small_run.work)[0] == 0
