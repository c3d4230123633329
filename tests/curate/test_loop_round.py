"""What a round does again, and what it leaves, when something before it changed."""

import json
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from curate.loop import round as loop_round
from curate.loop.request import loop_request
from curate.loop.round import Round
from curate.request import read_request
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
        judge = named.get("--set", "").removeprefix("retrieve.embedder=")
        model = Path(yaml.safe_load(judge) or "", "model.safetensors")
        step = "train" if command[0] == "lvd-train" else command[1]
        self.ran.append(f"{step} {title.split()[1]}")
        if step == "run":
            by = model.read_text() if model.is_file() else "the first"
            (out / "reports").mkdir(parents=True, exist_ok=True)
            funnel = {"images": 9, "decisions": {"kept": self.kept}}
            (out / "reports" / "funnel.json").write_text(json.dumps(funnel))
            (out / "run.json").write_text(json.dumps({"address": f"{self.crawl} by {by}"}))
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


def request_in(folder, **asked):
    """Return the request of a loop in `folder`; `asked` are options of the command."""
    (folder / "pipelines.yaml").write_text(CONFIG)
    options = {
        **dict.fromkeys(("embedder", "crawl", "truth", "knn_train", "knn_test")),
        "seeds": (),
        **dict.fromkeys(("holdouts", "curate_set", "train_set"), ()),
        **asked,
    }
    return loop_request(
        pipeline="default",
        out=folder / "out",
        config=folder / "pipelines.yaml",
        work=folder / "work",
        executor="inline",
        recipe="small",
        rounds=2,
        processes=1,
        **options,
    )


@pytest.fixture
def loop(tmp_path, commands):
    """Runs two rounds, and returns what they ran."""
    request = request_in(tmp_path)

    def run():
        commands.ran.clear()
        first = Round(request, 1, None, hold=0)
        first.run()
        Round(request, 2, first, hold=0).run()
        return commands.ran

    return run


ALL = [f"{step} {number}" for number in (1, 2) for step in ("run", "train")]


@pytest.mark.parametrize(
    ("asked", "copies"),
    [
        ({}, "descriptor"),
        ({"embedder": "bundled"}, "bundled"),
        ({"curate_set": ("retrieve.embedder=bundled",)}, "descriptor"),
        ({"curate_set": ("dedup.embedder=bundled",)}, "bundled"),
    ],
)
@pytest.mark.parametrize("folder", ["model", "a: #1, [b] \"c\" 'd' ü/model"])
def test_a_model_judges_meaning_and_what_finds_copies_stays(tmp_path, asked, copies, folder):
    """The words of the command are read as `lvd-curate run` reads them."""
    request, model = request_in(tmp_path, **asked), tmp_path / folder
    model.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (model / name).write_text("{}")
    words = request.curate_command(tmp_path / "made", model)
    named = dict(pairwise(words))
    read = read_request(
        request.config,
        named["--pipeline"],
        embedder=named.get("--embedder"),
        crawl=None,
        seeds=(),
        holdouts=(),
        overrides=[value for option, value in pairwise(words) if option == "--set"],
    )
    assert read.embedders["dedup"].name == copies
    assert read.embedders["retrieve"].name == str(model)


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
    assert loop() == ["run 2", "train 2"]


def test_a_round_that_keeps_nothing_says_so(loop, commands):
    commands.kept = 0
    for ran in (["run 1"], []):
        with pytest.raises(LvdError, match=r"round 1 of 2 · nothing was kept.*retrieve\.threshold"):
            loop()
        assert commands.ran == ran
