"""The mean of two models' weights, by the share of the second."""

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from benchmarks.copies import main


def folder(path, **weights):
    path.mkdir()
    (path / "config.json").write_text("{}")
    save_file(weights, path / "model.safetensors")
    return str(path)


def test_weights_lie_between_the_two_models(tmp_path):
    before = folder(tmp_path / "a", w=torch.tensor([0.0, 4.0]).half())
    after = folder(tmp_path / "b", w=torch.tensor([8.0, 4.0]).half())
    out = tmp_path / "out"
    run = CliRunner().invoke(main, ["mean", before, after, str(out), "--share", "0.75"])
    assert run.exit_code == 0, run.output
    made = load_file(out / "model.safetensors")["w"]
    assert made.dtype == torch.float16
    assert made.tolist() == [6.0, 4.0]
    assert (out / "config.json").read_text() == "{}"


@pytest.mark.parametrize("other", [{"w": torch.zeros(3)}, {"v": torch.zeros(2)}])
def test_models_of_other_shapes_are_refused(tmp_path, other):
    before, after = folder(tmp_path / "a", w=torch.zeros(2)), folder(tmp_path / "b", **other)
    run = CliRunner().invoke(main, ["mean", before, after, str(tmp_path / "out")])
    assert run.exit_code == 1
    assert "not of one architecture" in run.output
    assert not (tmp_path / "out").exists()
