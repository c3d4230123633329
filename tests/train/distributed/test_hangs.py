"""A process that hangs ends the run with stacks and a checkpoint; one that is at work is waited for."""

from __future__ import annotations

import json
import os
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from forked import run_ranks
from small_run import RECIPE, write_shards

import train.loop
from shared.errors import LvdError
from train.distributed.heartbeat import first_does
from train.distributed.ranks import TIMEOUT
from train.distributed.watchdog import Watchdog
from train.persistence.checkpoints import newest
from train.recipe import Recipe

HANGS_IN = 2


def wait_in_vain(done: Path) -> None:
    deadline = time.monotonic() + 90
    while not done.exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def found_by_waiting() -> dict:
    """What becomes of processes that wait for the first one's work."""
    began = time.monotonic()
    made = first_does("long", lambda: time.sleep(4.0) or "made", beat=0.1, patience=3)
    found = {"made": made, "waited": time.monotonic() - began}

    def fail() -> None:
        raise LvdError("the first process's own")

    for name, work, patience in (("fails", fail, 30), ("silent", lambda: time.sleep(3.0), 0.3)):
        try:
            first_does(name, work, beat=60, patience=patience)
        except LvdError as error:
            found[name] = str(error)
    return found


def in_each_process(folder: Path) -> None:
    """Train, wait in the first step for what one process does, and hang in another in a later one."""
    real, over = train.loop.optimiser_step, folder / "over"

    def step(system, micro_batches, values, number, counts):
        rank = system.ranks.rank
        if number == 0:
            (folder / f"{rank}.json").write_text(json.dumps(found_by_waiting()))
        if number == HANGS_IN:
            if rank == 1:
                wait_in_vain(over)
            # As if from the start; but then a busy machine would be cut off too.
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=3))
        return real(system, micro_batches, values, number, counts)

    train.loop.optimiser_step = step
    train.loop.SHARE = 1 / TIMEOUT  # a second
    try:
        train.loop.train(Recipe.model_validate(RECIPE), str(folder / "shards"), folder / "out")
    except (LvdError, RuntimeError) as error:
        (folder / f"said-{os.environ['RANK']}.txt").write_text(str(error))
    over.touch()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hangs")
    write_shards(folder / "shards")
    run_ranks(in_each_process, folder, folder=folder)
    return folder


def test_a_process_at_work_is_waited_for_beyond_the_patience(two_processes: Path) -> None:
    first, other = (json.loads((two_processes / f"{rank}.json").read_text()) for rank in range(2))
    assert (first["made"], other["made"]) == ("made", None)
    assert other["waited"] > 3, "the patience"


def test_a_first_process_that_fails_or_falls_silent_is_not_waited_for(two_processes: Path) -> None:
    first, other = (json.loads((two_processes / f"{rank}.json").read_text()) for rank in range(2))
    assert first["fails"] == "the first process's own"
    assert "has failed" in other["fails"]
    assert "no sign of life" in other["silent"]
    assert "silent" not in first


def test_a_hung_process_ends_the_run_with_its_stack_and_a_whole_checkpoint(
    two_processes: Path,
) -> None:
    out = two_processes / "out"
    said = (two_processes / "said-0.txt").read_text()
    assert f"step-{HANGS_IN:07d}" in said
    assert newest(out / "checkpoints").name == f"step-{HANGS_IN:07d}"
    assert "wait_in_vain" in (out / "hang-1.txt").read_text()
    assert "optimiser_step" in (out / "hang-0.txt").read_text()
    recorded = json.loads((out / "hang-0.json").read_text())["gloo"]["entries"]
    assert "gloo:all_reduce" in {entry["profiling_name"] for entry in recorded}


def test_a_watchdog_speaks_once_for_each_silence_and_never_while_it_hears(tmp_path: Path) -> None:
    path, there = tmp_path / "hang-3.txt", threading.Event()

    def until_written() -> None:
        deadline = time.monotonic() + 30
        while not (path.exists() and "Thread" in path.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    with Watchdog(60, tmp_path, 2) as patient, Watchdog(0.2, tmp_path, 3) as watchdog:
        patient.beat()
        until_written()
        path.unlink()
        there.wait(0.3)
        assert not path.exists()
        watchdog.beat()
        until_written()
    assert not (tmp_path / "hang-2.txt").exists()
