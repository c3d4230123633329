"""What the user gets wrong is refused before torch, which takes seconds to import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from train.launch import ALLOCATOR

REPOSITORY = Path(__file__).parents[2]
HEAVY = ("torch", "torchvision", "timm", "open_clip", "pandas", "scipy", "sklearn", "matplotlib")


def run(*settings: str, recipe: str = "tiny") -> list[str]:
    words = ["run", "--recipe", recipe, "--shards", "nowhere", "--out", "OUT"]
    return words + [word for setting in settings for word in ("--set", setting)]


EVAL = ["eval", "knn", "--model", "pixels", "--out", "OUT"]
DENSE = ["eval", "segment", "--model", "pixels", "--out", "OUT"]
LOOK = ["visualise", "--model", "bundled", "--images", "nowhere"]
EXPORT = ["export", "nowhere", "--out"]

REFUSED = {
    "recipe": (run(recipe="tinny"), {}, "did you mean 'tiny'"),
    "recipe of a second stage": (run(recipe="tiny-highres"), {}, "CONTINUE_FROM"),
    "out": (
        [*run()[:-1], "TAKEN/mine.txt"],
        {},
        "TAKEN/mine.txt, a file: name another place",
    ),
    "shards": (run(), {}, "no images at 'nowhere': it does not exist"),
    "key": (run("optimiser.base_rl=1"), {}, "did you mean 'base_lr'"),
    "section": (run("optimizer.base_lr=1"), {}, "did you mean 'optimiser'"),
    "type": (run("batch_size=many"), {}, "batch_size=many is 'many', but must be a whole number"),
    "value": (run("crops.flip=2"), {}, "is 2, but must be at most 1"),
    "choice": (run("objectives.centering.kind=sinkhron"), {}, "did you mean 'sinkhorn'"),
    "range": (run("crops.global_area=[0.5,0.1]"), {}, "give 0 < least <= largest"),
    "head": (run("heads.ibot.prototypes=1"), {}, "must be at least 2"),
    "k-NN without data": (run("knn.every=10"), {}, "a k-NN score needs 'train' and 'test'"),
    "option": (run("model.options.dept=3"), {}, "did you mean 'depth'"),
    "objective without masks": (run("masks=null"), {}, "the iBOT objective needs masks"),
    "group": (run("group_size=5"), {}, "group_size 5 does not divide batch_size 32"),
    "micro-batches": (run("accumulate=3"), {}, "batch_size 32 cannot be cut into 3 micro-batches"),
    "processes": (run(), {"WORLD_SIZE": "3"}, "cannot be cut into 3 processes"),
    "global crop": (run("crops.global_size=50"), {}, "crops.global_size 50 is not a multiple"),
    "local crop": (run("crops.local_size=25"), {}, "crops.local_size 25 is not a multiple"),
    "warm-up": (run("optimiser.warmup_epochs=50"), {}, "warmup_epochs is 50"),
    "learning rate": (run("optimiser.min_lr=1"), {}, "min_lr is 1, above the peak"),
    "eval task": (["eval", "knnn", "--model", "pixels"], {}, "did you mean 'knn'"),
    "eval setting": ([*EVAL, "--train", "a", "--test", "b", "--set", "knn.k=[0]"], {}, "knn.k[0]"),
    "eval images": ([*EVAL, "--train", "nowhere", "--test", "b"], {}, "no images at 'nowhere'"),
    "eval pairs": ([*DENSE, "--train", "nowhere", "--test", "b"], {}, "--train"),
    "visualise setting": ([*LOOK, "--set", "mas=1"], {}, "did you mean 'mass'"),
    "visualise out": ([*LOOK, "--out", "TAKEN"], {}, "no figure of ours"),
    "export options": (
        [*EXPORT, "OUT", "--format", "heads", "--size", "48"],
        {},
        "leave --network",
    ),
    "export out": ([*EXPORT, "TAKEN"], {}, "not an empty folder"),
}
HELP = {
    "help": ["--help"],
    "run": ["run", "--help"],
    "eval": ["eval", "--help"],
    "visualise": ["visualise", "--help"],
    "export": ["export", "--help"],
}

PROGRAM = """
import json, sys
from click.testing import CliRunner
from train.cli import main
heavy, cases = json.load(sys.stdin)
said = {}
for name, (words, environment) in cases.items():
    before = set(sys.modules)
    result = CliRunner().invoke(main, words, env=environment)
    imported = sorted(set(heavy) & set(sys.modules) - before)
    said[name] = [result.exit_code, result.output, imported]
print(json.dumps(said))
"""
"""Answers each case with exit status, words and the heavy modules that it imported first."""


def answers(cases: dict, folder: Path) -> dict:
    environment = {key: os.environ[key] for key in os.environ if key != "CONTINUE_FROM"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM],
        input=json.dumps([HEAVY, cases]),
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env=environment,
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the shipped recipes, and one that holds somebody's file."""
    made = tmp_path_factory.mktemp("start")
    (made / "pipelines.yaml").write_text((REPOSITORY / "pipelines.yaml").read_text())
    (made / "TAKEN").mkdir()
    (made / "TAKEN" / "mine.txt").write_text("mine")
    return made


@pytest.fixture(scope="module")
def refusals(folder: Path) -> dict:
    return answers({name: case[:2] for name, case in REFUSED.items()}, folder)


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_one_line_without_torch(case: str, refusals: dict) -> None:
    status, said, imported = refusals[case]
    assert status == 2
    assert said.startswith("lvd-train: ")
    assert said.count("\n") == 1
    assert REFUSED[case][2] in said
    assert imported == []


def test_help_needs_no_torch(folder: Path) -> None:
    for status, said, imported in answers({n: [w, {}] for n, w in HELP.items()}, folder).values():
        assert status == 0
        assert "Usage: " in said
        assert imported == []


@pytest.mark.skipif(sys.platform != "linux", reason="the launcher starts itself anew on Linux only")
def test_neither_start_of_the_launcher_imports_torch(folder: Path) -> None:
    chosen = (*ALLOCATOR, "LD_PRELOAD", "GLIBC_TUNABLES")  # by which it would start once only
    environment = {key: value for key, value in os.environ.items() if key not in chosen}
    done = subprocess.run(
        [Path(sys.executable).with_name("lvd-train"), *run("batch_size=many")],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**environment, "PYTHONPROFILEIMPORTTIME": "1"},
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    imported = [line.rpartition("|")[2].strip() for line in lines]
    assert done.returncode == 2
    assert imported.count("imported package") == 2  # the heading, once for each start
    assert "pydantic" in imported
    assert not {"numpy", *HEAVY} & set(imported)
