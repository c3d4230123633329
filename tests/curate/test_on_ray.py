"""What only Ray has: killed workers and actors, limits, GPUs apart, clusters that do not answer."""

import os
import socket
from pathlib import Path

import pytest
from botocore.exceptions import NoCredentialsError
from engine_units import (
    always_killed,
    disconnected_at_first,
    disconnected_with,
    failing,
    killed_at_first,
    killed_in_setup,
    killed_with,
    kills_its_holder,
    last_of,
    last_with,
    missing_state,
    set_up,
    set_up_badly,
    set_up_slowly,
    slower_first,
    together,
    write,
    write_with,
)

from curate.execution.executor import TRIES, Call
from curate.execution.on_ray import RayExecutor
from curate.execution.ray_pools import TaskPool
from curate.execution.ray_worker import ON_CLUSTER, naming_node
from curate.execution.session import open_runner
from curate.stage import EngineSettings, Stage, Unit, Workers
from shared.errors import LvdError

STAGE = Stage("testing", 1)


@pytest.fixture
def settings():
    return EngineSettings()


@pytest.fixture
def runner(ray_session, tmp_path, settings):
    """A runner on Ray, at work on the stage `testing`."""
    with open_runner(tmp_path / "work", settings, "ray") as runner, runner.at_work("testing"):
        yield runner


@pytest.fixture
def of(tmp_path):
    """Return workers that are set up with a text; each setup adds a line to `setups`."""
    return lambda text, gpus=False: Workers(set_up, (text, tmp_path / "setups"), gpus)


def texts(runner):
    return {path.parent.name: path.read_text() for path in runner.folder(STAGE).glob("*/text")}


def lines(path):
    return len(path.read_text().splitlines())


def test_results_stand_in_the_order_of_the_units(runner):
    units = [Unit(str(n), (str(n), 0.3 if n == 0 else 0)) for n in range(5)]
    results = runner.run(STAGE, slower_first, units)
    assert [result["text"] for result in results] == list("01234")
    assert texts(runner) == {str(n): str(n) for n in range(5)}
    assert os.getpid() not in {result["pid"] for result in results}


def test_where_nothing_is_missing_ray_is_not_started(runner, monkeypatch):
    units = [Unit("a", ("a",))]
    first = runner.run(STAGE, write, units)
    monkeypatch.setattr(RayExecutor, "_start", lambda self: pytest.fail("Ray was started"))
    assert runner.run(STAGE, write, units) == first


def test_a_connection_that_breaks_is_tried_again(runner, tmp_path, of):
    runner.run(STAGE, disconnected_at_first, [Unit("task", (tmp_path / "ledger", TRIES))])
    units = [Unit("actor", (tmp_path / "other", TRIES))]
    runner.run(STAGE, disconnected_with, units, workers=of("s"))
    assert texts(runner) == {"task": "in the end", "actor": "in the end"}


def test_units_of_a_killed_worker_are_run_again(runner, tmp_path, of):
    units = [Unit(f"task{n}", (tmp_path / "ledger", str(n))) for n in range(4)]
    runner.run(STAGE, killed_at_first, units)
    units = [Unit(f"actor{n}", (tmp_path / "other", str(n))) for n in range(4)]
    runner.run(STAGE, killed_with, units, workers=of("s"))
    tasks = {f"task{n}": str(n) for n in range(4)}
    assert texts(runner) == tasks | {f"actor{n}": f"S{n}" for n in range(4)}
    assert list(runner.scratch.glob("*/text"))  # what the killed ones left there is not taken


