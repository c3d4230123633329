import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from curate.loop.children import run_child
from shared.errors import LvdError

LOOPING = """
import sys
from pathlib import Path
from curate.loop.children import run_child
sys.executable = str(Path(sys.argv[1]) / "python")
run_child(["sleeper"], log=Path(sys.argv[1]) / "log", title="a step")
"""


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A folder beside whose Python the programs lie that a test writes."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))

    def write(name, script):
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
        return tmp_path

    return write


def test_stderr_is_shown_and_the_log_has_the_command_and_all_it_said(programs, capsys):
    folder = programs("speaker", 'echo "said $1"; echo "at work" >&2')
    for word in ("once", "twice and more"):
        run_child(["speaker", word], log=folder / "logs" / "log", title="step 1 · speak")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.split("\n").count("at work") == 2
    assert shown.err.split("\n").count("step 1 · speak") == 2
    words = (folder / "logs" / "log").read_text().split("\n")
    assert sorted(words[:3]) == ["$ speaker once", "at work", "said once"]
    assert sorted(words[3:6]) == ["$ speaker 'twice and more'", "at work", "said twice and more"]


@pytest.mark.parametrize(
    ("end", "how"), [("exit 3", r"status 3"), ("kill -KILL $$", r"killed by SIGKILL")]
)
def test_a_failure_names_the_step_the_log_and_how_it_ended(programs, end, how):
    folder = programs("failing", end)
    with pytest.raises(LvdError, match=rf"^step 2: failing .*{how}.* {folder}/log, go on$"):
        run_child(["failing"], log=folder / "log", title="step 2", note=", go on")


def test_a_program_that_is_not_there_is_said_in_one_line(programs):
    folder = programs("other", "true")
    with pytest.raises(LvdError, match=f"no missing in {folder}"):
        run_child(["missing"], log=folder / "log", title="step")


def test_a_signal_asks_the_child_to_stop_and_then_stops_us(programs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = programs(
        "saving", "trap 'touch saved; exit 0' TERM; touch began; while :; do sleep 0.02; done"
    )

    def interrupt():
        while not (folder / "began").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_child(["saving"], log=folder / "log", title="step")
    assert (folder / "saved").exists()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_a_child_ends_when_its_parent_is_killed(programs):
    folder = programs(
        "sleeper", 'echo $$ > "$0.pid.new"; mv "$0.pid.new" "$0.pid"; exec sleep 1000'
    )
    parent = subprocess.Popen([f"{sys.prefix}/bin/python", "-c", LOOPING, str(folder)])
    pid = folder / "sleeper.pid"
    patience = time.monotonic() + 60
    while not pid.exists():
        assert time.monotonic() < patience
        time.sleep(0.01)
    parent.kill()
    parent.wait()
    while is_alive(int(pid.read_text())):
        assert time.monotonic() < patience
        time.sleep(0.01)


def is_alive(pid):
    """Return whether a process runs; one that nobody has waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
        return state.split()[0] != "Z"
    except FileNotFoundError:
        return False
