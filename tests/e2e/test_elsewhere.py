"""Units of a run on a store that are sent to machines which share no folder, and lose all they hold."""

import pickle

import pytest
from curated_site import content
from elsewhere import Elsewhere
from result_content import untimed

from curate.embedding.journal import FOLDER, Journal, publish_journals
from curate.execution.session import require_seen
from shared.datasets.dataset import Part
from shared.errors import LvdError
from shared.storage.store_copies import copy_here
from shared.storage.stores import opened


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """The executor that stands in for one on a cluster."""
    (tmp_path / "driver").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "driver"))
    made = Elsewhere(tmp_path / "nodes")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr("curate.execution.session.RayExecutor", lambda settings: made)
    return made


def test_units_see_nothing_but_the_store(s3, site, undisturbed, cluster):
    site.executor = "ray"
    site.run("--work", "s3://bucket/work", "--out", "s3://bucket/runs/out")
    stored = untimed(s3.get("runs/out"))
    assert stored == content(undisturbed.root / "out")
    assert not cluster.strayed
    assert not cluster.held
    listed = [each.query for each in s3.requests if "list-type" in each.query]
    assert not [query for query in listed if "prefix=work%2F" in query and "output" not in query]
    assert not [path for path in s3.get("work") if path.startswith(("output/", "scratch/"))]


def test_what_machines_of_a_cluster_would_not_see_is_refused_in_one_line(site, s3, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    site.executor = "ray"
    work, out = "--work=s3://bucket/work", "--out=s3://bucket/runs/out"
    for words, said in (
        ([work], "--work s3://bucket/work is on a store and --out is not"),
        ([out], "--out s3://bucket/runs/out is on a store and --work is not"),
        (
            [work, out, f"--since={site.root}"],
            f"--since {site.root}: the machines of a Ray cluster",
        ),
    ):
        assert said in site.run(*words, status=2).splitlines()[-1]
    with opened("s3://bucket/work", "--work", "marker") as folder:
        made_here = Part("0", "tar", str(folder / "sample"), ("0.tar",), (1,), None, "", 1)
        require_seen("inline", folder, [made_here])
        with pytest.raises(LvdError, match="the built-in sample is made on this machine"):
            require_seen("ray", folder, [made_here])


def test_the_next_try_of_a_part_knows_on_any_machine_what_killed_the_last(
    s3, tmp_path, monkeypatch
):
    def go_to(machine):
        (tmp_path / machine).mkdir(exist_ok=True)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / machine))
        copy_here.cache_clear()

    go_to("first")
    with opened("s3://bucket/work", "--work", "marker") as work:
        path = work / FOLDER / "content"
        path.parent.mkdir()
        path.write_text("+'a'\n-'a'\n+'b'\n")
        publish_journals(work)
        sent = pickle.dumps(path)
        go_to("second")
        with Journal(pickle.loads(sent)) as journal:
            assert not journal.is_suspect("a")
            assert journal.is_suspect("b")
        assert set(s3.get("work")) == {"marker"}
    copy_here.cache_clear()
