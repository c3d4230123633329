import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from curate.loop import children
from curate.loop.children import run_child
from shared.errors import LvdError

LOOPING = """
import sys
from pathlib import Path
from curate.loop.children import run_child
sys.executable = str(Path(sys.argv[1]) / "python")
run_child(["sleeper", "sleep"], log=Path(sys.argv[1]) / "log", title="a step")
"""
SLEEPER = """
import os, sys, time
from pathlib import Path
import click
from shared.commands import Commands

@click.group(cls=Commands)
def main(): pass

@main.command()
def sleep():
    beside = Path(sys.argv[0] + ".new")
    beside.write_text(str(os.getpid()))
    beside.rename(sys.argv[0] + ".pid")
    time.sleep(100)

main()
"""
SAVING = """
trap 'touch saved; exit 0' TERM
touch began
for _ in {1..3000}; do sleep 0.02; done
"""
DEAF = """
trap 'touch asked' TERM
touch began
for _ in {1..3000}; do sleep 0.02; done
touch ended
"""
LISTENER = """
import time
from pathlib import Path
Path("began").touch()
time.sleep(60)
Path("ended").touch()
"""


def wait_for(happened):
    patience = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < patience
        time.sleep(0.01)


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A folder beside whose Python the programs lie that a test writes."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))

    def write(name, script, interpreter="/bin/bash"):
        (tmp_path / name).write_text(f"#!{interpreter}\n{script}\n")
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


@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN])
def test_a_signal_asks_the_child_to_stop_and_then_stops_us(programs, tmp_path, monkeypatch, before):
    monkeypatch.chdir(tmp_path)
    folder = programs("saving", SAVING)

    def interrupt():
        wait_for((folder / "began").exists)
        os.kill(os.getpid(), signal.SIGINT)

    outer = signal.signal(signal.SIGINT, before)
    try:
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            run_child(["saving"], log=folder / "log", title="step")
        assert (folder / "saved").exists()
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, outer)


def test_a_child_hears_a_signal_that_we_were_started_to_ignore(programs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = programs("lvd-curate", LISTENER, interpreter=f"{sys.prefix}/bin/python")

    def terminate():
        wait_for((folder / "began").exists)
        os.kill(os.getpid(), signal.SIGTERM)  # lvd-curate is asked by SIGINT

    outer = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        threading.Thread(target=terminate, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            run_child(["lvd-curate"], log=folder / "log", title="step")
        assert not (folder / "ended").exists()
    finally:
        signal.signal(signal.SIGINT, outer)


@pytest.mark.parametrize("again", [True, False])
def test_a_child_that_does_not_stop_is_killed(programs, tmp_path, monkeypatch, again):
    monkeypatch.chdir(tmp_path)
    if not again:  # then its time runs out
        monkeypatch.setattr(children, "SAVING", 0.2)
        monkeypatch.setattr(children, "KILL_MARGIN", 0)
    folder = programs("deaf", DEAF)

    def stop():
        wait_for((folder / "began").exists)
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for((folder / "asked").exists)
        if again:
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_child(["deaf"], log=folder / "log", title="step")
    assert not (folder / "ended").exists()


def test_a_command_of_ours_ends_when_its_parent_is_killed(programs):
    folder = programs("sleeper", SLEEPER, interpreter=f"{sys.prefix}/bin/python")
    parent = subprocess.Popen([f"{sys.prefix}/bin/python", "-c", LOOPING, str(folder)])
    pid = folder / "sleeper.pid"
    wait_for(pid.exists)
    parent.kill()
    parent.wait(timeout=60)
    wait_for(lambda: not is_alive(int(pid.read_text())))


def is_alive(pid):
    """Return whether a process runs; one that nobody has waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
        return state.split()[0] != "Z"
    except FileNotFoundError:
        return False