def test_what_several_units_are_given_is_sent_once(runner, ray_session, monkeypatch, of):
    put, sent, held = ray_session.put, [], []
    monkeypatch.setattr(ray_session, "put", lambda value: sent.append(value) or put(value))
    texts_of_all = [Path(f"folder-{n:08d}") for n in range(1_000)]
    monkeypatch.setattr(
        TaskPool,
        "hand_out",
        lambda pool, call, real=TaskPool.hand_out: held.append(call) or real(pool, call),
    )
    units = [Unit(f"task{n}", (texts_of_all, f"{n}")) for n in range(4)]
    runner.run(STAGE, last_of, units)
    assert sent == [texts_of_all]
    assert max(len(ray_session.cloudpickle.dumps(call)) for call in held) < 2_000
    gpus = of("s", gpus=True)
    for workers, name in ((of("s"), "actor"), (gpus, "apart")):
        units = [Unit(f"{name}{n}", (texts_of_all, f"{n}")) for n in range(2)]
        runner.run(STAGE, last_with, units, workers=workers)
    assert sent == [texts_of_all] * 3
    said = {name: text.partition(" of ")[2] for name, text in texts(runner).items()}
    assert len(said) == 8
    assert set(said.values()) == {"1000, folder-00000999"}


def test_a_unit_that_always_kills_its_worker_is_an_error(runner, tmp_path):
    with pytest.raises(LvdError, match="testing failed on deadly: ") as caught:
        runner.run(STAGE, always_killed, [Unit("deadly", (tmp_path / "ledger",))])
    assert "\n" not in str(caught.value)
    assert lines(tmp_path / "ledger") == TRIES
    assert not (runner.folder(STAGE) / "deadly").exists()


def test_an_unforeseen_error_is_one_line_and_a_trace(runner, tmp_path):
    with pytest.raises(LvdError, match=r"^testing failed on third: KeyError: ") as caught:
        runner.run(STAGE, failing, [Unit("third", (tmp_path / "ledger",))])
    assert "\n" not in str(caught.value)
    assert "in failing" in (runner.work / "failures" / "testing-third.txt").read_text()


def test_a_setup_that_fails_is_one_line(runner):
    with pytest.raises(LvdError, match=r"^no weights at nowhere: get them$"):
        runner.run(STAGE, write_with, [Unit("7", ("t",))], workers=Workers(set_up_badly))
    with pytest.raises(LvdError, match="ImportError: no module named weights") as caught:
        runner.run(STAGE, write_with, [Unit("7", ("t",))], workers=Workers(missing_state))
    assert "\n" not in str(caught.value)
    assert "in missing_state" in (runner.work / "failures" / "testing-start.txt").read_text()


@pytest.mark.parametrize("settings", [EngineSettings(workers=1), EngineSettings(workers=2)])
def test_no_more_units_run_at_a_time_than_there_are_workers(runner, tmp_path, settings):
    (tmp_path / "at work").mkdir()
    units = [Unit(str(n), (tmp_path / "at work",)) for n in range(6)]
    results = runner.run(STAGE, together, units)
    assert max(result["together"] for result in results) <= settings.workers


@pytest.mark.parametrize("settings", [EngineSettings(workers=1)])
def test_actors_are_set_up_once_for_all_runs_of_a_stage(runner, tmp_path, of):
    pids = set()
    for name in "ab":
        units = [Unit(f"{name}{n}", ("t",)) for n in range(3)]
        results = runner.run(STAGE, write_with, units, workers=of("s"))
        pids |= {result["pid"] for result in results}
    assert pids == {results[-1]["holder"]}
    assert lines(tmp_path / "setups") == 1


@pytest.mark.parametrize("settings", [EngineSettings(patience=60)])
def test_actors_that_hold_every_processor_make_room_for_others_and_for_plain_units(runner, of):
    for text in ("s", "r"):
        units = [Unit(f"{text}{n}", ("t",)) for n in range(4)]
        results = runner.run(STAGE, write_with, units, workers=of(text))
        assert {result["state"] for result in results} == {text.upper()}
    assert runner.run(STAGE, write, [Unit("plain", ("t",))])[0]["text"] == "t"


