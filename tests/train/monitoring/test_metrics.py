import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from train.monitoring.curves import TENSORBOARD
from train.monitoring.metrics import METRICS, TIMINGS, MetricsWriter, read_metrics
from train.monitoring.settings import LogSettings

PLAIN = LogSettings(tensorboard=False)


def write(out, steps, start=0, speed=1.0, settings=PLAIN):
    writer = MetricsWriter(out, settings, start)
    for step in steps:
        writer.write(step, {"loss": 1 / (step + 3), "flags": ["low_rank"], "step_seconds": speed})
    writer.close()


def strict(text):
    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def untimed(path):
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in read_metrics(path)]


def points(out):
    """Return the (step, loss) that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / TENSORBOARD)).Reload()
    return [(event.step, event.value) for event in events.Scalars("loss")]


def test_every_line_is_strict_json_and_odd_numbers_are_named(tmp_path):
    writer = MetricsWriter(tmp_path, PLAIN, 0)
    writer.write(4, {"loss": math.nan, "norm": math.inf, "low": -math.inf, "lr": 0.1, "n": 3})
    writer.write(5, {"loss": 2.0})
    writer.close()
    assert strict((tmp_path / METRICS).read_text()) == [
        {
            "step": 4,
            "loss": None,
            "norm": None,
            "low": None,
            "lr": 0.1,
            "n": 3,
            "non_finite": {"loss": "nan", "norm": "inf", "low": "-inf"},
        },
        {"step": 5, "loss": 2.0},
    ]


# pitfall 15
def test_an_interrupted_and_resumed_file_equals_an_uninterrupted_one(tmp_path):
    write(tmp_path / "whole", range(0, 50, 5))
    write(tmp_path / "twice", range(0, 40, 5), speed=2.0)
    write(tmp_path / "twice", range(20, 50, 5), start=20, speed=3.0)
    whole, twice = (tmp_path / name / METRICS for name in ("whole", "twice"))
    assert untimed(whole) == untimed(twice)
    assert [line["step"] for line in read_metrics(twice)] == list(range(0, 50, 5))
    text = twice.read_text()
    for speed in ("2.0", "3.0"):
        text = text.replace(f'"step_seconds": {speed}', '"step_seconds": 1.0')
    assert text == whole.read_text()


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step": 3}', "{", "\x00\x00", ""])
def test_a_torn_last_line_goes_and_nothing_else_does(tmp_path, torn):
    write(tmp_path, range(3))
    with (tmp_path / METRICS).open("a") as lines:
        lines.write(torn)
    assert [line["step"] for line in read_metrics(tmp_path / METRICS)] == [0, 1, 2]
    write(tmp_path, range(3, 5), start=3)
    lines = strict((tmp_path / METRICS).read_text())
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]


def test_a_cut_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    write(tmp_path, range(6))
    before = (tmp_path / METRICS).read_bytes()

    def killed(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        MetricsWriter(tmp_path, PLAIN, 2)
    assert (tmp_path / METRICS).read_bytes() == before


def test_a_line_is_there_although_the_process_was_killed_after_it(tmp_path):
    program = (
        "import pathlib, sys, time\n"
        "from train.monitoring.metrics import *\n"
        "writer = MetricsWriter(pathlib.Path(sys.argv[1]), LogSettings(tensorboard=False), 0)\n"
        "writer.write(7, {'loss': 0.5})\n"
        "print('written', flush=True)\n"
        "time.sleep(60)\n"
    )
    root = Path(__file__).parents[3]
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, cwd=root
    )
    assert process.stdout.readline() == b"written\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert list(read_metrics(tmp_path / METRICS)) == [{"step": 7, "loss": 0.5}]


def test_tensorboard_shows_the_resumed_curve(tmp_path, capfd):
    settings = LogSettings(tensorboard=True)
    write(tmp_path, range(6), settings=settings)
    time.sleep(1.1)  # event files are named, and so read, by the second
    write(tmp_path, range(3, 8), start=3, settings=settings)
    shown = points(tmp_path)
    assert [step for step, _ in shown] == list(range(8))
    assert shown[4][1] == pytest.approx(1 / 7)
    assert "TensorFlow" not in capfd.readouterr().err


def test_without_tensorboard_nothing_but_the_lines_is_written(tmp_path):
    write(tmp_path, range(2))
    assert [path.name for path in tmp_path.iterdir()] == [METRICS]
