"""`--profile`: which steps it names, and the traces that are left."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from shared.errors import LvdError
from train.distributed.ranks import Ranks
from train.monitoring.profile import record_steps
from train.monitoring.profiled_steps import check_steps, parse_steps

ALONE = Ranks(0, 1, 0, torch.device("cpu"))


def loaded(count: int) -> Iterator[int]:
    for number in range(count):
        torch.full((number + 1,), 1.0).cumsum(0)
        yield number


def train(folder: Path, steps: range | None, begun: int = 0, stop: int = 8) -> list[int]:
    """Go through the steps, each of which multiplies matrices as large as its number."""
    taken = []
    for number in record_steps(loaded(8 - begun), begun, steps, folder, ALONE):
        step = begun + number
        taken.append(step)
        torch.ones(step + 1, 3) @ torch.ones(3, 2)
        if step == stop:
            break
    return taken


def products(folder: Path) -> list[int]:
    """The rows of the products that a trace has."""
    data = gzip.decompress((folder / "trace-0.json.gz").read_bytes())
    events = json.loads(data)["traceEvents"]
    shapes = [e["args"]["Input Dims"] for e in events if e.get("name") == "aten::mm"]
    return [shape[0][0] for shape in shapes]


@pytest.mark.parametrize(
    ("begun", "stop", "kept"), [(0, 8, [4, 5, 6]), (3, 8, [4, 5, 6]), (0, 5, [4, 5, 6])]
)
def test_the_named_steps_are_recorded_and_no_others(
    tmp_path: Path, begun: int, stop: int, kept: list[int]
) -> None:
    taken = train(tmp_path, parse_steps("3:5"), begun, stop)
    assert taken == list(range(begun, min(8, stop + 1)))
    assert products(tmp_path) == kept


def test_a_run_that_is_stopped_leaves_what_was_recorded_by_then(tmp_path: Path) -> None:
    train(tmp_path, parse_steps("3:7"), stop=4)
    assert products(tmp_path) == [4, 5]


def test_without_steps_nothing_is_recorded(tmp_path: Path) -> None:
    assert train(tmp_path, None) == list(range(8))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "5", "5:", ":5", "6:5", "-1:5", "a:b", "1:2:3"])
def test_what_names_no_steps_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(LvdError, match=r"FIRST:LAST[^\n]*$"):
        parse_steps(text)


@pytest.mark.parametrize(("steps", "begun", "total"), [("3:5", 4, 9), ("3:5", 0, 5), ("9:9", 0, 9)])
def test_steps_that_the_run_does_not_take_are_refused(steps: str, begun: int, total: int) -> None:
    with pytest.raises(LvdError, match=steps):
        check_steps(parse_steps(steps), begun, total)
    check_steps(parse_steps("0:0"), 0, 1)
