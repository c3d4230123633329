"""The scripts that curate on several machines, with stand-ins for Slurm's commands and for Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml

SCRIPTS = Path(__file__).parents[2] / "curate" / "cluster"


def write_script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


def until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def machines(tmp_path: Path) -> dict[str, str]:
    """The environment of two machines, with stand-ins in LVD_BIN that write what they are told."""
    commands = tmp_path / "bin"
    # A machine is there while its `ray start` runs.
    write_script(
        commands / "ray",
        f"""case $1 in
        health-check) test -e {tmp_path}/head ;;
        *) [[ $* == *broken* ]] && exit 1
        name=worker; [[ $* == *--head* ]] && name=head
        echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN $*" >{tmp_path}/$name.part; mv {tmp_path}/$name.part {tmp_path}/$name
        trap 'rm {tmp_path}/$name; exit' TERM; while test -e {tmp_path}/head; do sleep 0.02; done ;;
        esac""",
    )
    write_script(commands / "python", f"ls {tmp_path} | grep -c -e '^head$' -e '^worker$'")
    write_script(
        commands / "lvd-curate",
        f"""trap 'exit 143' TERM
        echo "$RAY_ADDRESS $*" >{tmp_path}/told.part; mv {tmp_path}/told.part {tmp_path}/told
        [[ $* == *aside* ]] && exit 3; [[ $* == *long* ]] || exit 0
        while true; do sleep 0.02; done""",
    )
    return {
        **os.environ,
        "LVD_BIN": str(commands),
        "HEAD": "127.0.0.1",
        "NODES": "2",
        "PORT": "6380",
        "PATIENCE": "60",
        "TOKEN": "secret",
        "RAY_OPTIONS": "--num-cpus=4 --temp-dir=short",
    }


def start(machines: dict[str, str], node: int, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [SCRIPTS / "ray.sh", *words],
        env={**machines, "NODE": str(node)},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("words", "status"), [(("two words",), 0), (("--aside",), 3)])
def test_the_head_waits_for_the_others_and_all_end_with_the_run(
    tmp_path: Path, machines: dict[str, str], words: tuple[str, ...], status: int
) -> None:
    worker = start(machines, 1, *words)
    head = start(machines, 0, *words)
    assert head.wait(timeout=60) == status
    assert worker.wait(timeout=60) == 0
    assert (tmp_path / "told").read_text() == f"127.0.0.1:6380 run --executor ray {words[0]}\n"
    assert not (tmp_path / "head").exists()


def test_what_ray_is_told(tmp_path: Path, machines: dict[str, str]) -> None:
    worker = start(machines, 1, "--long")
    head = start(machines, 0, "--long")
    until((tmp_path / "told").exists)
    common = "--disable-usage-stats"
    assert (tmp_path / "head").read_text() == (
        f"token secret start --block {common} --head --port 6380 --node-ip-address 127.0.0.1 "
        "--include-dashboard=false --num-cpus=4 --temp-dir=short\n"
    )
    assert (tmp_path / "worker").read_text() == (
        f"token secret start --block {common} --address 127.0.0.1:6380 --num-cpus=4 --temp-dir=short\n"
    )
    worker.send_signal(signal.SIGUSR1)  # Slurm's come to all machines
    head.send_signal(signal.SIGUSR1)
    assert head.wait(timeout=60) == 143
    assert worker.wait(timeout=60) == 0


@pytest.mark.parametrize(
    ("node", "more", "status", "said"),
    [
        (0, {"PATIENCE": "1"}, 1, "there are not 2 machines at 127.0.0.1:6380 after 1 s"),
        (1, {"PATIENCE": "1"}, 1, "no head answers at 127.0.0.1:6380 after 1 s"),
        (0, {"RAY_OPTIONS": "broken"}, 1, "'ray start' failed"),
        (0, {"HEAD": ""}, 2, "HEAD is not set"),
        (1, {"TOKEN": ""}, 2, "TOKEN is not set"),
        (0, {"LVD_BIN": "/nowhere"}, 2, "make setup"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    machines: dict[str, str], node: int, more: dict[str, str], status: int, said: str
) -> None:
    process = start(machines | more, node)
    assert process.wait(timeout=60) == status
    assert process.stderr is not None
    (line,) = process.stderr.read().splitlines()
    assert line.startswith("ray.sh: ")
    assert said in line


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a Slurm job, with stand-ins for Slurm's commands and for ray.sh."""
    commands = tmp_path / "bin"
    write_script(
        commands / "scontrol",
        f'[ "$1" = show ] && printf "first\\nsecond\\n" || echo "$@" >{tmp_path}/scontrol.txt',
    )
    write_script(commands / "getent", 'echo "192.0.2.7 $2.example $2"')
    write_script(commands / "srun", 'shift; SLURM_NODEID=1 exec "$@"')
    write_script(
        tmp_path / "curate" / "cluster" / "ray.sh",
        f"""trap 'exit 143' USR1
        echo "$HEAD $NODES $NODE $PORT ${{#TOKEN}} $*" >{tmp_path}/told.part
        mv {tmp_path}/told.part {tmp_path}/told
        [[ $* == *aside* ]] && exit 3; [[ $* == *short* ]] && exit 0
        while true; do sleep 0.05; done""",
    )
    return {
        **os.environ,
        "PATH": f"{commands}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NODELIST": "[...]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_ID": "12345",
    }


def test_a_job_that_runs_out_of_time_is_queued_again(tmp_path: Path, slurm: dict[str, str]) -> None:
    job = subprocess.Popen([SCRIPTS / "slurm.sh", "--crawl", "two words"], env=slurm)
    until((tmp_path / "told").exists)
    assert (tmp_path / "told").read_text() == "192.0.2.7 2 1 22345 64 --crawl two words\n"
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=60) == 143
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 12345\n"


@pytest.mark.parametrize(("word", "status"), [("--short", 0), ("--aside", 3)])
def test_a_job_that_ends_by_itself_is_not_queued_again(
    tmp_path: Path, slurm: dict[str, str], word: str, status: int
) -> None:
    done = subprocess.run([SCRIPTS / "slurm.sh", word], env=slurm, timeout=60)
    assert done.returncode == status
    assert not (tmp_path / "scontrol.txt").exists()


def test_rays_own_schema_knows_all_that_the_cluster_file_says() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(yaml.safe_load((SCRIPTS / "ray.yaml").read_text()), schema)


def test_kubernetes_own_schema_knows_all_that_the_pods_say() -> None:
    cluster = yaml.safe_load((SCRIPTS / "kuberay.yaml").read_text())
    spec, claims = cluster["spec"], set()
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, **group["template"]}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
        mounted = {mount["name"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}
        claims |= {x["persistentVolumeClaim"]["claimName"] for x in pod["spec"]["volumes"][:1]}
    assert len(claims) == 1
    assert spec["rayVersion"] == ray.__version__
