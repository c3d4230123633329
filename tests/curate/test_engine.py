"""Units on a real Ray: retries, killed workers, order, limits, and errors in one line."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from curate.execution.engine import TRIES, Engine, EngineSettings, Unit
from shared.errors import LvdError


def write(text: str, *, out: Path) -> dict:
    (out / "text").write_text(text)
    return {"text": text, "pid": os.getpid()}


def write_with(state: str, text: str, *, out: Path) -> dict:
    return {**write(state + text, out=out), "state": state}


def count(ledger: Path) -> int:
    """Add a line to `ledger`, and return how many it has."""
    with ledger.open("a") as stream:
        stream.write("x\n")
    return len(ledger.read_text().splitlines())


def disconnected_at_first(ledger: Path, *, out: Path) -> dict:
    if count(ledger) < TRIES:
        raise ConnectionError("reset by peer")
    return write("in the end", out=out)


def disconnected_actor(state: str, ledger: Path, *, out: Path) -> dict:
    return disconnected_at_first(ledger, out=out)


def killed_at_first(ledger: Path, text: str, *, out: Path) -> dict:
    result = write(text, out=out)
    if count(ledger) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return result


def killed_actor(state: str, ledger: Path, text: str, *, out: Path) -> dict:
    return killed_at_first(ledger, state + text, out=out)


def always_killed(*, out: Path) -> dict:
    os.kill(os.getpid(), signal.SIGKILL)


def slow(folder: Path, *, out: Path) -> dict:
    """Return how many others were at work at the same time, itself included."""
    (folder / out.name).touch()
    time.sleep(0.1)
    together = len(list(folder.iterdir()))
    (folder / out.name).unlink()
    return {"together": together}


def slower_first(text: str, seconds: float, *, out: Path) -> dict:
    time.sleep(seconds)
    return write(text, out=out)


def failing(*, out: Path) -> dict:
    raise KeyError("the third key\nis missing")


def refusing(*, out: Path) -> dict:
    raise LvdError("part 7 is gone: put it back")


def set_up(text: str) -> str:
    return text


def set_up_badly() -> str:
    raise LvdError("no weights at nowhere: get them")


def missing_state() -> str:
    raise ImportError("no module named weights")


@pytest.fixture
def engine(ray_session, tmp_path):
    with Engine(tmp_path / "work") as engine, engine.stage("testing"):
        yield engine


@pytest.fixture
def folder(engine) -> Path:
    return engine.work / "testing" / "0123"


def texts(folder: Path) -> dict[str, str]:
    return {path.parent.name: path.read_text() for path in folder.glob("*/text")}


def test_results_stand_in_the_order_of_the_units(engine, folder):
    units = [Unit(str(n), (str(n), 0.3 if n == 0 else 0)) for n in range(5)]
    results = engine.run(folder, slower_first, units)
    assert [result["text"] for result in results] == list("01234")
    assert texts(folder) == {str(n): str(n) for n in range(5)}


def test_what_is_committed_is_not_run_again_and_needs_no_ray(engine, folder, monkeypatch):
    first = engine.run(folder, write, [Unit("a", ("old",)), Unit("b", ("old",))])
    second = engine.run(folder, write, [Unit(name, ("new",)) for name in "abc"])
    assert second[:2] == first
    assert texts(folder) == {"a": "old", "b": "old", "c": "new"}
    monkeypatch.setattr(engine, "_start", lambda: pytest.fail("Ray was started"))
    assert engine.run(folder, write, [Unit(name, ("newer",)) for name in "abc"]) == second


def test_a_connection_that_breaks_is_tried_again(engine, folder, tmp_path):
    engine.run(folder, disconnected_at_first, [Unit("task", (tmp_path / "ledger",))])
    actor = [Unit("actor", (tmp_path / "other",))]
    engine.run(folder, disconnected_actor, actor, setup=set_up, setup_args=("s",))
    assert texts(folder) == {"task": "in the end", "actor": "in the end"}


def test_units_of_a_killed_worker_are_run_again(engine, folder, tmp_path):
    units = [Unit(f"task{n}", (tmp_path / "ledger", str(n))) for n in range(4)]
    engine.run(folder, killed_at_first, units)
    units = [Unit(f"actor{n}", (tmp_path / "other", str(n))) for n in range(4)]
    engine.run(folder, killed_actor, units, setup=set_up, setup_args=("s",))
    tasks = {f"task{n}": str(n) for n in range(4)}
    assert texts(folder) == tasks | {f"actor{n}": f"s{n}" for n in range(4)}


def test_a_unit_that_always_kills_its_worker_is_an_error(engine, folder):
    with pytest.raises(LvdError, match="testing failed on deadly: ") as caught:
        engine.run(folder, always_killed, [Unit("deadly", ())])
    assert "\n" not in str(caught.value)
    assert not (folder / "deadly").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_no_more_units_run_at_a_time_than_there_are_workers(engine, folder, tmp_path, workers):
    engine.settings = EngineSettings(workers=workers)
    (tmp_path / "at work").mkdir()
    units = [Unit(str(n), (tmp_path / "at work",)) for n in range(6)]
    results = engine.run(folder, slow, units)
    assert max(result["together"] for result in results) <= workers


def test_actors_are_set_up_once_for_all_runs_of_a_stage(engine, folder):
    engine.settings = EngineSettings(workers=1)
    pids = {
        result["pid"]
        for name in "ab"
        for result in engine.run(
            folder,
            write_with,
            [Unit(name + str(n), ("t",)) for n in range(3)],
            setup=set_up,
            setup_args=("s",),
        )
    }
    assert len(pids) == 1
    [other] = engine.run(
        folder, write_with, [Unit("c", ("t",))], setup=set_up, setup_args=("another",)
    )
    assert other["state"] == "another"


def test_plain_units_run_beside_actors_that_hold_every_processor(engine, folder):
    units = [Unit(f"a{n}", ("t",)) for n in range(4)]
    engine.run(folder, write_with, units, setup=set_up, setup_args=("s",))
    assert engine.run(folder, write, [Unit("plain", ("t",))])[0]["text"] == "t"


def test_an_unforeseen_error_is_one_line_and_a_trace(engine, folder):
    with pytest.raises(LvdError) as caught:
        engine.run(folder, failing, [Unit("third", ())])
    said = str(caught.value)
    trace = engine.work / "failures" / "testing-third.txt"
    assert (
        said == f"testing failed on third: KeyError: 'the third key\\nis missing' (trace: {trace})"
    )
    assert "in failing" in trace.read_text()


def test_what_was_committed_before_a_failure_stays(engine, folder):
    engine.settings = EngineSettings(workers=1)
    with pytest.raises(LvdError):
        engine.run(folder, only_others, [Unit(name, (name,)) for name in ("a", "b", "bad", "c")])
    assert texts(folder).items() >= {"a": "a", "b": "b"}.items()
    assert engine.run(folder, write, [Unit("bad", ("good now",))])[0]["text"] == "good now"


def only_others(name: str, *, out: Path) -> dict:
    return failing(out=out) if name == "bad" else write(name, out=out)


def test_errors_for_the_user_pass_as_they_are(engine, folder):
    with pytest.raises(LvdError, match=r"^part 7 is gone: put it back$"):
        engine.run(folder, refusing, [Unit("7", ())])
    with pytest.raises(LvdError, match="no weights at nowhere"):
        engine.run(folder, write_with, [Unit("7", ("t",))], setup=set_up_badly)
    with pytest.raises(LvdError, match="no module named weights"):
        engine.run(folder, write_with, [Unit("7", ("t",))], setup=missing_state)
    assert not (engine.work / "failures").exists() or [
        path.name for path in (engine.work / "failures").iterdir()
    ] == ["testing-start.txt"]


def test_scratch_is_swept_of_dead_runs_and_of_no_living_one(tmp_path):
    work = tmp_path / "work"
    with Engine(work) as living:
        (living.scratch / "file").touch()
        dead = work / "scratch" / "1-1"
        dead.mkdir()
        (dead / "file").touch()
        (work / "scratch" / "1-1.lock").touch()
        with Engine(work) as other:
            assert (living.scratch / "file").exists()
            assert not dead.exists()
            assert other.scratch != living.scratch
        assert (living.scratch / "file").exists()
    assert list((work / "scratch").iterdir()) == []


def test_a_flat_unit_s_files_lie_in_the_folder_itself(engine, tmp_path):
    shards, scratch = tmp_path / "out" / "shards", tmp_path / "out" / ".scratch"
    for _ in range(2):
        [result] = engine.run(shards, shard, [Unit("00000", ())], scratch=scratch, flat=True)
        assert result == {"count": 1}
    assert sorted(path.name for path in shards.iterdir()) == ["00000.tar", "00000_stats.json"]
    with contextlib.suppress(StopIteration):
        pytest.fail(f"left behind: {next(scratch.iterdir())}")


def shard(*, out: Path) -> dict:
    (out / "00000.tar").write_bytes(b"tar")
    (out / "00000_stats.json").write_text('{"count": 1}')
    return {"count": 1}
