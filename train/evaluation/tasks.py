"""What each task of `lvd-train eval` reads, and whether it is there; known before torch is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from shared.datasets.dataset import DatasetSettings, list_parts
from shared.errors import LvdError, nearest
from shared.storage.remote import locate
from train.frozen.names import REMEDY, parse_names

TASKS = {
    "knn": ("train", "test"),
    "linear": ("train", "test"),
    "logreg": ("train", "test"),
    "retrieval": ("data",),
    "segment": ("train", "test"),
    "depth": ("train", "test"),
    "attention": ("data",),
}
"""The options that name the data of each task."""
LABELLED = frozenset({"knn", "linear", "logreg"})
"""Those that read labelled images, once for all of them."""
PAIRED: dict[str, Literal["mask", "depth"]] = {"segment": "mask", "depth": "depth"}
"""What belongs to each image, for those that train on pairs."""

_DATA = {
    **dict.fromkeys(LABELLED, "ROOT/CLASS/IMAGE folders, labelled shards or Parquet files"),
    "retrieval": "a folder with gnd.json and jpg/, or with queries/ and gallery/ of class folders",
    "segment": "a folder of images and masks",
    "depth": "a folder of images and depth maps",
    "attention": "a folder of images and masks",
}


def check_request(
    tasks: Sequence[str], names: Sequence[str], places: Mapping[str, str | None]
) -> None:
    """Raise LvdError for a task or model that there is not, and for data that are not named.

    `places` are the values of the options train, test and data.
    """
    if not tasks:
        raise LvdError(f"name what to evaluate, one or several of {', '.join(TASKS)}")
    for task in tasks:
        if task not in TASKS:
            raise LvdError(f"no task {task!r}{nearest(task, TASKS)}: there are {', '.join(TASKS)}")
    if not names:
        raise LvdError(f"eval needs --model, once for each line of the table: {REMEDY}")
    for name in names:
        parse_names(name)
    for task in tasks:
        for option in TASKS[task]:
            if not places[option]:
                raise LvdError(f"{task} needs --{option} PATH: {_DATA[task]}")
    read = {option for task in tasks for option in TASKS[task]}
    for option, path in places.items():
        if path and option not in read:
            readers = [task for task in TASKS if option in TASKS[task]]
            raise LvdError(
                f"--{option} is read by {', '.join(readers)} and not by {', '.join(tasks)}: "
                "leave it away, or name one of these tasks"
            )


def named(places: Mapping[str, str | None]) -> dict[str, str]:
    """Return the options that have been given; `check_request` has seen that no task lacks one."""
    return {option: path for option, path in places.items() if path}


def check_data(tasks: Sequence[str], places: Mapping[str, str], crop_queries: bool) -> None:
    """Raise LvdError where a task's data are not at their place, or train and test share files."""
    if LABELLED.intersection(tasks):
        seen, asked = (_files(option, places[option]) for option in ("train", "test"))
        if both := sorted(seen & asked):
            raise LvdError(
                f"--train and --test share {len(both):,} files, {both[0]} for one: give two sets "
                "that are apart, or the scores count images that were learnt by heart"
            )
    for task in tasks:
        if task in PAIRED:
            from train.evaluation.dense.pairs import find_apart

            find_apart(places["train"], places["test"], PAIRED[task])
    if "attention" in tasks:
        from train.evaluation.dense.pairs import find_pairs

        find_pairs(places["data"], "mask", "--data")
    if "retrieval" in tasks:
        from train.evaluation.retrieval.relevance import read_benchmark

        read_benchmark(places["data"], crop_queries)


def _files(option: str, path: str) -> set[str]:
    parts = list_parts(f"--{option}", DatasetSettings(path=path))
    return {locate(part.root, file) for part in parts for file in part.paths}
