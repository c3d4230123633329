"""Signals ask for an end and are answered with one, through the launch scripts as well."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from small_run import command, write_config, write_shards

from train.distributed.signals import SIGNALS, StopRequest
from train.persistence.checkpoints import newest

ROOT = Path(__file__).parents[3]
LAUNCH = ROOT / "train" / "cluster"


def until(condition, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_no_more(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.asked
        for _ in range(2):
            os.kill(os.getpid(), number)
        assert stop.asked
    assert signal.getsignal(number) == before


def test_the_old_handlers_come_back_after_an_error() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(ZeroDivisionError), StopRequest():
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_in_another_thread_nothing_is_installed() -> None:
    found = []

    def work() -> None:
        with StopRequest() as stop:
            found.append((stop.asked, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, signal.getsignal(signal.SIGTERM))]


def descendants(process: int) -> list[int]:
    """The processes that a process has started, and those that these have."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []
    return [found for child in map(int, children) for found in (child, *descendants(child))]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str, Path]:
    """A run in two processes of torchrun.sh, of which the script alone is signalled, twice.

    The script's exit status, what was said, and the run's OUT.
    """
    folder = tmp_path_factory.mktemp("launched")
    config, shards, out = write_config(folder), write_shards(folder / "shards"), folder / "out"
    changes = ("steps=9999", "checkpoints.every=9999", "parallel.strategy=fsdp")
    more = [text for change in changes for text in ("--set", change)]
    torchrun = Path(sys.executable).with_name("torchrun")
    with (folder / "log").open("wb") as log:
        script = subprocess.Popen(
            [LAUNCH / "torchrun.sh", *command(config, shards, out, *more)[1:]],
            env=environment(TORCHRUN=str(torchrun), NPROC="2"),
            stdout=log,
            stderr=log,
        )
        try:
            until(lambda: script.poll() is not None or (out / "metrics.jsonl").exists())
            for number in (signal.SIGTERM, signal.SIGUSR1):
                script.send_signal(number)
                time.sleep(0.1)
            status = script.wait(timeout=90)
        finally:
            for process in (*descendants(script.pid), script.pid):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)  # else a training of 9,999 steps outlives it
    return status, (folder / "log").read_text(), out


def test_the_launch_script_passes_signals_on_and_ends_well(launched: tuple) -> None:
    status, said, _ = launched
    assert status == 0, said
    assert said.count("goes on from there") == 1


# pitfall 12
def test_all_processes_stop_at_the_same_step(launched: tuple) -> None:
    _, said, out = launched
    (step,) = re.findall(r"stopped after step ([\d,]+):", said)
    (path,) = (out / "checkpoints").iterdir()
    assert path.name == f"step-{int(step.replace(',', '')):07d}"
    assert newest(out / "checkpoints") == path
    assert len(list(path.glob("*.safetensors"))) == 2


def write_script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a Slurm job, with stand-ins for Slurm's commands and for torchrun.sh."""
    commands = tmp_path / "bin"
    write_script(
        commands / "scontrol",
        f'[ "$1" = show ] && printf "first\\nsecond\\n" || echo "$@" >{tmp_path}/scontrol.txt',
    )
    write_script(commands / "srun", 'while [[ $1 != *torchrun.sh ]]; do shift; done; exec "$@"')
    write_script(
        tmp_path / "train" / "cluster" / "torchrun.sh",
        f"""trap 'exit 0' USR1
        echo "$HEAD $NODES $NPROC $PORT $RUN_ID $*" >{tmp_path}/started.part
        mv {tmp_path}/started.part {tmp_path}/started.txt
        [[ $* == *fail* ]] && exit 3; [[ $* == *short* ]] && exit 0
        while true; do sleep 0.05; done""",
    )
    return environment(
        PATH=f"{commands}:{os.environ['PATH']}",
        SLURM_SUBMIT_DIR=str(tmp_path),
        SLURM_JOB_NODELIST="[...]",
        SLURM_JOB_NUM_NODES="2",
        SLURM_JOB_ID="12345",
        SLURM_GPUS_ON_NODE="8",
        SLURM_CPUS_PER_TASK="64",
    )


def test_a_slurm_job_that_runs_out_of_time_is_queued_again(
    tmp_path: Path, slurm: dict[str, str]
) -> None:
    job = subprocess.Popen([LAUNCH / "slurm.sh", "--recipe", "two words"], env=slurm)
    until((tmp_path / "started.txt").exists)
    assert (tmp_path / "started.txt").read_text() == "first 2 8 29745 12345 --recipe two words\n"
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=30) == 0
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 12345\n"


@pytest.mark.parametrize(("arguments", "code"), [("--short", 0), ("--fail", 3)])
def test_a_slurm_job_that_ends_by_itself_is_not_queued_again(
    tmp_path: Path, slurm: dict[str, str], arguments: str, code: int
) -> None:
    assert (
        subprocess.run([LAUNCH / "slurm.sh", arguments], env=slurm, timeout=30).returncode == code
    )
    assert not (tmp_path / "scontrol.txt").exists()


@pytest.mark.parametrize(
    ("script", "variables", "said"),
    [
        ("torchrun.sh", {"NODES": "2"}, "HEAD"),
        ("torchrun.sh", {"TORCHRUN": "/nowhere/torchrun"}, "make setup"),
        ("slurm.sh", {"SLURM_SUBMIT_DIR": "/nowhere"}, "/nowhere"),
    ],
)
def test_a_launch_script_says_what_is_missing_in_one_line(
    script: str, variables: dict[str, str], said: str
) -> None:
    done = subprocess.run(
        [LAUNCH / script], env=environment(**variables), capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(script)
    assert said in line
