"""The loop of both stages: killed anywhere it goes on, to what an undisturbed one has made."""

import json
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from forked_loop import forked_loop
from smallest_recipe import SMALLEST

PATIENCE = 600.0
RECIPE = SMALLEST | {
    "steps": 6,
    "epochs": 2,
    "parallel": {"precision": "float32", "device": "cpu"},
    "checkpoints": {"every": 1},
    "log": {"tensorboard": False},
}
MOMENTS = {
    "curating": ("1", "round-1/curate.partial"),
    "training": ("1", "round-1/train/checkpoints/step-0000001"),
    "between rounds": ("2", "round-2/curate.log"),
}
"""How many rounds are asked for, and what appears in OUT when it is time to kill the loop."""


@dataclass
class LoopSite:
    """The drawn data with a recipe, and a work folder; loops run there."""

    root: Path
    config: Path
    data: Path

    def arguments(self, out: str, *extra: str, rounds: str = "2") -> list[str]:
        """Return the words behind `lvd-curate` of a loop."""
        where = {
            "--rounds": rounds,
            "--out": self.root / out,
            "--config": self.config,
            "--work": self.root / "work",
            "--pipeline": "default",
            "--executor": "inline",
            "--recipe": "smallest",
            "--curate-set": "calibrate.originals=8",
            "--truth": self.root / "truth.csv",
        }
        return ["loop", *[str(word) for pair in where.items() for word in pair], *extra]

    def run(self, out: str, *extra: str, rounds: str = "2", status: int = 0) -> str:
        """Run a loop, and return all that was said."""
        log = self.root / "said.log"
        log.unlink(missing_ok=True)
        with forked_loop(self.arguments(out, *extra, rounds=rounds), log) as loop:
            found, said = loop.wait(PATIENCE), log.read_text()
        assert found == status, f"{found}\n{said}"
        return said

    def kill_when(self, out: str, pattern: str, rounds: str) -> None:
        """Run a loop; kill it when `pattern` is there.

        Nothing else is killed: its children end too.
        """
        log = self.root / "killed.log"
        with forked_loop(self.arguments(out, rounds=rounds), log) as loop:
            patience = time.monotonic() + PATIENCE
            while loop.poll() is None and not (self.root / out / pattern).exists():
                assert time.monotonic() < patience
                time.sleep(0.01)
            assert loop.poll() is None, log.read_text()
            number = loop.process.pid
            children = Path(f"/proc/{number}/task/{number}/children").read_text().split()
            loop.send_signal(signal.SIGKILL)
            assert loop.wait() == -signal.SIGKILL
            while any(Path(f"/proc/{child}").exists() for child in children):
                assert time.monotonic() < patience
                time.sleep(0.02)


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time of change of every file below `folder`."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(file): (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def result(out: Path) -> dict:
    """Return all figures of the table but the times."""
    table = json.loads((out / "table.json").read_text())
    return table | {"rounds": [figures | {"seconds": {}} for figures in table["rounds"]]}


def made(out: Path) -> dict[str, bytes]:
    """Return what a loop is for, of every round: decisions, shards, models."""
    patterns = (
        "round-*/curate/reports/*.parquet",
        "round-*/curate/shards/*",
        "round-*/train/model/*",
    )
    files = [file for pattern in patterns for file in out.glob(pattern)]
    return {file.relative_to(out).as_posix(): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def site(drawn, tmp_path_factory) -> LoopSite:
    root = tmp_path_factory.mktemp("loop")
    config = yaml.safe_load((drawn / "pipelines.yaml").read_text())
    config["recipes"] = {"smallest": RECIPE}
    config["pipelines"]["default"]["engine"] = {"workers": 1}  # each of them imports torch
    (root / "pipelines.yaml").write_text(yaml.safe_dump(config))
    kinds = {"wave": "wave", "chart": "drawing"}
    truth = [f"00000,{kind}{n:02d},{kinds[kind]}" for kind in kinds for n in range(10)]
    (root / "truth.csv").write_text("\n".join(["part,member,kind", *truth, ""]))
    return LoopSite(root, root / "pipelines.yaml", drawn)


@pytest.fixture(scope="module")
def whole(site) -> Path:
    """An undisturbed loop of two rounds, with labelled images."""
    labelled = ("--knn-train", str(site.data / "animals"), "--knn-test", str(site.data / "plants"))
    said = site.run("whole", *labelled)
    assert "round 1 of 2 · curate; descriptor judges meaning\n" in said
    assert "round 2 of 2 · curate; model of round 1 judges meaning\n" in said
    return site.root / "whole"


def test_in_each_round_the_model_of_the_one_before_judges_meaning_alone(whole):
    runs = [json.loads((whole / f"round-{n}/curate/run.json").read_text()) for n in (1, 2)]
    model = whole / "round-1" / "train" / "model"
    used = [run["settings"]["embedders"] for run in runs]
    assert used[0]["retrieve"]["kind"] == "descriptor"
    assert used[1]["retrieve"]["model"] == f"local-dir:{model}"
    assert used[0]["dedup"] == used[1]["dedup"] == used[0]["retrieve"]
    thresholds = [run["thresholds"] for run in runs]
    assert thresholds[0]["dedup"] == thresholds[1]["dedup"]
    assert [of["retrieve"]["source"] for of in thresholds] == ["embedder", "calibrated"]
    table = json.loads((whole / "table.json").read_text())
    assert [figures["embedder"] for figures in table["rounds"]] == [
        "descriptor",
        "model of round 1",
    ]
    assert all(figures["kinds"]["wave"]["crawled"] == 10 for figures in table["rounds"])
    assert all(figures["knn"]["k=20"] > 0 for figures in table["rounds"])


def test_a_loop_killed_within_and_between_rounds_goes_on_to_the_same_result(site, whole):
    out = site.root / "cut"
    for rounds, pattern in MOMENTS.values():
        site.kill_when("cut", pattern, rounds)
    finished = stamps(out / "round-1" / "curate") | stamps(out / "round-1" / "train")
    said = site.run("cut")
    assert "round 1 of 2 · curate, train: done before" in said
    assert stamps(out / "round-1" / "curate") | stamps(out / "round-1" / "train") == finished
    log = (out / "round-1" / "train.log").read_text()
    assert log.count("$ lvd-train run") == 2
    assert "done before" in log
    ours, theirs = made(out), made(whole)
    assert [name for name in ours | theirs if ours.get(name) != theirs.get(name)] == []
    expected = result(whole)
    for figures in expected["rounds"]:
        figures["knn"] = {}
    assert result(out) == expected


def test_a_complete_loop_is_left_as_it_is(site, whole):
    before = stamps(whole / "round-1") | stamps(whole / "round-2")
    said = site.run("whole")
    assert "nothing to do" in said
    assert (whole / "table.txt").read_text() in said
    assert stamps(whole / "round-1") | stamps(whole / "round-2") == before


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (["--train-set", "steps=9"], "train-set"),
        (["--curate-set", "dedup.threshold=0.9"], "dedup.threshold=null, not 0.9"),
        (["--embedder", "bundled"], "embedder='descriptor', not 'bundled'"),
        (["--rounds", "1"], "--rounds 2"),
    ],
)
def test_other_settings_are_refused_in_one_line(site, whole, changed, named):
    said = site.run("whole", *changed, status=2)
    assert said.count("\n") == 1
    assert named in said
    assert "another --out" in said
