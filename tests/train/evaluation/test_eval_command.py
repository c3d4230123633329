import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from small_models import TINY, timm_folder
from small_run import draw, run_command, write_shards

import train.evaluation.evaluate
from train.cli import main

QUICK = ("knn.k=[1,5,99]", "linear.least_steps=20", "precision=float32", "workers=1")


@pytest.fixture(autouse=True)
def one_thread():
    """As the real command is given here, whose bytes these are compared with."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Labelled shards, class folders with one class more, and pairs of an image and a mask."""
    folder = tmp_path_factory.mktemp("data")
    write_shards(folder / "shards")
    for number in range(50, 65):
        path = folder / "folders" / str(number % 3 if number < 64 else 7) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(draw(number))
    for kind in ("images", "masks"):
        (folder / "pairs" / kind).mkdir(parents=True)
    for number in range(3):
        (folder / "pairs" / "images" / f"{number}.jpg").write_bytes(draw(number))
        mask = np.zeros((44, 52), np.uint8)
        mask[10 : 20 + number, 5:30] = 1
        Image.fromarray(mask).save(folder / "pairs" / "masks" / f"{number}.png")
    timm_folder(folder / "model", **TINY)
    return folder


@pytest.fixture
def call(data, tmp_path):
    """Run the command in this process and return (exit status, what it printed, its last words)."""

    def called(*arguments):
        places = ("--out", str(tmp_path / "out"), "--cache", str(data / "cache"))
        settings = [word for setting in QUICK for word in ("--set", setting)]
        result = CliRunner().invoke(main, ["eval", *places, *settings, *map(str, arguments)])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.output
        return result.exit_code, result.stdout, result.stderr.strip().split("\n")[-1]

    return called


def labelled(data):
    return ("--train", data / "shards", "--test", data / "folders")


def test_the_real_command_makes_one_table_of_all_models_and_the_same_one_again(data, tmp_path):
    model = str(data / "model")
    names = [model, "pixels", f"{model}+pixels", f"untrained:{model}"]
    arguments = ["eval", "knn", "linear", "logreg", *map(str, labelled(data))]
    arguments += [word for name in names for word in ("--model", name)]
    arguments += [word for setting in QUICK for word in ("--set", setting)]
    arguments += ["--cache", str(tmp_path / "cache"), "--out"]
    first = run_command([*arguments, str(tmp_path / "first")])
    again = CliRunner().invoke(main, [*arguments, str(tmp_path / "again")])
    assert "features" in first
    assert "features" not in again.stderr  # which the first call has kept
    for name in ("table.txt", "table.parquet", "table.json"):
        contents = [(tmp_path / out / name).read_bytes() for out in ("first", "again")]
        assert contents[0] == contents[1]
    text = (tmp_path / "first" / "table.txt").read_text()
    assert text in first
    assert max(map(len, text.splitlines())) <= 100
    rows = pq.read_table(tmp_path / "first" / "table.parquet").to_pylist()
    assert [row["model"] for row in rows] == [name for name in names for _ in range(5)]
    assert [row["task"] for row in rows[:5]] == ["knn"] * 3 + ["linear", "logreg"]
    assert len({row["fingerprint"] for row in rows}) == 4
    assert all(0 <= row["value"] <= 14 / 15 for row in rows)
    assert rows[5]["value"] > 0.6  # colours tell the classes apart
    assert all("1 of 15 test images are of 1 classes" in row["note"] for row in rows)
    assert "knn, linear, logreg: 1 of 15 test images are" in text
    assert (
        "; k=99 is more than the 36 images that vote: all do; the middle 32 px of"
        in rows[2]["note"]
    )
    assert "36 training images of 3 classes, 15 test images" in text
    assert f"{model}: 32 px, bilinear, crop 0.8" in " ".join(text.split())


def test_a_model_that_fails_at_a_task_leaves_what_others_have_found(call, data, tmp_path):
    models = ("--model", "pixels", "--model", data / "model")
    code, printed, error = call("attention", *models, "--data", data / "pairs")
    assert code == 2
    assert error.startswith("lvd-train: 1 failed, and all else is in")
    assert "pixels, attention: " in error
    assert printed == (tmp_path / "out" / "table.txt").read_text()
    whole = json.loads((tmp_path / "out" / "table.json").read_text())
    assert {figure["model"] for figure in whole["figures"]} == {str(data / "model")}
    assert list(whole["models"][0]["failures"]) == ["attention"]


