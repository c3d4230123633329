"""What a runner promises whatever the executor, on the one that runs in this process."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from engine_units import (
    disconnected_at_first,
    failing,
    failing_but,
    lost,
    missing_state,
    refusing,
    set_up,
    set_up_badly,
    shard,
    write,
    write_with,
    written_where,
)

from curate.execution.executor import TRIES
from curate.execution.session import open_runner
from curate.stage import EngineSettings, Failure, Stage, Unit, Workers
from shared import progress
from shared.errors import LvdError
from shared.storage.commits import UnderWay, building, read_manifest

STAGE = Stage("testing", 1, ["an input"])


@pytest.fixture
def runner(tmp_path):
    """A runner at work on the stage `testing`."""
    opened = open_runner(tmp_path / "work", EngineSettings(), "inline")
    with opened as runner, runner.at_work("testing"):
        yield runner


def texts(runner):
    return {path.parent.name: path.read_text() for path in runner.folder(STAGE).glob("*/text")}


def lines(path):
    return len(path.read_text().splitlines())


def test_an_address_changes_with_all_that_decides_and_with_nothing_else():
    others = [
        Stage("other", 1, ["an input"]),
        Stage("testing", 2, ["an input"]),
        Stage("testing", 1, ["another"]),
        Stage("testing", 1, ["an input"], {"k": 1}),
    ]
    assert len({STAGE.address, *(stage.address for stage in others)}) == 5
    assert Stage("testing", 1, ["an input"]).address == STAGE.address
    same = [
        Stage("testing", 1, None, {"a": 1, "b": 2}),
        Stage("testing", 1, None, {"b": 2, "a": 1}),
    ]
    assert same[0].address == same[1].address


def test_results_stand_in_the_order_of_the_units(runner):
    runner.run(STAGE, write, [Unit("b", ("b",))])
    results = runner.run(STAGE, write, [Unit(name, (name,)) for name in "cab"])
    assert [result["text"] for result in results] == list("cab")
    assert texts(runner) == {name: name for name in "abc"}
    assert read_manifest(runner.folder(STAGE) / "a")["result"] == results[1]


def test_what_is_committed_is_not_run_again(runner, monkeypatch):
    first = runner.run(STAGE, write, [Unit(name, ("old",)) for name in "ab"])
    second = runner.run(STAGE, write, [Unit(name, ("new",)) for name in "abc"])
    assert second[:2] == first
    assert texts(runner) == {"a": "old", "b": "old", "c": "new"}
    monkeypatch.setattr(runner.executor, "run", lambda *_, **__: pytest.fail("something was run"))
    assert runner.run(STAGE, write, [Unit(name, ("newer",)) for name in "abc"]) == second
    assert list(runner.used) == [f"testing/{STAGE.address}"]


def test_a_stage_whose_units_are_all_there_is_cached_and_counts_its_images(tmp_path):
    units = [Unit("a", ("a",), images=5), Unit("b", ("b",), images=7)]
    times = []
    for _ in range(2):
        opened = open_runner(tmp_path / "work", EngineSettings(), "inline")
        with opened as runner, runner.at_work("testing"):
            runner.run(STAGE, write, units)
        times += runner.times
    assert [(time.images, time.worked, time.cached) for time in times] == [
        (12, 12, False),
        (12, 0, True),
    ]


def test_a_stage_says_how_long_what_was_done_in_it_took(runner, monkeypatch):
    clock = SimpleNamespace(monotonic=iter([10.0, 12.5, 20.0, 21.0]).__next__)
    with monkeypatch.context() as patch:
        patch.setattr("curate.execution.runner.time", clock)
        for name in "ab":
            runner.run(STAGE, write, [Unit(name, (name,))], note="writing")
        runner.run(STAGE, write, [Unit("a", ("a",))], note="reading")
    assert runner.times[-1].steps == {"writing": 3.5}


def test_a_setup_is_made_once_for_all_units_and_again_for_other_arguments(runner, tmp_path):
    ledger = tmp_path / "ledger"
    for name in "ab":
        units = [Unit(f"{name}{n}", ("t",)) for n in range(3)]
        results = runner.run(STAGE, write_with, units, workers=Workers(set_up, ("s", ledger)))
        assert {result["state"] for result in results} == {"S"}
    assert lines(ledger) == 1
    other = Workers(set_up, ("r", ledger))
    [result] = runner.run(STAGE, write_with, [Unit("c", ("t",))], workers=other)
    assert result["state"] == "R"
    assert lines(ledger) == 2


def test_an_unforeseen_error_is_one_line_and_a_trace(runner, tmp_path):
    ledger = tmp_path / "ledger"
    with pytest.raises(LvdError) as caught:
        runner.run(STAGE, failing, [Unit("third", (ledger,))])
    trace = runner.work / "failures" / "testing-third.txt"
    said = f"testing failed on third: KeyError: 'the third key\\nis missing' (trace: {trace})"
    assert str(caught.value) == said
    assert "in failing" in trace.read_text()
    assert lines(ledger) == TRIES
    assert not (runner.folder(STAGE) / "third").exists()


@pytest.mark.parametrize("function", [failing, refusing])
def test_what_was_committed_before_a_failure_stays(runner, tmp_path, function):
    runner.run(STAGE, write, [Unit("a", ("a",))])
    with pytest.raises(LvdError):
        runner.run(STAGE, function, [Unit("a", (tmp_path / "x",)), Unit("bad", (tmp_path / "x",))])
    assert texts(runner) == {"a": "a"}
    assert runner.run(STAGE, write, [Unit("bad", ("good now",))])[0]["text"] == "good now"


def test_errors_for_the_user_pass_as_they_are_and_at_once(runner, tmp_path):
    ledger = tmp_path / "ledger"
    with pytest.raises(LvdError, match=r"^part 7 is gone: put it back$"):
        runner.run(STAGE, refusing, [Unit("7", (ledger,))])
    assert lines(ledger) == 1
    with pytest.raises(LvdError, match=r"^no weights at nowhere: get them$"):
        runner.run(STAGE, write_with, [Unit("7", ("t",))], workers=Workers(set_up_badly))
    assert not (runner.work / "failures").exists()


def test_a_setup_that_fails_is_one_line_and_a_trace(runner):
    with pytest.raises(LvdError, match="ImportError: no module named weights") as caught:
        runner.run(STAGE, write_with, [Unit("7", ("t",))], workers=Workers(missing_state))
    assert "\n" not in str(caught.value)
    [trace] = (runner.work / "failures").iterdir()
    assert str(trace) in str(caught.value)
    assert "in missing_state" in trace.read_text()


def test_a_connection_that_breaks_is_tried_again_but_not_for_ever(runner, tmp_path):
    runner.run(STAGE, disconnected_at_first, [Unit("some", (tmp_path / "ledger", TRIES))])
    assert texts(runner) == {"some": "in the end"}
    with pytest.raises(LvdError, match=r"testing, many: the connection to the storage is lost"):
        runner.run(STAGE, disconnected_at_first, [Unit("many", (tmp_path / "other", TRIES + 1))])
    assert lines(tmp_path / "other") == TRIES


def test_a_missing_file_is_not_tried_again(runner, tmp_path):
    ledger = tmp_path / "ledger"
    with pytest.raises(LvdError, match=r"testing, 7: /nowhere/7\.tar: it is not there"):
        runner.map(lost, [Unit("7", (ledger,))])
    assert lines(ledger) == 1


def test_map_goes_on_behind_a_unit_that_fails_for_its_own_reasons(runner, tmp_path):
    ledger = tmp_path / "ledger"
    units = [Unit(name, (name, ledger)) for name in ("a", "bad", "c")]
    a, bad, c = runner.map(failing_but, units)
    assert (a, c) == ({"text": "a"}, {"text": "c"})
    assert isinstance(bad, Failure)
    assert bad.line.startswith("testing failed on bad: KeyError")
    assert lines(ledger) == TRIES
    assert runner.monitor.report()["failures"] == 1


def test_map_gives_units_the_scratch_and_counts_what_they_say(runner):
    units = [Unit(name, (name,), weight=weight) for name, weight in (("a", 10), ("b", 20))]
    results = runner.map(written_where, units, done=4)
    assert [result["text"] for result in results] == ["a", "b"]
    assert {result["scratch"] for result in results} == {str(runner.scratch)}
    assert (runner.times[-1].images, runner.times[-1].worked) == (10, 6)
    assert runner.monitor.report()["done"] == 10


def test_what_is_left_is_known_before_the_first_unit_ends(runner, monkeypatch):
    monkeypatch.setattr(progress, "SETTLED", 0)
    reports = []

    def unit(images, weight, *, scratch):
        with building(scratch / f"unit-{images}", scratch) as beside:
            UnderWay(images // 4, images, weight).write(beside)  # the first sign of work
            runner.monitor.report()
            UnderWay(images // 2, images, weight).write(beside)
            reports.append(runner.monitor.report())
        return {"images": images}

    units = [Unit(str(n), (n, 10 * n), weight=10 * n) for n in (40, 20, 40)]
    runner.map(unit, units, done=7)
    assert [(report["done"], report["total"]) for report in reports] == [
        (7 + 20, 7 + 100),
        (7 + 50, 7 + 100),
        (7 + 80, 7 + 100),
    ]
    assert all(report["left"] > 0 for report in reports)
    assert [report["is_guess"] for report in reports] == [True, True, False]
    last = runner.monitor.report()
    assert not last["is_guess"]
    assert (last["done"], last["total"]) == (107, 107)


def test_a_flat_unit_s_files_lie_in_the_folder_itself(runner, tmp_path):
    shards, scratch = tmp_path / "out" / "shards", tmp_path / "out" / ".scratch"
    for _ in range(2):
        [result] = runner.run(shards, shard, [Unit("00000", ())], scratch=scratch, flat=True)
        assert result == {"count": 1}
    assert sorted(path.name for path in shards.iterdir()) == ["00000.tar", "00000_stats.json"]
    assert list(scratch.iterdir()) == []
    assert list(runner.used) == []


def test_scratch_is_swept_of_dead_runs_and_of_no_living_one(tmp_path):
    work = tmp_path / "work"
    with open_runner(work, EngineSettings(), "inline") as living:
        (living.scratch / "file").touch()
        dead = work / "scratch" / "1-1"
        dead.mkdir()
        (dead / "file").touch()
        (work / "scratch" / "1-1.lock").touch()
        with open_runner(work, EngineSettings(), "inline") as other:
            assert (living.scratch / "file").exists()
            assert not dead.exists()
            assert other.scratch != living.scratch
        assert (living.scratch / "file").exists()
    assert list((work / "scratch").iterdir()) == []


def test_in_process_runs_need_no_ray(tmp_path):
    code = (
        "import sys; from pathlib import Path; from engine_units import write\n"
        "from curate.execution.session import open_runner\n"
        "from curate.stage import EngineSettings, Stage, Unit\n"
        f"with open_runner(Path({str(tmp_path)!r}), EngineSettings(), 'inline') as runner:\n"
        "    with runner.at_work('testing'):\n"
        "        runner.run(Stage('testing', 1), write, [Unit('a', ('t',))])\n"
        "assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
