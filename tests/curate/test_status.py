"""How far a run is, from another process and without its locks: finished, at work, or cut off."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest

from curate.execution import monitor, status
from curate.execution.monitor import Monitor
from curate.execution.session import STATUS, status_file
from curate.execution.status import runs_at_work
from shared import progress
from shared.errors import LvdError
from shared.progress import StageBar


def until(condition):
    """Wait until something is so; give up, as failed, after a minute."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it never came to be")


@pytest.fixture
def bar(monkeypatch):
    """A stage's bar with 30 of 100 images, 10 of them done before, and a rate that is told at once."""
    monkeypatch.setattr(progress, "SETTLED", 0.0)
    bar = StageBar("embed", 100, "images")
    bar.skip(10)
    bar.advance(5)
    bar.advance(15)
    return bar


@pytest.fixture
def at_work(small_run, bar, monkeypatch):
    """A run in this process that says how far it is, on the work folder of a finished one."""
    monkeypatch.setattr(monitor, "INTERVAL", 0.01)
    out = small_run.root / "new"
    paths = [small_run.work / STATUS / "mine.json", status_file(out)]
    with Monitor(paths, out) as running:
        running.begin("embed")
        running.follow(bar)
        running.fail()
        until(lambda: all(p.exists() and json.loads(p.read_text()).get("done") for p in paths))
        yield small_run, out


def test_of_a_finished_run_its_result_is_said(small_run):
    funnel = json.loads((small_run.out / "reports" / "funnel.json").read_text())
    kept = funnel["decisions"]["kept"]
    code, said = small_run("status", small_run.out)
    expected = f"{small_run.out}: finished: {kept} of 20 images of crawl kept for seed"
    assert (code, said) == (0, [expected])
    assert small_run("status", small_run.work) == (0, [f"{small_run.work}: no run is at work"])


def test_of_a_run_at_work_stage_counts_rate_and_failures_are_said(at_work):
    run, out = at_work
    for folder in (out, run.work):
        code, [where, what] = run("status", folder)
        assert code == 0
        assert where == f"{out}: at work (process {os.getpid()} on {socket.gethostname()})"
        stage, counts, speed, left, since, failures = what.strip().split(", ")
        assert (stage, counts) == ("embed", "30 of 100 images")
        assert speed.endswith("/s")
        assert left.endswith("left in this stage")
        assert since.endswith("since it began")
        assert failures == "1 units failed"


def test_of_a_run_that_replaces_a_result_both_are_said(at_work):
    run, out = at_work
    run.out.rename(out)
    finished, where, _ = run("status", out)[1]
    assert finished.startswith(f"{out}: finished: ")
    assert where.startswith(f"{out}: at work")


def test_asking_takes_no_lock_and_writes_nothing(at_work, monkeypatch):
    run, out = at_work

    def listed():
        return {p: p.is_dir() for p in run.root.rglob("*") if STATUS not in p.as_posix()}

    before = listed()
    monkeypatch.setattr(fcntl, "flock", lambda *_: pytest.fail("took a lock"))
    for folder in (out, run.out, run.work):
        assert run("status", folder)[0] == 0
    assert listed() == before


def test_a_run_that_has_ended_is_not_at_work(small_run):
    out = small_run.root / "new"
    paths = [small_run.work / STATUS / "mine.json", status_file(out)]

    def fail():
        with Monitor(paths, out):
            until(lambda: runs_at_work(small_run.work))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert runs_at_work(small_run.work) == []
    assert not any(path.exists() for path in paths)


RUN = """
    import os, signal, sys
    from curate.cli import main
    from curate.export import shards
    from curate.execution import monitor

    monitor.INTERVAL = 0.01
    write, count = shards.write_shard, []

    def dying(*args, **named):
        count.append(1)
        if len(count) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(*args, **named)

    shards.write_shard = dying
    main(sys.argv[1:])
"""


def test_of_a_run_that_was_cut_off_is_said_what_to_do_and_its_whole_shards(small_run):
    out = small_run.root / "cut"
    words = ["run", f"--out={out}", f"--work={small_run.work}", "--executor=inline"]
    words += [f"--config={small_run.data / 'pipelines.yaml'}"]
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(RUN), *words], check=False, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert status_file(out).exists()
    said = small_run("status", out)
    remedy = "run the same command to go on"
    assert said == (0, [f"{out}.partial: cut off: {remedy}; 1 shards are whole"])
    assert small_run("status", small_run.work)[1] == [f"{small_run.work}: no run is at work"]
    assert small_run("run", f"--out={out}")[0] == 0
    assert small_run("status", out)[1][0].startswith(f"{out}: finished: ")
    assert not status_file(out).exists()


def test_a_run_that_is_silent_for_long_on_another_host_is_cut_off(at_work):
    run, out = at_work
    elsewhere = run.root / "elsewhere"
    report = json.loads(status_file(out).read_text())
    report |= {"host": "elsewhere", "out": str(elsewhere)}
    status_file(elsewhere).write_text(json.dumps(report))
    assert "at work" in run("status", elsewhere)[1][0]
    report["updated"] = time.time() - 2 * monitor.SILENT
    status_file(elsewhere).write_text(json.dumps(report))
    assert run("status", elsewhere)[1] == [f"{elsewhere}: cut off: run the same command to go on"]


def test_what_no_run_knows_is_refused(small_run):
    with pytest.raises(LvdError, match="no run has finished"):
        status.status(small_run.root / "nowhere")


def test_progress_never_falls(bar):
    shown = [bar.shown]
    for under_way in (5, 9, 0, 3):  # a unit that is killed begins anew
        bar.count_under_way(under_way)
        shown.append(bar.shown)
    bar.advance(4)
    shown.append(bar.shown)
    bar.advance(10)
    shown.append(bar.shown)
    assert shown == [30, 35, 39, 39, 39, 39, 44]
    bar.total = 40  # a guess that was too low
    counts = bar.counts()
    assert (counts["done"], counts["total"], counts["left"]) == (44, 44, 0)
    bar.total, bar.is_guess = 60, True
    assert bar.status().startswith("44/~60 images")
