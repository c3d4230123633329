"""The commands that people type: make's targets hand on what they are given; benchmarks run."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from forked import forked

ROOT = Path(__file__).parents[2]


def run_script(path, arguments):
    """Run a script as Python does, from the root of the repository."""
    os.chdir(ROOT)
    sys.argv = [path, *arguments]
    sys.path.insert(0, str(Path(path).parent))
    runpy.run_path(path, run_name="__main__")


def test_make_hands_on_brace_lists_globs_and_spaces_whole():
    given = ("SEED=my seed", "CRAWL=x/{0..1}.tar", "OUT=a*")
    make = ("make", "--dry-run", "curate", *given)
    command = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout
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
def test_benchmarks_run(script, arguments, expected, tmp_path):
    path = str(ROOT / "benchmarks" / script)
    with forked(run_script, path, arguments, log=tmp_path / "log") as process:
        assert expected in process.said()
