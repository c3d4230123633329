"""The launcher: what it sets for allocator and threads, what it leaves alone, where it may start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from train.launch import ALLOCATOR, THREADS

SHOW = """
import os, sys
from train import launch
os.execve = lambda path, command, environment: print(
    "again", *(f"{name}={environment.get(name)}" for name in (*launch.ALLOCATOR, launch.THREADS)))
sys.modules["train.cli"] = type(sys)("train.cli")
sys.modules["train.cli"].main = lambda prog_name: print("here", os.environ[launch.THREADS])
launch.main()
"""


END = """
import atexit, builtins, sys
from train import launch
class Held:
    def __del__(self):
        builtins.print("the interpreter goes down")
builtins.held = Held()
def command_line(prog_name):
    atexit.register(print, "what is left is done")
    print("done")
    sys.exit(3)
sys.modules["train.cli"] = type(sys)("train.cli")
sys.modules["train.cli"].main = command_line
launch.main()
"""


def launched(environment: dict[str, str], script: str = SHOW, status: int = 0) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in (*ALLOCATOR, THREADS)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**kept, **environment},
    )
    assert done.returncode == status, done.stderr
    return done.stdout


def test_the_process_starts_again_with_the_allocator_set() -> None:
    expected = " ".join(f"{name}={value}" for name, value in ALLOCATOR.items())
    assert launched({}).splitlines()[0] == f"again {expected} {THREADS}=PASSIVE"


@pytest.mark.parametrize(
    "chosen", [{"MALLOC_MMAP_MAX_": "7"}, {"LD_PRELOAD": ""}, {"GLIBC_TUNABLES": ""}]
)
def test_an_allocator_that_the_user_chose_stays(chosen: dict[str, str]) -> None:
    assert launched(chosen).strip() == "here PASSIVE"
    assert launched(chosen | {THREADS: "ACTIVE"}).strip() == "here ACTIVE"


def test_one_of_several_processes_ends_before_its_interpreter_does() -> None:
    said = ["done", "what is left is done", "the interpreter goes down"]
    for world, lines in (("1", said), ("2", said[:2])):
        chosen = {"GLIBC_TUNABLES": "", "WORLD_SIZE": world}
        assert launched(chosen, END, status=3).splitlines() == lines


def test_a_folder_called_train_is_not_taken_for_the_package(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for name in ("cli", "launch"):
        (tmp_path / "train" / f"{name}.py").write_text("raise SystemExit('the wrong one')")
    command = Path(sys.executable).with_name("lvd-train")
    said = subprocess.run([command, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert said.returncode == 0
    assert "lvd-train run" in said.stdout
