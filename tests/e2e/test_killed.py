"""Processes killed at every stage: the next run finishes the work to the same bytes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from curated_site import Site, content, leftovers
from saboteurs import Killed, sabotage

LVD_CURATE = Path(sys.executable).with_name("lvd-curate")
MOMENTS = {
    "embed": "work/embed/*/*/unit.json",
    "cluster": "work/cluster/*",
    "dedup": "work/dedup/*",
    "retrieve": "work/retrieve/*",
    "export": "out.partial/shards/*_stats.json",
    "report": "out.partial/.tables",
    "last": "out.partial/run.json",
}
"""What appears below a site's root when a stage is at work."""
QUICK = {"report", "last"}
"""Moments so close to the end that the run may finish before the signal arrives."""


def kill_when(site: Site, pattern: str, environment: dict[str, str]) -> int:
    """Run `lvd-curate` in a process of its own, SIGKILL it when `pattern` is there; its status."""
    process = subprocess.Popen(
        [LVD_CURATE, *site.arguments()],
        env=os.environ | environment,
        cwd=site.root.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    patience = time.monotonic() + 120
    there = set(site.root.glob(pattern))
    while process.poll() is None and not set(site.root.glob(pattern)) - there:
        assert time.monotonic() < patience
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    return process.wait()


def test_a_driver_killed_at_every_stage_leaves_a_run_that_finishes_to_the_same_bytes(
    site, undisturbed, ray_session
):
    joined = {"RAY_ADDRESS": ray_session.get_runtime_context().gcs_address}
    for moment, pattern in MOMENTS.items():
        status = kill_when(site, pattern, joined)
        assert status == -signal.SIGKILL or moment in QUICK, moment
        if (site.root / "out").exists():
            assert content(site.root / "out") == content(undisturbed.root / "out")
    site.run()
    assert content(site.root / "out") == content(undisturbed.root / "out")
    assert leftovers(site) == []


def test_ray_workers_killed_in_embed_dedup_and_export_change_nothing(
    site, undisturbed, monkeypatch
):
    fuses = [
        sabotage(monkeypatch, Killed, module, name, site.root / f"{name}.fuse")
        for module, name in (
            ("curate.stages", "embed_part"),
            ("curate.dedup.near", "search"),
            ("curate.export.shards", "export_shard"),
        )
    ]
    site.run()
    assert not any(fuse.exists() for fuse in fuses)
    assert content(site.root / "out") == content(undisturbed.root / "out")
    assert leftovers(site) == []


def test_a_killed_driver_takes_its_own_ray_along(drawn, tmp_path):
    site = Site(tmp_path, drawn, tmp_path / "work")
    mark = f"LVD_TEST={tmp_path}"
    assert kill_when(site, MOMENTS["embed"], dict([mark.split("=", 1)])) == -signal.SIGKILL
    patience = time.monotonic() + 30
    while left := processes_with(mark):
        assert time.monotonic() < patience, left
        time.sleep(0.1)


def processes_with(variable: str) -> list[str]:
    """Return the command lines of the living processes that have `NAME=value` in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if variable.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    # Ray's agents look for their parent no more than once a minute.
    return [line for line in found if line and "Agent" not in line]
