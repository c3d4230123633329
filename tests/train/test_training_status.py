"""How far a training is, from another process: finished, at work, or cut off; and whose a folder is."""

import json
import os
import socket

import pytest
from click.testing import CliRunner
from small_run import write_config

from curate.cli import main as curate_main
from shared.errors import LvdError
from shared.storage.locks import locked, start_of
from train.cli import main
from train.monitoring.status import status
from train.persistence.run_folder import RunFolder
from train.recipe import Recipe

LINE = {"loss": 2.5, "images_per_second": 16.0, "data_wait": 0.25, "broken": 1, "skipped": 0}


@pytest.fixture
def out(tmp_path):
    """A training of 100 steps of 8 images that wrote the metrics of 41 of them."""
    out = tmp_path / "run"
    (out / "checkpoints" / "step-0000040").mkdir(parents=True)
    (out / "checkpoints" / "step-0000040" / "manifest.json").write_text("{}")
    (out / "checkpoints" / "step-0000048").mkdir()  # torn
    (out / "run.json").write_text(json.dumps({"recipe": {"batch_size": 8}, "steps": 100}))
    lines = [{"step": 0, "knn": 0.125}, {"step": 20, **LINE}, {"step": 40, **LINE}]
    lines.append({"step": 41, "knn": 0.5})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (out / "metrics.jsonl").write_text(text + '{"step": 42, "lo')
    return out


def said(prog, *words):
    result = CliRunner().invoke(prog, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output.splitlines()


LEARNED = "  loss 2.5, 1 broken, knn 50.0%"


def test_of_a_run_at_work_steps_rate_and_time_left_are_said(out):
    with locked(out / ".lock", "busy"):
        told = status(out).splitlines()
    # 59 steps of 8 images are left, 16 a second: 29.5 s
    where = f"process {os.getpid()} on {socket.gethostname()}"
    assert told[0] == f"{out}: at work ({where}): 41 of 100 steps"
    assert told[1].startswith("  16")
    assert "about 29.5 s left" in told[1]
    assert told[1].endswith("25% of the time spent waiting for data")
    assert told[2] == LEARNED


def test_of_a_run_that_was_cut_off_the_whole_checkpoint_is_said(out):
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "began": "another process"}
    assert start_of(os.getpid()) != holder["began"]
    (out / ".lock").write_text(json.dumps(holder))
    remedy = "run the same command to go on"
    cut = f"{out}: cut off behind 41 of 100 steps (safe up to step 40): {remedy}"
    assert said(main, "status", out) == (0, [cut, LEARNED])


def test_ctrl_c_says_up_to_which_checkpoint_a_run_is_safe(out, tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("train.loop.train", stopped)
    config = tmp_path / "pipelines.yaml"
    write_config(tmp_path)
    words = ("run", "--recipe", "small", "--config", config, "--shards", tmp_path, "--out")
    assert said(main, *words, out) == (
        130,
        ["lvd-train: stopped; safe up to step 40: run the same command to go on"],
    )
    assert said(main, *words, tmp_path / "new") == (
        130,
        ["lvd-train: stopped; no checkpoint yet: the same command begins again"],
    )


def test_of_a_finished_run_all_steps_are_said(out):
    RunFolder(out).finish(100)
    assert said(main, "status", out) == (0, [f"{out}: finished: 100 steps", LEARNED])


def test_behind_the_first_step_of_a_start_no_time_left_is_said(out):
    starting = {"step": 48, "loss": 2.0, "broken": 0, "skipped": 0}
    with (out / "metrics.jsonl").open("w") as lines:
        print(json.dumps({"step": 47, **LINE}), json.dumps(starting), sep="\n", file=lines)
    with locked(out / ".lock", "busy"):
        told = status(out).splitlines()
    assert told[0].endswith("49 of 100 steps")
    assert told[1:] == ["  loss 2"]


def test_a_run_that_has_measured_nothing_yet_says_so(out):
    (out / "metrics.jsonl").unlink()
    with locked(out / ".lock", "busy"):
        told = status(out)
    where = f"process {os.getpid()} on {socket.gethostname()}"
    assert told == f"{out}: at work ({where}): no step is measured yet"


def test_each_command_says_what_the_folder_of_the_other_is(out, tmp_path):
    curated = tmp_path / "curated"
    (curated / "reports").mkdir(parents=True)
    (curated / "run.json").write_text(json.dumps({"settings": {}, "crawl": "web"}))
    work = tmp_path / "work"
    work.mkdir()
    (work / "lvd-work.json").write_text("{}")
    training = f"{out} is a run of lvd-train: see `lvd-train status {out}`"
    for words in (
        ("status", out),
        ("explain", out, "key"),
        ("query", out, "select 1"),
        ("update", out),
    ):
        assert said(curate_main, *words) == (2, [f"lvd-curate: {training}"])
    result = f"{curated} is a result of lvd-curate: see `lvd-curate status {curated}`"
    assert said(main, "status", curated) == (2, [f"lvd-train: {result}"])
    [line] = said(main, "status", work)[1]
    assert line.startswith(f"lvd-train: {work} is a work folder of lvd-curate")
    [line] = said(main, "status", tmp_path / "nowhere")[1]
    assert "no training has begun" in line
    with pytest.raises(LvdError, match=r"is a result of lvd-curate.*; name another --out"):
        RunFolder(curated).refuse_foreign(Recipe.model_construct(), "data")
    with pytest.raises(LvdError, match="is a result of lvd-curate"):
        RunFolder(curated).set_aside()
    assert (curated / "reports").exists()
