"""The commands that people type: make's targets hand on what they are given; benchmarks run."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def said(*command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def test_make_hands_on_brace_lists_globs_and_spaces_whole():
    given = ("SEED=my seed", "CRAWL=x/{0..1}.tar", "OUT=a*")
    command = said("make", "--dry-run", "curate", *given)
    for option in ("--seed 'my seed'", "--crawl 'x/{0..1}.tar'", "--out 'a*'"):
        assert option in command


@pytest.mark.parametrize(
    ("script", "arguments", "expected"),
    [
        ("dedup.py", ("--sizes", "3000", "--queries", "100", "--threads", "1"), "recall 1.0000"),
        ("retrieve.py", ("--images", "2000", "--seeds", "300", "--repetitions", "1"), "ratio"),
        ("million.py", ("--images", "4000"), "pairs"),
        ("page.py", ("--images", "400"), "pages"),
        (
            "embed.py",
            ("--descriptor", "--images", "100", "--repetitions", "1", "--threads", "1"),
            "ratio",
        ),
    ],
)
def test_benchmarks_run(script, arguments, expected):
    assert expected in said(sys.executable, f"benchmarks/{script}", *arguments)
