"""The process group: with torchrun's environment, and without it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from forked import run_ranks

from shared.errors import LvdError
from train.distributed.ranks import any_rank, barrier, max_over_ranks, process_group, sum_over_ranks

PROCESSES = 2


def in_each_process(folder: Path) -> None:
    with process_group("cpu") as ranks:
        found = {
            "rank": ranks.rank,
            "world": ranks.world,
            "first": ranks.first,
            "backend": dist.get_backend(),
            "sum": sum_over_ranks(torch.tensor([1.0, ranks.rank])).tolist(),
            "max": max_over_ranks(torch.tensor([-5 - ranks.rank, ranks.rank])).tolist(),
            "one asked": any_rank(ranks.rank == 1),
            "none asked": any_rank(False),
            "threads": torch.get_num_threads(),
        }
        (folder / f"{ranks.rank} was here").touch()
        barrier()
        found["all were there"] = len(list(folder.glob("* was here"))) == PROCESSES
    found["group left"] = not dist.is_initialized()
    (folder / f"{ranks.rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(in_each_process, folder, folder=folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(PROCESSES)]


def test_processes_with_torchruns_environment_find_each_other(two_processes: list[dict]) -> None:
    assert [found["rank"] for found in two_processes] == [0, 1]
    assert [found["first"] for found in two_processes] == [True, False]
    assert {found["world"] for found in two_processes} == {PROCESSES}
    assert {found["backend"] for found in two_processes} == {"gloo"}


def test_sums_and_maxima_are_over_all_processes(two_processes: list[dict]) -> None:
    for found in two_processes:
        assert found["sum"] == [2.0, 1.0]
        assert found["max"] == [-5, 1]


# pitfall 12
def test_what_one_process_is_asked_all_know(two_processes: list[dict]) -> None:
    assert all(found["one asked"] for found in two_processes)
    assert not any(found["none asked"] for found in two_processes)


def test_nobody_passes_a_barrier_before_all_have_come(two_processes: list[dict]) -> None:
    assert all(found["all were there"] for found in two_processes)


def test_the_cores_are_shared_among_the_processes(two_processes: list[dict]) -> None:
    share = max(1, len(os.sched_getaffinity(0)) // PROCESSES)
    assert {found["threads"] for found in two_processes} == {share}


def test_the_group_ends_with_its_context(two_processes: list[dict]) -> None:
    assert all(found["group left"] for found in two_processes)


def test_one_process_makes_no_group() -> None:
    with process_group("cpu") as ranks:
        assert not dist.is_initialized()
        assert (ranks.rank, ranks.world, ranks.first) == (0, 1, True)
        assert ranks.device == torch.device("cpu")
        assert sum_over_ranks(torch.tensor([3.0])).item() == 3.0
        assert any_rank(True)
        assert not any_rank(False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said_in_one_line() -> None:
    with pytest.raises(LvdError, match="no GPU") as caught, process_group("cuda"):
        pass
    assert "\n" not in str(caught.value)
