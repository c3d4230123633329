"""Thresholds that are measured for a model once, and kept in its folder."""

import hashlib
import json
import shutil

import pytest
from click.testing import CliRunner
from PIL import Image

from curate.cli import main
from shared import bundled

MEASURED = "--set=calibrate={originals: 20}"
"""So many originals, and all of the crawl."""


@pytest.fixture
def folder(tmp_path):
    """A model folder without thresholds."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(bundled.FOLDER / name, folder)
    return folder


def test_calibrate_keeps_what_it_measures_and_runs_with_that_embedder_use_it(site, folder):
    asked = ["--embedder", str(folder), "--config", str(site.data / "pipelines.yaml")]
    asked += ["--work", str(site.work), "--executor", "inline", MEASURED]
    asked += ["--out", str(site.root / "sides")]
    result = CliRunner().invoke(main, ["calibrate", *asked, "--save"])
    assert result.exit_code == 0, result.output
    kept = json.loads((folder / "thresholds.json").read_text())
    assert kept["crawl"] == "crawl"
    assert "retrieve" not in kept
    assert f"--set dedup.threshold={kept['dedup']}" in result.output
    drawn = [Image.open(site.root / "sides" / f"{name}.png") for name in ("dedup", "retrieve")]
    assert all(picture.height > 2 * 150 for picture in drawn)  # a line of tiles on each side

    site.run("--embedder", str(folder), MEASURED, "--set=dedup.max_pair_share=1")
    run = json.loads((site.root / "out" / "run.json").read_text())
    assert run["thresholds"]["dedup"] == {"value": kept["dedup"], "source": "embedder"}
    assert run["thresholds"]["retrieve"]["source"] == "calibrated"


def test_a_stored_threshold_that_the_crawl_contradicts_is_replaced_with_a_warning(site, folder):
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    stored = {"dedup": 0.1, "retrieve": 0.9, "weights": weights, "image_size": 64}
    (folder / "thresholds.json").write_text(json.dumps(stored))
    said = site.run("--embedder", str(folder), MEASURED, "--set=dedup.max_pair_share=1")
    run = json.loads((site.root / "out" / "run.json").read_text())
    assert run["thresholds"]["dedup"]["source"] == "calibrated"
    assert f"{run['thresholds']['dedup']['value']} is used, as measured in this run" in said
    assert run["thresholds"]["retrieve"]["value"] != 0.9