def test_beside_a_gpu_the_setup_has_a_process_of_its_own(runner, tmp_path, of):
    units = [Unit(str(n), (f"{n}",)) for n in range(4)]
    results = runner.run(STAGE, write_with, units, workers=of("s", gpus=True))
    assert texts(runner) == {str(n): f"S{n}" for n in range(4)}
    assert lines(tmp_path / "setups") == 1  # of the session's one GPU
    [holder] = {result["holder"] for result in results}
    assert holder not in {result["pid"] for result in results}


def test_a_killed_process_beside_a_gpu_is_replaced(runner, tmp_path, of):
    units = [Unit(str(n), (tmp_path / "ledger", f"{n}")) for n in range(4)]
    runner.run(STAGE, kills_its_holder, units, workers=of("s", gpus=True))
    assert texts(runner) == {str(n): f"S{n}" for n in range(4)}
    assert lines(tmp_path / "setups") == 2


@pytest.mark.parametrize("settings", [EngineSettings(patience=0.1)])
def test_patience_with_a_cluster_that_has_no_room_ends(runner, ray_session, of):
    @ray_session.remote(num_gpus=1, num_cpus=0)
    class Busy:
        def ready(self):
            return True

    busy = Busy.remote()
    ray_session.get(busy.ready.remote())
    try:
        with pytest.raises(
            LvdError, match=r"the Ray cluster has had no GPU free .* engine\.patience"
        ):
            runner.run(STAGE, write_with, [Unit("a", ("t",))], workers=of("s", gpus=True))
    finally:
        ray_session.kill(busy)


def test_a_setup_at_work_is_not_a_wait_for_processors(ray_session, tmp_path):
    notes = []
    calls = [Call(Unit(str(n), (f"{n}",)), write_with, tmp_path, tmp_path) for n in range(2)]
    with RayExecutor(EngineSettings()) as executor:  # its actors fill the session
        list(executor.run(calls, Workers(set_up_slowly, (3,)), gpus=0, waiting=notes.append))
    assert notes[-1] == ""


def test_a_setup_that_always_kills_its_process_is_one_line(runner):
    with pytest.raises(LvdError, match="testing failed on start: ") as caught:
        runner.run(STAGE, write_with, [Unit("a", ("t",))], workers=Workers(killed_in_setup))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", [EngineSettings(patience=0.1, threads=3)])
def test_a_unit_of_more_processors_than_any_node_has_is_refused(runner):
    with pytest.raises(
        LvdError, match=r"no node of the Ray cluster has had the CPUs of a unit .3. for .*patience"
    ):
        runner.run(STAGE, write, [Unit("a", ("t",))])


def test_a_cluster_that_does_not_answer_is_refused(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):  # closed by now
        monkeypatch.setenv("RAY_ADDRESS", address)
        opened = open_runner(tmp_path / "work", EngineSettings(), "ray")
        refused = pytest.raises(LvdError, match="no Ray cluster answers at RAY_ADDRESS")
        with opened as runner, runner.at_work("testing"), refused as caught:
            runner.run(STAGE, write, [Unit("a", ("a",))])
        assert address in str(caught.value)
        assert "unset RAY_ADDRESS" in str(caught.value)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (LvdError("s3://b/x names y"), r"^s3://b/x names y \(on the node 10\.0\.0\.7\)$"),
        (
            ImportError("Install s3fs"),
            r"^part on the node 10\.0\.0\.7: Install s3fs: install there",
        ),
        (
            NoCredentialsError(),
            r"^part on the node 10\.0\.0\.7: .* credentials.*: provide valid ones",
        ),
    ],
)
def test_what_is_wrong_with_a_node_of_a_cluster_names_it(monkeypatch, error, said):
    monkeypatch.setenv(ON_CLUSTER, "yes")
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "10.0.0.7")
    with pytest.raises(LvdError, match=said) as caught, naming_node("part"):
        raise error
    assert len(str(caught.value).splitlines()) == 1
