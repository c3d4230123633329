"""A run on a grown crawl whose OUT is on a store: what it exported stays, and a kill does not lose it."""

import json
import shutil

import fsspec
import pytest
from elsewhere import Elsewhere
from growing_crawl import Site
from result_content import content, untimed
from s3_server import Fault

STORED = "--out=s3://bucket/runs/out"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("shared.storage.failures._pause", lambda seconds: None)


@pytest.fixture(scope="module")
def grown(tmp_path_factory, grown_work):
    """A crawl that has grown, the result of it before and after, and the work folder of both."""
    root = tmp_path_factory.mktemp("grown")
    with pytest.MonkeyPatch.context() as patch:
        shutil.copytree(grown_work, root / "work")
        site = Site(root, patch)
        site("run")
        first = site.files()
        site.grow()
        site("run")
        yield site, first


def put(s3, files):
    """Store a result."""
    for name, data in files.items():
        fsspec.filesystem("s3").pipe_file(f"bucket/runs/out/{name}", data)


def stored(s3):
    """Return the files of the result that is stored, and the names of all that lies beside it."""
    found = s3.get("runs")
    own = {name.removeprefix("out/"): data for name, data in found.items() if name[:4] == "out/"}
    return untimed(own), {name for name in found if name[:4] != "out/"}


def test_what_it_exported_stays_as_in_a_folder(s3, grown):
    site, first = grown
    put(s3, first)
    said = " ".join(site("run", STORED).split())
    assert "s3://bucket/runs/out holds a result of 25 images, and crawl crawl has 39 now" in said
    assert "what it exported stays" in said
    assert stored(s3) == (site.files(), set())
    assert "nothing to do" in site("run", STORED)


def cut_off(s3, site):
    """Let a run on the grown crawl end while it copies its second shard over the earlier result."""
    s3.faults.append(Fault("InternalError", method="PUT", path="/00001.tar"))
    assert "the storage fails" in site("run", STORED, status=2)
    s3.faults.clear()
    found, beside = stored(s3)
    assert "run.json" not in found
    assert ".out.earlier/run.json" in beside


def test_a_run_that_is_cut_off_while_it_copies_goes_on_from_the_same(s3, grown):
    site, first = grown
    put(s3, first)
    cut_off(s3, site)
    cut_off(s3, site)
    site("run", STORED)
    assert stored(s3) == (site.files(), set())


def test_where_the_crawl_is_as_it_was_the_result_that_was_copied_over_is_made_again(s3, grown):
    site, first = grown
    put(s3, first)
    cut_off(s3, site)
    new = site.data / "crawl" / "00000.tar"
    new.rename(site.root / "aside.tar")
    site("run", STORED)
    assert stored(s3) == (first, set())
    (site.root / "aside.tar").rename(new)
    cut_off(s3, site)
    site("run", STORED, "--replace")
    assert stored(s3)[1] == set()


def test_machines_that_see_nothing_but_the_store_are_given_what_it_exported(
    s3, grown, tmp_path, monkeypatch
):
    site, first = grown
    put(s3, first)
    (tmp_path / "driver").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "driver"))
    made = Elsewhere(tmp_path / "nodes")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr("curate.execution.session.RayExecutor", lambda settings: made)
    site("run", STORED, "--work=s3://bucket/work", "--executor=ray")
    assert stored(s3) == (site.files(), set())
    assert not made.strayed
    assert not [path for path in s3.get("work") if path.startswith(("output/", "scratch/"))]


def test_another_out_goes_on_from_a_result_on_a_store(s3, grown, tmp_path):
    site, first = grown
    put(s3, first)
    for name, data in first.items():
        (tmp_path / "old" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "old" / name).write_bytes(data)
    made = []
    for since in (tmp_path / "old", "s3://bucket/runs/out"):
        out = tmp_path / f"out{len(made)}"
        site("run", f"--since={since}", f"--out={out}")
        made.append(content(out))
    assert made[0] == made[1]
    assert stored(s3)[0] == untimed(first)
    said = site("run", "--since=s3://bucket/runs/none", f"--out={tmp_path / 'x'}", status=2)
    assert "--since s3://bucket/runs/none is no finished run" in " ".join(said.split())


def test_errors_call_a_result_on_a_store_as_the_user_does(s3, grown, tmp_path):
    site, first = grown
    run = json.loads(first["run.json"])
    for about in run["embedders"].values():
        about["identity"] = ["another"]
    put(s3, {**first, "run.json": json.dumps(run).encode()})
    said = site("run", "--since=s3://bucket/runs/out", f"--out={tmp_path / 'x'}", status=2)
    assert "another model than when s3://bucket/runs/out was made" in " ".join(said.split())
