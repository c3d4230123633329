"""The first minute, as a new user watches it: on a terminal of 100 columns, and once more."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import yaml
from PIL import Image
from smallest_recipe import SMALLEST

ROOT = Path(__file__).parents[2]
LVD_CURATE = Path(sys.executable).with_name("lvd-curate")
TINY = SMALLEST | {"steps": 8, "epochs": 4, "parallel": {"device": "cpu"}}
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
NOISE = ("Traceback", "Warning", "warning:", "(pid=", "WARN", "INFO", "Error", "deprecated")


def on_a_terminal(*command):
    """Run a command on a terminal of 100 columns; return its exit status and all that was shown."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    environment.pop("COLUMNS", None)
    child = subprocess.Popen(
        command, stdin=writer, stdout=writer, stderr=writer, env=environment, close_fds=True
    )
    os.close(writer)
    shown = b""
    try:
        while chunk := os.read(reader, 65536):
            shown += chunk
    except OSError:  # Linux's way to say that the other end is closed
        pass
    finally:
        os.close(reader)
    return child.wait(), shown.decode()


def screens(shown):
    """Return every line that ever stood on the terminal, those that were overwritten too."""
    return ESCAPES.sub("", re.sub(r"[\r\n]+", "\n", shown)).split("\n")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    config = yaml.safe_load((ROOT / "pipelines.yaml").read_text())
    config["recipes"] = {"tiny": TINY}
    config["pipelines"]["sample"]["calibrate"] = {"originals": 8, "crawl_sample": 250}
    config["pipelines"]["sample"]["estimate"] = {"pairs": 20}
    (folder / "pipelines.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # CI runs the demo on the whole sample.
        patch.setenv("PYTHONPATH", str(Path(__file__).with_name("small_sample")))
        yield folder


@pytest.fixture(scope="module")
def first(site):
    """What is shown by the first demo."""
    status, shown = on_a_terminal(str(LVD_CURATE), "demo")
    assert status == 0, shown
    return shown


def test_nothing_on_the_terminal_is_noise_or_too_wide(first):
    lines = screens(first)
    assert [line for line in lines if len(line) > 100] == []
    assert [line for line in lines if any(word in line for word in NOISE)] == []
    finished = [line for line in lines if line and "━" not in line]
    for title in ("1 of 3 · ", "2 of 3 · ", "3 of 3 · ", "What happened", "Look at", "Next"):
        assert sum(line.startswith(title) for line in finished) == 1


def test_it_says_what_the_reports_say_and_names_what_is_there(first, site):
    funnel = json.loads((site / "runs/curate/sample/reports/funnel.json").read_text())
    words = " ".join("\n".join(screens(first)).split())
    assert f"{funnel['decisions']['kept']} were kept" in words
    assert f"{funnel['decisions']['duplicate']} were copies of others" in words
    assert "by bundled-copies and bundled; what is bundled this project trained itself" in words
    assert re.search(r"Of \d+ planted copies, \d+ were found", words)
    named = re.findall(r"^  (runs/\S+) ", "\n".join(screens(first)), re.MULTILINE)
    assert len(named) == 5
    assert all((site / name).exists() for name in named)


def test_its_picture_fits_a_page(first, site):
    with Image.open(site / "runs/look/sample/picture.png") as picture:
        assert 1000 <= picture.width <= 1200
        assert picture.height > 600
    page = (site / "runs/look/sample/index.html").read_text()
    assert "bundled" in page
    assert "runs/train/sample" in page


def test_a_second_one_does_nothing_and_says_so(first, site):
    results = [*(site / "runs/curate").rglob("*"), *(site / "runs/look").rglob("*")]
    results += (site / "runs/train/sample/model").rglob("*")
    results = [path for path in results if path.suffix != ".lock"]  # says who held it last
    before = {path: path.stat().st_mtime_ns for path in results}
    status, shown = on_a_terminal(str(LVD_CURATE), "demo")
    assert status == 0
    assert shown.count("nothing to do") == 3
    assert screens(shown)[-20:] == screens(first)[-20:]
    assert {path: path.stat().st_mtime_ns for path in results} == before


def test_a_step_that_fails_ends_it_in_one_line_that_names_the_log(site, tmp_path):
    command = [LVD_CURATE, "demo", "--out-root", tmp_path, "--config", tmp_path / "none.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    log = tmp_path / "demo" / "curate.log"
    assert str(log) in done.stderr.splitlines()[-1]
    assert "none.yaml" in log.read_text()
    assert "Traceback" not in done.stderr
