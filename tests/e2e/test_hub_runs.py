"""Runs with a model from a hub on this machine: what is fetched, when, and what is said without it."""

import json
import os
import subprocess
import sys
import time

import pytest
from curated_site import Site, content, units
from hub_server import HubServer, hub_server, use_hub
from model_folders import make_timm_folder

from shared.storage import failures

TINY = (
    "--set=embedders.tiny={kind: timm, model: 'hf-hub:some/tiny', device: cpu}",
    "--set=retrieve.embedder=tiny",
    "--set=retrieve.threshold=0.3",
    "--set=dedup.embedder=descriptor",
)


@pytest.fixture
def server(tmp_path):
    with hub_server() as server:
        publish(server, tmp_path, 0)
        yield server


def publish(server: HubServer, folder, seed: int) -> str:
    """Publish a model of random weights, and return its commit."""
    model = folder / f"model{seed}"
    model.mkdir()
    make_timm_folder(model, seed)
    return server.publish("some/tiny", {file.name: file.read_bytes() for file in model.iterdir()})


@pytest.fixture
def cache(server, monkeypatch, tmp_path):
    use_hub(monkeypatch, server.endpoint, tmp_path / "cache")
    monkeypatch.setattr(failures, "_pause", lambda seconds: None)
    return tmp_path / "cache"


def hub_line(said: str) -> str:
    (line,) = [line for line in said.splitlines() if line.startswith("hub ")]
    return line


def test_a_dry_run_says_what_would_be_fetched_and_a_run_fetches_it_once(site, server, cache):
    (commit,) = server.commits["some/tiny"]
    said = hub_line(site.run(*TINY, "--dry-run"))
    nbytes = len(server.commits["some/tiny"][commit]["model.safetensors"])
    assert f"tiny: model.safetensors of some/tiny at {commit[:12]}" in said
    assert f"{nbytes / 1000:.1f} kB to fetch" in said
    assert not cache.exists()
    assert server.sent("/") == 0

    site.run(*TINY)
    run = json.loads((site.root / "out" / "run.json").read_text())
    assert run["revisions"] == {"tiny": commit}
    assert run["embedder"] == "descriptor and tiny"
    assert server.sent("/cdn/") == nbytes

    server.close()
    said = site.run(*TINY, "--dry-run")
    assert "in the cache already" in hub_line(said)
    assert "4 embedded, 0 to do" in said
    assert "nothing to do" in site.run(*TINY)
    site.run(*TINY, "--set=retrieve.threshold=0.31", out="another")
    assert "embed" not in site.recomputed("another")


def test_vectors_of_another_commit_are_never_used(site, server, cache, tmp_path):
    site.run(*TINY)
    before = units(site, "vectors")
    newer = publish(server, tmp_path, 1)
    pinned = f"--set=embedders.tiny.revision={newer}"
    assert f"at {newer[:12]}" in hub_line(site.run(*TINY, pinned, "--dry-run", out="newer"))
    site.run(*TINY, pinned, out="newer")
    after = units(site, "vectors")
    assert before.items() < after.items()
    made = {name.split("/")[1] for name in after.keys() - before.keys()}
    assert len(made) == 1
    assert made.isdisjoint(name.split("/")[1] for name in before)

    fresh = Site(tmp_path / "fresh", site.data, tmp_path / "fresh" / "work")
    fresh.run(*TINY, pinned)
    assert content(fresh.root / "out") == content(site.root / "newer")


COMMAND = "from curate.cli import main; main(prog_name='lvd-curate')"


def test_a_fresh_process_finds_the_hub_by_its_environment(site, server, monkeypatch, tmp_path):
    where = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *site.arguments(*TINY)],
        env=os.environ | where,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    server.close()
    use_hub(monkeypatch, server.endpoint, tmp_path / "home" / "hub")
    assert "nothing to do" in site.run(*TINY)


def test_without_a_network_one_line_within_seconds_names_both_ways_out(site, server, cache):
    server.close()
    began = time.monotonic()
    said = site.run(*TINY, status=2)
    assert time.monotonic() - began < 10
    assert said.count("\n") == 1
    assert "hf-hub:some/tiny" in said
    for way_out in ("`--embedder FOLDER`", "`--set retrieve.embedder=bundled`"):
        assert way_out in said
    assert not (site.root / "out").exists()
    said = site.run(*TINY, "--dry-run")
    assert "`--set retrieve.embedder=bundled`" in hub_line(said)
    assert "0 embedded, 4 to do" in said
    site.run(*TINY, "--set=retrieve.embedder=bundled")
