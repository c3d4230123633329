"""What a round does again, and what it leaves, when something before it changed."""

import hashlib
import json
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from curate.loop import round as loop_round
from curate.loop.request import loop_request
from curate.loop.round import Round
from shared.errors import LvdError

CONFIG = """
datasets: {pool: {path: pool}, animals: {path: animals}}
embedders: {descriptor: {kind: descriptor}}
pipelines: {default: {crawl: pool, seed: animals, embedder: descriptor}}
recipes: {small: {steps: 4}}
"""


@dataclass
class Commands:
    """Stands in for the two stages: each result says what it was made from."""

    crawl: str = "some images"
    kept: int = 3
    stopped: bool = False
    """Whether trainings end before their end, as when they are told to."""
    ran: list[str] = field(default_factory=list)

    def __call__(self, command, *, log, title, **_):
        named = dict(pairwise(command))
        out = Path(named.get("--out", "."))
        model = Path(named.get("--embedder", ""), "model.safetensors")
        step = "train" if command[0] == "lvd-train" else command[1]
        self.ran.append(f"{step} {title.split()[1]}")
        if step == "run":
            by = model.read_text() if model.is_file() else "the first"
            (out / "reports").mkdir(parents=True, exist_ok=True)
            funnel = {"images": 9, "decisions": {"kept": self.kept}}
            (out / "reports" / "funnel.json").write_text(json.dumps(funnel))
            (out / "run.json").write_text(json.dumps({"address": f"{self.crawl} by {by}"}))
        elif step == "calibrate":
            weights = hashlib.sha256(model.read_bytes()).hexdigest()
            (model.parent / "thresholds.json").write_text(json.dumps({"weights": weights}))
        else:
            (out / "model").mkdir(parents=True, exist_ok=True)
            (out / "model" / "config.json").write_text("{}")
            if not self.stopped:
                data = (Path(named["--shards"]).parent / "run.json").read_text()
                (out / "model" / "model.safetensors").write_text(f"trained on {data}")
                (out / "done.json").write_text("{}")


@pytest.fixture
def commands(monkeypatch):
    commands = Commands()
    monkeypatch.setattr(loop_round, "run_child", commands)
    return commands


@pytest.fixture
def loop(tmp_path, commands):
    """Runs two rounds, and returns what they ran."""
    (tmp_path / "pipelines.yaml").write_text(CONFIG)
    request = loop_request(
        pipeline="default",
        out=tmp_path / "out",
        config=tmp_path / "pipelines.yaml",
        work=tmp_path / "work",
        executor="inline",
        recipe="small",
        rounds=2,
        processes=1,
        **dict.fromkeys(("embedder", "crawl", "seed", "truth", "knn_train", "knn_test")),
        **dict.fromkeys(("holdouts", "curate_set", "train_set"), ()),
    )

    def run():
        commands.ran.clear()
        first = Round(request, 1, None, hold=0)
        first.run()
        Round(request, 2, first, hold=0).run()
        return commands.ran

    return run


ALL = [f"{step} {number}" for number in (1, 2) for step in ("run", "train", "calibrate")]


def test_what_is_done_is_not_done_again(loop):
    assert loop() == ALL
    assert loop() == []


def test_a_curation_that_is_made_again_alike_keeps_what_was_trained_on_it(loop, tmp_path):
    loop()
    (tmp_path / "out" / "round-1" / "curate" / "run.json").unlink()
    assert loop() == ["run 1"]


def test_another_curation_begins_its_training_and_all_behind_it_anew(loop, commands, tmp_path):
    loop()
    (tmp_path / "out" / "round-1" / "curate" / "run.json").unlink()
    commands.crawl = "more images"
    assert loop() == ALL
    for number in (1, 2):
        folder = tmp_path / "out" / f"round-{number}"
        model = Path("model", "model.safetensors")
        assert "some images" in (folder / "train.earlier-1" / model).read_text()
        assert "more images" in (folder / "train" / model).read_text()


def test_a_training_that_was_cut_off_goes_on_with_its_own_curation_alone(loop, commands, tmp_path):
    commands.stopped = True
    with pytest.raises(
        LvdError, match=r"round 1 of 2 · train ended early.*train\.log.*same command"
    ):
        loop()
    training = tmp_path / "out" / "round-1" / "train"
    (training / "half").touch()
    with pytest.raises(LvdError, match="ended early"):
        loop()
    assert (training / "half").exists()
    (tmp_path / "out" / "round-1" / "curate" / "run.json").unlink()
    commands.crawl, commands.stopped = "more images", False
    assert loop() == ALL
    assert not (training / "half").exists()


def test_another_model_of_the_round_before_curates_again(loop, tmp_path):
    loop()
    (tmp_path / "out" / "round-1" / "train" / "model" / "model.safetensors").write_text("another")
    assert loop() == ["calibrate 1", "run 2", "train 2", "calibrate 2"]


def test_a_round_that_keeps_nothing_says_so(loop, commands):
    commands.kept = 0
    for ran in (["run 1"], []):
        with pytest.raises(LvdError, match=r"round 1 of 2 · nothing was kept.*retrieve\.threshold"):
            loop()
        assert commands.ran == ran
