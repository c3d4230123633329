"""Machines that share nothing but a network: network namespaces of this host, each with an address, a
/tmp and a /dev/shm of its own, on which Ray nodes run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

NO_NAMESPACES = "no network namespaces: this needs root and `ip`"
PORT = 6379
FRUGAL = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
}
"""The environment of Ray nodes that start no process before it is wanted."""
BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[1]
ALONE = f"""set -eu
exec 9<'{ROOT}' 8<'{BIN.parent}'
mount -t tmpfs tmpfs /tmp; mount -t tmpfs tmpfs /dev/shm; cd /tmp; ip link set lo up
for place in '9 {ROOT}' '8 {BIN.parent}'; do
  path=${{place#* }}
  if [ ! -e "$path" ]; then mkdir -p "$path"; mount --bind /proc/self/fd/${{place%% *}} "$path"; fi
done
exec 9<&- 8<&-
"""
"""What a machine does first: it sees no file of another below these folders, but the program's own."""


@dataclass
class Machine:
    """A namespace and what runs in it."""

    namespace: str
    address: str
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self, script: str) -> None:
        """Run a script of bash on the machine, which begins with empty folders."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, "bash", "-c", ALONE + script],
                env={**os.environ, **FRUGAL, **self.environment},
                stdout=log,
                stderr=log,
            )

    def await_ray(self, seconds: float) -> None:
        """Wait until the machine's Ray node is up."""
        end = time.monotonic() + seconds
        while "Ray runtime started" not in self.log.read_text():
            ended = self.process is None or self.process.poll() is not None
            assert not ended, self.log.read_text()[-3000:]
            assert time.monotonic() < end, self.log.read_text()[-3000:]
            time.sleep(0.2)

    def join(self, head: Machine) -> None:
        """Run a Ray node of one processor."""
        command = f"{ray_start(self)} --address {head.address}:{PORT} --num-cpus 1"
        self.start(f"until {command}; do sleep 1; done")  # Ray gives it 30 s, too few at times

    def kill(self) -> None:
        """Kill all that runs on the machine, at once."""
        asked = ["ip", "netns", "pids", self.namespace]
        for process in subprocess.run(asked, capture_output=True, check=False).stdout.split():
            try:
                os.kill(int(process), signal.SIGKILL)
            except ProcessLookupError:
                continue
        if self.process is not None:
            self.process.wait(60)

    def said(self, seconds: float) -> str:
        """Wait for the end of the script, which must be a good one; return what it said."""
        assert self.process is not None
        status = self.process.wait(seconds)
        said = self.log.read_text()
        assert status == 0, f"{status}\n{said[-3000:]}"
        return said


def ray_start(machine: Machine) -> str:
    """Return the command of a Ray node on a machine."""
    return (
        f"{BIN}/ray start --block --disable-usage-stats --object-store-memory 80000000 "
        f"--include-log-monitor false --node-ip-address {machine.address}"
    )


def command_on_head(machine: Machine, words: list[str], nodes: int) -> str:
    """Return a script that starts Ray's head, waits for so many nodes, and runs `lvd-curate` there."""
    wait = f"""import ray, time
ray.init(log_to_driver=False)
while len(ray.nodes()) <= {nodes}: time.sleep(0.2)
"""
    return f"""
until {ray_start(machine)} --head --port {PORT} --num-cpus 0 --include-dashboard=false; do sleep 1; done &
until (: </dev/tcp/{machine.address}/{PORT}) 2>/dev/null; do sleep 0.2; done
export RAY_ADDRESS={machine.address}:{PORT}
until {BIN}/python -c "{wait}"; do sleep 1; done
printf %s "$CONFIG" > pipelines.yaml
{BIN}/lvd-curate {" ".join(words)}
"""


@contextmanager
def machines(count: int, logs: Path, environment: dict[str, str]) -> Iterator[list[Machine]]:
    """Give so many machines, which reach each other and, at `gateway()`, this process."""
    name = f"lvd{os.getpid()}"
    made = [
        Machine(f"{name}-{n}", f"{_net()}.{n + 1}", environment, logs / f"machine-{n}.log")
        for n in range(count)
    ]
    try:
        for n, machine in enumerate(made):
            inside, outside = f"{name}i{n}", f"{name}o{n}"
            _ip("netns", "add", machine.namespace)
            _ip("link", "add", outside, "type", "veth", "peer", "name", inside)
            _ip("link", "set", outside, "master", name, "up")
            _ip("link", "set", inside, "netns", machine.namespace)
            _ip("-n", machine.namespace, "addr", "add", f"{machine.address}/24", "dev", inside)
            _ip("-n", machine.namespace, "link", "set", inside, "up")
        yield made
    finally:
        for n, machine in enumerate(made):
            machine.kill()
            for gone in (["netns", "del", machine.namespace], ["link", "del", f"{name}o{n}"]):
                subprocess.run(["ip", *gone], check=False, stderr=subprocess.DEVNULL)


@contextmanager
def gateway() -> Iterator[str]:
    """Give the address at which machines reach this process; skips the test where there are none."""
    name = f"lvd{os.getpid()}"
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip(NO_NAMESPACES)
    if subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=False).returncode:
        pytest.skip(NO_NAMESPACES)
    try:
        _ip("addr", "add", f"{_net()}.254/24", "dev", name)
        _ip("link", "set", name, "up")
        yield f"{_net()}.254"
    finally:
        _ip("link", "del", name)


def _net() -> str:
    """Return the first bytes of addresses that other processes of the tests do not use."""
    return f"10.{100 + os.getpid() // 250 % 100}.{os.getpid() % 250}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