def test_a_fault_of_ours_in_one_task_is_said_and_leaves_the_others(call, data, monkeypatch):
    def broken(*_):
        raise ValueError("two\nlines")

    monkeypatch.setattr(train.evaluation.evaluate, "logistic", broken)
    code, printed, error = call("logreg", "knn", "--model", "pixels", *labelled(data))
    assert code == 2
    assert "pixels, logreg: ValueError: two lines" in error
    assert "top-1" in printed


def test_where_everything_fails_there_is_no_table(call, data, tmp_path):
    code, printed, error = call("attention", "--model", "pixels", "--data", data / "pairs")
    assert (code, printed) == (2, "")
    assert error.startswith("lvd-train: pixels, attention: ")
    assert not (tmp_path / "out" / "table.txt").exists()


def test_segment_retrieval_and_depth_are_reached(call, data, monkeypatch):
    seen = []
    monkeypatch.setattr("train.evaluation.tasks.check_data", lambda *_: None)
    for task in ("segment", "depth", "retrieval"):

        def noted(model, *rest, task=task):
            seen.append((task, *rest[: 1 if task == "retrieval" else 2]))
            return [train.evaluation.evaluate.Score(task, "x", 0.5)]

        monkeypatch.setattr(train.evaluation.evaluate, task, noted)
    places = ("--train", "a", "--test", "b", "--data", "c")
    code, printed, _ = call("depth", "retrieval", "segment", "--model", "pixels", *places)
    assert code == 0
    assert printed.split()[:3] == ["depth", "retrieval", "segment"]
    assert seen == [("depth", "a", "b"), ("retrieval", "c"), ("segment", "a", "b")]


WRONG = {
    "no task": ("", "name what to evaluate, one or several of knn, linear"),
    "unknown task": ("lineer", r"no task 'lineer' \(did you mean 'linear'\?\): there are knn"),
    "no model": ("knn --train A --test B", "eval needs --model, .*: give a model folder"),
    "no train": ("knn --model pixels --test B", "knn needs --train PATH: ROOT/CLASS/IMAGE"),
    "no test": ("depth --model pixels --train A", "depth needs --test PATH: a folder of images"),
    "no data": ("knn attention --model pixels --train A --test B", "attention needs --data PATH"),
    "unread": ("knn --model pixels --train A --test B --data C", "--data is read by retrieval"),
    "no folder": ("knn --model a/b --train A --test B", "--model a/b: there is no such folder"),
    "nothing there": ("knn --model pixels --train /a/b --test B", "--train: no images at '/a/b'"),
    "same": ("knn --model pixels --train S --test S/*1.tar", "--test share 1 files, .*00001.tar"),
    "no masks": ("attention --model pixels --data S", "--data: .* has no layout of pairs"),
    "setting": ("knn --model pixels --train S --test F --set linear.epoch=3", "mean 'epochs'"),
    "value": (
        "knn --model pixels --train S --test F --set knn.k=[0]",
        r"knn\.k\[0\] in .* is 0, but must be at least 1",
    ),
    "size": ("knn --model pixels --train S --test F --size 3", "--size 3: give 16 to"),
    "timm": ("knn --model vit_tinny_patch16_224 --train S --test F", "did you mean 'vit_tiny"),
}


@pytest.mark.parametrize(("arguments", "said"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_said_in_one_line_before_anything_is_computed(
    arguments, said, call, data, monkeypatch
):
    monkeypatch.setattr(train.evaluation.evaluate, "bank", None)
    short = {"S": data / "shards", "F": data / "folders", "S/*1.tar": data / "shards" / "*1.tar"}
    code, printed, error = call(*(short.get(word, word) for word in arguments.split()))
    assert (code, printed) == (2, "")
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(error)


def test_help_teaches_without_torch():
    script = (
        "import sys, train.cli\n"
        "try: train.cli.main(['eval', '--help'])\n"
        "finally: assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for word in ("untrained:", "pixels", "ARCH:TAG", "ADE20K", "gnd.json", ".cls", "retrieval"):
        assert word in done.stdout


def test_untrained_models_hang_on_the_seed_alone(call, data, tmp_path):
    name = f"untrained:{data / 'model'}"
    prints = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(prints))
        call("knn", "--model", name, *labelled(data), "--set", f"seed={seed}")
        (model,) = json.loads((tmp_path / "out" / "table.json").read_text())["models"]
        prints.append(model["fingerprint"])
    assert prints[0] == prints[1] != prints[2]
