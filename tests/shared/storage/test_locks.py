"""One process at a time, whatever way the others end; asking who it is disturbs nobody."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading

import pytest

from shared.errors import LvdError
from shared.storage.locks import Holder, holder, locked, scratch_folder

HOLD = """
import sys
from pathlib import Path
from shared.storage.locks import locked
with locked(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    sys.stdin.read()
"""

SCRATCH = """
import sys
from pathlib import Path
from shared.storage.locks import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "file").touch()
    print(folder, flush=True)
    sys.stdin.read()
"""


class Other:
    """Another process at work with `path`; killed at the end if it still lives."""

    def __init__(self, program, path):
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.said = self.process.stdout.readline().strip()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def test_a_second_process_is_refused_until_the_first_ends(tmp_path):
    path = tmp_path / "lock"
    with Other(HOLD, path) as other:
        with pytest.raises(LvdError, match=r"^busy here$"), locked(path, "busy here"):
            pass
        assert holder(path)
        assert holder(path).pid == other.process.pid
    assert not holder(path)
    with locked(path, "busy"):
        assert holder(path).pid == os.getpid()
    assert not holder(path)


def test_a_killed_process_holds_nothing(tmp_path):
    path = tmp_path / "lock"
    with Other(HOLD, path) as other:
        other.kill()
        assert not holder(path)
        with locked(path, "busy"):
            assert holder(path)


def test_asking_takes_no_lock_and_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    with locked(path, "busy"):
        before = path.read_bytes()
        monkeypatch.setattr(fcntl, "flock", lambda *_: pytest.fail("took a lock"))
        assert holder(path)
        assert not holder(tmp_path / "other")
        monkeypatch.undo()
        assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [path]


def test_of_another_host_its_word_is_taken_and_of_a_later_process_not(tmp_path):
    path = tmp_path / "lock"
    with locked(path, "busy"):
        mine = holder(path)
    path.write_text('{"host": "elsewhere", "pid": 1, "began": "5"}')
    assert holder(path) == Holder("elsewhere", 1, "5")
    path.write_text(f'{{"host": "{mine.host}", "pid": {mine.pid}, "began": "5"}}')
    assert not holder(path)
    path.write_text("not json")
    assert not holder(path)


def test_who_waits_gets_the_lock_when_it_is_free(tmp_path):
    path, order = tmp_path / "lock", []

    def wait():
        with locked(path, None):
            order.append("second")

    with locked(path, "busy"):
        second = threading.Thread(target=wait)
        second.start()
        order.append("first")
    second.join()
    assert order == ["first", "second"]


def test_a_child_that_inherits_the_lock_holds_it_when_we_are_killed(tmp_path):
    path = tmp_path / "lock"
    program = (
        "import os, subprocess, sys\n"
        "from pathlib import Path\n"
        "from shared.storage.locks import locked\n"
        "with locked(Path(sys.argv[1]), 'busy') as held:\n"
        "    child = ['cat']\n"
        "    subprocess.Popen(child, stdin=0, stdout=subprocess.DEVNULL, pass_fds=[held])\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with Other(program, path) as other:
        other.kill()
        with pytest.raises(LvdError, match="busy"), locked(path, "busy"):
            pass
    with locked(path, None):  # the child ends with its input
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_that_is_said_and_work_goes_on(
    tmp_path, monkeypatch, capsys, number
):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / "lock", "busy") as held:
        assert held is None
    assert capsys.readouterr().err.count(f"{tmp_path} is on storage without locks") == 1
    (tmp_path / "scratch" / "other").mkdir(parents=True)
    (tmp_path / "scratch" / "other.lock").touch()
    with scratch_folder(tmp_path / "scratch"):  # nobody knows whether the other still works
        assert (tmp_path / "scratch" / "other").exists()


def test_behind_a_url_there_are_no_locks_and_that_is_said(capsys):
    with locked("memory://bucket/out/lock", "busy") as held:
        assert held is None
    assert capsys.readouterr().err.count("memory://bucket/out is on storage without locks") == 1


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(LvdError, match="file/lock cannot be written"),
        locked(tmp_path / "file/lock", "busy"),
    ):
        pass


def test_scratch_folders_of_killed_processes_are_removed_and_of_living_ones_not(tmp_path):
    with Other(SCRATCH, tmp_path) as living, Other(SCRATCH, tmp_path) as dead:
        dead.kill()
        with scratch_folder(tmp_path) as mine:
            folders = {str(path) for path in tmp_path.iterdir() if path.is_dir()}
            assert folders == {living.said, str(mine)}
    assert not any(tmp_path.iterdir())
