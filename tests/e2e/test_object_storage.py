"""Data, work and results on S3, that fails at times: a real client, a real server, the same bytes."""

import signal

import fsspec
import pytest
from click.testing import CliRunner
from curated_site import content, result
from forked import forked_command
from forked import server as fork_server
from result_content import untimed
from s3_server import Fault, S3Server

from curate.cli import main

DATASETS = ("crawl", "animals", "exam")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("shared.storage.failures._pause", lambda seconds: None)


def stored_data(s3: S3Server, site) -> list[str]:
    """Put the data of a site on the server, and return the words that name it there."""
    urls = {name: s3.put(site.data / name, f"data/{name}") for name in DATASETS}
    return [f"--set=datasets.{name}.path={url}" for name, url in urls.items()]


def on_s3(site, *words: str, work: bool = True) -> list[str]:
    """Return the words of a run whose OUT, and WORK too, lie on the server."""
    places = ["--out", "s3://bucket/runs/out"]
    return [*words, *places, *(["--work", "s3://bucket/work"] if work else [])]


def stored_result(s3: S3Server) -> dict[str, bytes]:
    """Return the files of a result but the timings."""
    return untimed(s3.get("runs/out"))


def fetched_result(s3: S3Server, site) -> dict[str, bytes]:
    """Return `result` of what is stored, for data on the server."""
    fetched = site.root / "fetched"
    for name, data in s3.get("runs/out").items():
        (fetched / name).parent.mkdir(parents=True, exist_ok=True)
        (fetched / name).write_bytes(data)
    return result(fetched, site.data, "s3://bucket/data")


def local_result(undisturbed) -> dict[str, bytes]:
    """Return `result` of the run of local data."""
    return result(undisturbed.root / "out", undisturbed.data, "s3://bucket/data")


def test_data_and_out_on_s3_give_the_bytes_of_local_ones(s3, site, undisturbed):
    site.run(*on_s3(site, *stored_data(s3, site), work=False))
    assert not (site.root / "out").exists()
    assert not s3.get("work")
    assert fetched_result(s3, site) == local_result(undisturbed)


def test_work_and_out_on_s3_are_those_of_folders_and_what_is_committed_is_not_computed_again(
    s3, site, undisturbed
):
    said = site.run(*on_s3(site))
    assert "In s3://bucket/runs/out" in said
    made = s3.get("runs/out")
    assert stored_result(s3) == content(undisturbed.root / "out")
    assert [path.name for path in site.work.iterdir()] == ["calibrate"]  # as it was before
    assert not (site.root / "out").exists()
    assert set(s3.get("runs")) == {f"out/{name}" for name in made}  # no lock is left
    assert "nothing to do" in site.run(*on_s3(site))

    other = "--set=retrieve.threshold=0.3"
    said = site.run(*on_s3(site, other), status=2)
    refused = "lvd-curate: --out s3://bucket/runs/out holds a run with"
    assert said.splitlines()[-1].startswith(refused)
    assert s3.get("runs/out") == made

    first = {path: data for path, data in s3.get("work").items() if "places/" not in path}
    s3.requests.clear()
    site.run(*on_s3(site, other, "--replace"))
    written = {each.path for each in s3.requests if each.method == "PUT"}
    stages = {path.split("/")[3] for path in written if path.startswith("/bucket/work/")}
    assert "select" in stages
    assert stages.isdisjoint({"facts", "vectors", "cluster", "dedup", "stamps"})
    assert first.items() <= s3.get("work").items()
    assert stored_result(s3) != content(undisturbed.root / "out")


def test_a_run_goes_on_through_throttling_errors_resets_and_short_answers(s3, site, undisturbed):
    words = stored_data(s3, site)
    ways = {"SlowDown": 7, "InternalError": 11, "reset": 13}
    s3.faults += [Fault(way, every=every) for way, every in ways.items()]
    s3.faults.append(Fault("cut", "GET", every=5))
    site.run(*on_s3(site, *words))
    faults = s3.faults[:]
    s3.faults.clear()
    assert all(fault.failed for fault in faults)
    assert fetched_result(s3, site) == local_result(undisturbed)


def test_a_store_that_goes_on_failing_is_one_line_and_the_same_command_goes_on(
    s3, site, undisturbed
):
    s3.put(site.work / "calibrate", "work/calibrate")
    s3.faults.append(Fault("SlowDown", "PUT", "/work/cluster/"))
    said = site.run(*on_s3(site), status=2)
    assert "the storage asks for fewer requests" in said.splitlines()[-1]
    assert not s3.get("runs")
    s3.faults.clear()
    s3.requests.clear()
    site.run(*on_s3(site))
    assert not [each for each in s3.requests if each.method == "PUT" and "/facts/" in each.path]
    assert stored_result(s3) == content(undisturbed.root / "out")


MOMENTS = (
    "work/vectors/",
    "work/cluster/",
    "work/select/",
    "runs/out/shards/",
    "runs/out/run.json",
)
"""What a run is about to store when it is killed."""


def test_a_run_killed_while_it_stores_finishes_to_the_same_bytes(
    s3, site, undisturbed, tmp_path, monkeypatch
):
    fork_server()  # before TMPDIR names a folder of this test: its sockets stay where it starts
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    environment = {**s3.environment, "TMPDIR": str(tmp_path / "scratch")}
    words = site.arguments(*on_s3(site))
    s3.put(site.work / "calibrate", "work/calibrate")
    for moment in MOMENTS:
        with forked_command("curate.cli", words, tmp_path / "log", **environment) as process:

            def kill(request, moment=moment, process=process):
                if request.method == "PUT" and f"/bucket/{moment}" in request.path:
                    s3.watch = None
                    process.send_signal(signal.SIGKILL)

            s3.watch = kill
            assert process.wait() == -signal.SIGKILL, (moment, process.log.read_text())
        assert "run.json" not in s3.get("runs/out")
    site.run(*words[1:])
    assert stored_result(s3) == content(undisturbed.root / "out")
    assert set(s3.get("runs")) == {f"out/{name}" for name in s3.get("runs/out")}
    assert not [*(tmp_path / "scratch" / "lvd-stores").iterdir()]


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
        ["search", "s3://bucket/runs/out", "--key", "key"],
        ["diff", "s3://bucket/runs/out", "out"],
        ["query", "s3://bucket/runs/out", "select 1"],
        ["label", "s3://bucket/runs/out", "--labels", "said.csv"],
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
