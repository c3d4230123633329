"""Thresholds that are measured for a model once, and kept in its folder."""

import json
import shutil

import pytest
from click.testing import CliRunner

from curate.cli import main
from shared import bundled


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
    asked += ["--work", str(site.work), "--set=calibrate.originals=20"]
    result = CliRunner().invoke(main, ["calibrate", *asked, "--save"])
    assert result.exit_code == 0, result.output
    kept = json.loads((folder / "thresholds.json").read_text())
    assert (kept["crawl"], kept["seed"]) == ("crawl", "animals")
    for name in ("dedup", "retrieve"):
        assert f"--set {name}.threshold={kept[name]}" in result.output

    site.run("--embedder", str(folder), "--set=dedup.max_pair_share=1")
    run = json.loads((site.root / "out" / "run.json").read_text())
    for name in ("dedup", "retrieve"):
        assert run["thresholds"][name] == {"value": kept[name], "source": "embedder"}
    assert run["calibration"] == {}
