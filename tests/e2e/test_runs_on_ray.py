"""Whole runs on a real Ray: the bytes of an inline run, whoever is killed."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from curated_site import Site, content, leftovers
from saboteurs import Killed, sabotage

LVD_CURATE = Path(sys.executable).with_name("lvd-curate")
MOMENTS = {
    "embed": "work/vectors/*/*/unit.json",
    "dedup": "work/dedup/*",
    "export": "out.partial/shards/*_stats.json",
}
"""What appears below a site's root when a stage is at work."""


@pytest.fixture
def on_ray(site) -> Site:
    """The drawn data with a work folder of its own, curated on Ray."""
    return replace(site, executor="ray")


def kill_when(site: Site, pattern: str, environment: dict[str, str]) -> int:
    """Run `lvd-curate` in a process of its own, SIGKILL it when `pattern` is there; its status."""
    process = subprocess.Popen(
        [LVD_CURATE, *site.arguments()],
        env=os.environ | environment,
        cwd=site.root.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    patience = time.monotonic() + 300  # a busy machine starts Ray slowly
    there = set(site.root.glob(pattern))
    while process.poll() is None and not set(site.root.glob(pattern)) - there:
        assert time.monotonic() < patience
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    return process.wait()


def test_two_embedders_and_a_balance_make_what_they_make_inline_though_workers_are_killed(
    on_ray, site, ray_session, monkeypatch
):
    words = (
        "--set=embedders.full={kind: descriptor, decode: full}",
        *("--set=retrieve.embedder=full", "--set=retrieve.threshold=0.2"),
        *("--set=balance.target=0.6", "--set=balance.levels=[9,3]"),
    )
    fuses = [
        sabotage(monkeypatch, Killed, module, name, on_ray.root / f"{name}.fuse")
        for module, name in (
            ("curate.embedding.stage", "embed_part"),
            ("curate.dedup.near", "search"),
            ("curate.export.shards", "export_shard"),
        )
    ]
    on_ray.run(*words)
    assert not any(fuse.exists() for fuse in fuses)
    assert leftovers(on_ray) == []
    assert len(list(on_ray.work.glob("vectors/*"))) == 2
    monkeypatch.undo()
    inline = replace(site, root=site.root / "inline", work=site.root / "inline" / "work")
    inline.run(*words)
    assert content(on_ray.root / "out") == content(inline.root / "out")


def test_a_driver_killed_at_three_stages_leaves_a_run_that_finishes_to_the_same_bytes(
    on_ray, undisturbed, ray_session
):
    joined = {"RAY_ADDRESS": ray_session.get_runtime_context().gcs_address}
    for moment, pattern in MOMENTS.items():
        assert kill_when(on_ray, pattern, joined) == -signal.SIGKILL, moment
    assert not (on_ray.root / "out").exists()
    on_ray.run()
    assert content(on_ray.root / "out") == content(undisturbed.root / "out")
    assert leftovers(on_ray) == []


def test_a_killed_driver_takes_its_own_ray_along(on_ray, tmp_path):
    mark = f"LVD_TEST={tmp_path}"
    assert kill_when(on_ray, MOMENTS["embed"], dict([mark.split("=", 1)])) == -signal.SIGKILL
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
