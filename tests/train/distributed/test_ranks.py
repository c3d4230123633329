"""The process group: with torchrun's environment, and without it; what its processes draw."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from forked import run_ranks
from listed_images import rows_of, write_list
from small_run import IMAGES, RECIPE, write_config, write_shards

from shared.errors import LvdError
from train.data.crops import Views
from train.data.loader import make_loader
from train.data.settings import CropSettings
from train.data.sources import make_order, open_index
from train.distributed.ranks import (
    Ranks,
    any_rank,
    barrier,
    max_over_ranks,
    process_group,
    sum_over_ranks,
)
from train.recipe import read_recipe

PROCESSES = 2
BATCH = 4
STEPS = 36
WEIGHTS = [2, 1, 1] * (IMAGES // 3)
"""Of the images of a list: 48 places of an epoch."""


def drawn_keys(folder: Path, ranks: Ranks, recipe: str, *sources: str | None) -> list[list[str]]:
    """Return the keys of what a process is given in each step."""
    read = read_recipe(folder / "pipelines.yaml", recipe, ())
    index = open_index(read, *sources, folder / f"index-{ranks.rank}")
    views = Views(CropSettings(global_size=16, local_size=8, local_views=0), 0)
    batches = make_loader(
        *(index, make_order(read, index), views),
        settings=read.data, ranks=(ranks.rank, ranks.world), accumulate=1,
        start_step=0, stop_step=STEPS,
    )  # fmt: skip
    return [batch.keys for batch in batches]


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
        found["listed"] = drawn_keys(folder, ranks, "small", None, str(folder / "list.parquet"))
        found["mixed"] = drawn_keys(folder, ranks, "mixed", None, None)
        found["all were there"] = len(list(folder.glob("* was here"))) == PROCESSES
    found["group left"] = not dist.is_initialized()
    (folder / f"{ranks.rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    shards = write_shards(folder / "shards")
    rows = [row | {"weight": weight} for row, weight in zip(rows_of(shards), WEIGHTS, strict=True)]
    listed = write_list(folder / "list.parquet", rows)
    sources = {
        "listed": {"select": str(listed), "ratio": 0.75},
        "plain": {"shards": str(shards), "ratio": 0.25},
    }
    small = RECIPE | {"batch_size": BATCH}
    mixed = small | {"data": RECIPE["data"] | {"mix": sources}}
    write_config(folder, small=small, mixed=mixed)
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


def count_of_both(processes: list[dict], name: str, steps: int) -> Counter[str]:
    """Count how often each key is drawn in so many steps by all processes together."""
    return Counter(key for each in processes for keys in each[name][:steps] for key in keys)


def test_an_image_of_a_list_is_drawn_by_its_weight_in_an_epoch_over_all_processes(
    two_processes: list[dict], tmp_path: Path
) -> None:
    rows = rows_of(write_shards(tmp_path / "shards"))
    weight = dict(zip([row["key"] for row in rows], WEIGHTS, strict=True))
    epoch = sum(WEIGHTS) // BATCH
    for epochs in (1, 2, 3):
        expected = {key: epochs * times for key, times in weight.items()}
        assert count_of_both(two_processes, "listed", epochs * epoch) == expected
    assert all(len(keys) == BATCH // PROCESSES for each in two_processes for keys in each["listed"])


def test_each_dataset_of_a_mixture_keeps_its_epochs_over_all_processes(
    two_processes: list[dict], tmp_path: Path
) -> None:
    keys = [row["key"] for row in rows_of(write_shards(tmp_path / "shards"))]
    whole = count_of_both(two_processes, "mixed", IMAGES)  # of a batch one image is of `plain`
    assert {key: n for key, n in whole.items() if key.startswith("plain: ")} == {
        f"plain: {key}": 1 for key in keys
    }
    two_epochs = count_of_both(two_processes, "mixed", 2 * sum(WEIGHTS) // 3)
    assert {key: n for key, n in two_epochs.items() if key.startswith("listed: ")} == {
        f"listed: {key}": 2 * times for key, times in zip(keys, WEIGHTS, strict=True)
    }


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
