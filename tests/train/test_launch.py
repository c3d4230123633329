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


def launched(environment: dict[str, str]) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in (*ALLOCATOR, THREADS)}
    return subprocess.run(
        [sys.executable, "-c", SHOW],
        capture_output=True,
        text=True,
        check=True,
        env={**kept, **environment},
    ).stdout


def test_the_process_starts_again_with_the_allocator_set() -> None:
    expected = " ".join(f"{name}={value}" for name, value in ALLOCATOR.items())
    assert launched({}).splitlines()[0] == f"again {expected} {THREADS}=PASSIVE"


@pytest.mark.parametrize(
    "chosen", [{"MALLOC_MMAP_MAX_": "7"}, {"LD_PRELOAD": ""}, {"GLIBC_TUNABLES": ""}]
)
def test_an_allocator_that_the_user_chose_stays(chosen: dict[str, str]) -> None:
    assert launched(chosen).strip() == "here PASSIVE"
    assert launched(chosen | {THREADS: "ACTIVE"}).strip() == "here ACTIVE"


def test_a_folder_called_train_is_not_taken_for_the_package(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "cli.py").write_text("raise SystemExit('the wrong one')")
    command = Path(sys.executable).with_name("lvd-train")
    said = subprocess.run([command, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert said.returncode == 0
    assert "lvd-train run" in said.stdout
