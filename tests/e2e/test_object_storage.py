"""Data, work and results on S3, that fails at times: a real client, a real server, the same bytes."""

import fsspec
import pytest
from click.testing import CliRunner
from curated_site import TIMINGS, content, leftovers, result
from s3_server import Fault, S3Server, serve

from curate.cli import main

DATASETS = ("crawl", "animals", "exam")


@pytest.fixture(scope="module")
def server():
    with serve() as made:
        yield made


@pytest.fixture
def s3(server):
    server.clear()
    return server


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("shared.failures._pause", lambda seconds: None)


def stored_data(s3: S3Server, site) -> list[str]:
    """Put the data of a site on the server, and return the words that name it there."""
    urls = {name: s3.put(site.data / name, f"data/{name}") for name in DATASETS}
    return [f"--set=datasets.{name}.path={url}" for name, url in urls.items()]


def test_data_behind_s3_gives_the_bytes_of_local_data(s3, site, undisturbed):
    site.run(*stored_data(s3, site))
    places = (site.data, "s3://bucket/data")
    assert result(site.root / "out", *places) == result(undisturbed.root / "out", *places)


def test_a_run_goes_on_through_throttling_errors_resets_and_short_answers(s3, site, undisturbed):
    words = stored_data(s3, site)
    ways = ("SlowDown", "InternalError", "reset", "cut")
    s3.faults += [Fault(way, "GET", every=n) for way, n in zip(ways, (7, 11, 13, 17), strict=True)]
    site.run(*words)
    assert all(fault.failed for fault in s3.faults)
    places = (site.data, "s3://bucket/data")
    assert result(site.root / "out", *places) == result(undisturbed.root / "out", *places)
    assert leftovers(site) == []


def on_s3(site, *words: str, work: bool = True) -> list[str]:
    """Return the words of a run whose OUT, and WORK too, lie on the server."""
    places = ["--out", "s3://bucket/runs/out"]
    return [*words, *places, *(["--work", "s3://bucket/work"] if work else [])]


def stored_result(s3: S3Server, name: str = "runs/out") -> dict[str, bytes]:
    """Return the files of a result but the timings."""
    return {path: data for path, data in s3.get(name).items() if path != TIMINGS}


def test_work_and_out_on_s3_give_the_bytes_of_local_ones(s3, site, undisturbed):
    said = site.run(*on_s3(site))
    assert "In s3://bucket/runs/out" in said
    assert stored_result(s3) == content(undisturbed.root / "out")
    assert not site.work.exists()
    assert not (site.root / "out").exists()
    assert set(s3.get("runs")) == {f"out/{name}" for name in s3.get("runs/out")}  # no lock is left
    assert "nothing to do" in site.run(*on_s3(site))


def test_what_is_committed_on_s3_is_not_computed_again(s3, site, undisturbed):
    site.run(*on_s3(site))
    first = {path: data for path, data in s3.get("work").items() if "places/" not in path}
    s3.requests.clear()
    site.run(*on_s3(site, "--set=retrieve.threshold=0.3", "--replace"))
    written = {each.path for each in s3.requests if each.method == "PUT"}
    stages = {path.split("/")[3] for path in written if path.startswith("/bucket/work/")}
    assert "select" in stages or stages
    assert stages.isdisjoint({"facts", "vectors", "cluster", "dedup", "stamps"})
    assert first.items() <= s3.get("work").items()
    assert stored_result(s3) != content(undisturbed.root / "out")


def test_a_result_on_s3_of_other_settings_is_refused_in_one_line(s3, site):
    site.run(*on_s3(site, work=False))
    before = s3.get("runs/out")
    said = site.run(*on_s3(site, "--set=export.shard_size=9", work=False), status=2)
    assert said.splitlines()[-1].startswith(
        "lvd-curate: --out s3://bucket/runs/out holds a run with"
    )
    assert s3.get("runs/out") == before


def test_a_place_on_s3_with_other_files_is_refused(s3, site):
    fsspec.filesystem("s3").pipe_file("bucket/runs/out/thesis.txt", b"own")
    said = site.run(*on_s3(site, work=False), status=2)
    assert "--out s3://bucket/runs/out holds files that no run wrote" in said.splitlines()[-1]
    assert s3.get("runs") == {"out/thesis.txt": b"own"}


def test_commands_that_need_a_folder_refuse_a_url_in_one_line(site):
    for words in (
        ["status", "s3://bucket/work"],
        ["verify", "s3://bucket/work"],
        ["report", "s3://bucket/runs/out"],
        ["explain", "s3://bucket/runs/out", "key"],
        ["update", "s3://bucket/runs/out"],
        ["remove", "s3://bucket/runs/out", "--list", "list.txt"],
        ["gc", "s3://bucket/runs/out"],
        ["loop", "--work", "s3://bucket/work"],
    ):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 2, words
        [line] = result.output.splitlines()
        assert words[1 if len(words) < 3 or words[0] != "loop" else 2] in line
        assert "URL" in line
