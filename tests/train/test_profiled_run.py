"""`--profile` by the real command: it leaves a trace of the steps that it names, or says what is wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from small_run import command, lines, write_config, write_shards

from train.cli import main
from train.step import PARTS


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profiled")
    write_shards(folder / "shards")
    write_config(folder)
    return folder


def run(place: Path, out: Path, *more: str):
    asked = command(place / "pipelines.yaml", place / "shards", out, "--set", "steps=3", *more)
    return CliRunner().invoke(main, asked)


def test_a_run_leaves_a_trace_of_the_named_steps_and_says_its_speed(
    place: Path, tmp_path: Path
) -> None:
    result = run(place, tmp_path / "out", "--profile", "1:1")
    assert result.exit_code == 0, result.output
    trace = tmp_path / "out" / "profile" / "trace-0.json.gz"
    assert str(trace) in result.output
    names = {
        event.get("name")
        for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    }
    assert {"aten::_fused_adamw_", "aten::scaled_dot_product_attention", *PARTS} <= names
    measured = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").open()]
    starting, *of_steps = [line for line in measured if "loss" in line]
    rates = {"images_per_second", "tokens_per_second", "tflops", "step_seconds", "data_wait"}
    assert not rates & set(starting), "the first step holds the start of the loader"
    assert rates <= set(of_steps[0])
    for line in of_steps:
        assert line["tokens_per_second"] == pytest.approx(78 * line["images_per_second"])
        assert line["tflops"] > 0
        assert "peak_share" not in line
    assert not {"tflops", "tokens_per_second"} & set(lines(tmp_path / "out")[1])


@pytest.mark.parametrize("steps", ["1", "2:1", "3:3", "1:7"])
def test_wrong_steps_are_refused_in_one_line(place: Path, tmp_path: Path, steps: str) -> None:
    result = run(place, tmp_path / "out", "--profile", steps)
    assert result.exit_code == 2
    (line,) = result.output.strip().splitlines()
    assert f"--profile {steps}" in line
