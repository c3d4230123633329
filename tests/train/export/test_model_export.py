"""What is exported is loaded by other programs alone, and is to the bit what was trained."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from click.testing import CliRunner
from safetensors import SafetensorError
from safetensors.torch import load_file

from shared.errors import LvdError
from train.export.command import export
from train.export.formats import write_export
from train.weights.trained import find_trained


def same_bytes(folder: Path, other: Path) -> bool:
    files = [
        sorted((path.name, path.read_bytes()) for path in f.iterdir()) for f in (folder, other)
    ]
    return files[0] == files[1]


@torch.inference_mode()
def test_plain_timm_gives_the_same_features(sharded_run: Path, tmp_path: Path) -> None:
    asked = {
        "teacher": [],
        "larger": ["--size", "48"],
        "student": ["--network", "student"],
    }
    for name, more in asked.items():
        result = CliRunner().invoke(
            export, [str(sharded_run), "--out", str(tmp_path / name), *more]
        )
        assert result.exit_code == 0, result.output
        assert str(tmp_path / name) in result.output
    images = torch.randn(2, 3, 48, 48)
    found = {}
    for name, size in (("teacher", 32), ("student", 32), ("larger", 48)):
        model = timm.create_model(f"local-dir:{tmp_path / name}", pretrained=True).eval()
        assert tuple(model.pretrained_cfg["input_size"]) == (3, size, size)
        found[name] = model.forward_features(images[..., :size, :size])
        backbone = find_trained(sharded_run).network(name if size == 32 else "teacher").backbone
        cls, patches = backbone(images[..., :size, :size])
        torch.testing.assert_close(found[name][:, 0], cls)
        torch.testing.assert_close(found[name][:, 3:], patches)
    source = f"local-dir:{tmp_path / 'teacher'}"
    resampled = timm.create_model(source, pretrained=True, img_size=48).eval()
    torch.testing.assert_close(resampled.forward_features(images), found["larger"])
    assert not torch.allclose(found["teacher"], found["student"], atol=1e-3)


def test_a_run_a_checkpoint_its_model_and_its_heads_give_the_same_folder(
    sharded_run: Path, tmp_path: Path
) -> None:
    write_export(sharded_run, tmp_path / "heads", "heads")
    sources = (
        sharded_run,
        sharded_run / "checkpoints" / "step-0000002",
        sharded_run / "model",
        tmp_path / "heads",
    )
    for number, source in enumerate(sources):
        write_export(source, tmp_path / f"{number}", "timm")
        write_export(source, tmp_path / f"{number} at 48", "timm", size=48)
        assert same_bytes(tmp_path / f"{number}", sharded_run / "model")
        assert same_bytes(tmp_path / f"{number} at 48", tmp_path / "0 at 48")
    assert not same_bytes(tmp_path / "0 at 48", sharded_run / "model")


def test_positions_are_resampled_as_the_recipe_says(sharded_run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(sharded_run, tmp_path / "other"))
    told = json.loads((other / "run.json").read_text())
    told["recipe"]["model"] |= {"position_mode": "bilinear", "position_antialias": False}
    (other / "run.json").write_text(json.dumps(told))
    tables = []
    for source in (sharded_run, other):
        write_export(source, tmp_path / f"{source.name} at 16", "timm", size=16)
        tables.append(load_file(tmp_path / f"{source.name} at 16" / "model.safetensors"))
    assert tables[0].pop("pos_embed").shape == tables[1]["pos_embed"].shape
    backbone = find_trained(other).network("teacher").backbone
    expected = backbone.resampled(backbone.vit.pos_embed, (4, 4), (2, 2))
    assert torch.equal(tables[1].pop("pos_embed"), expected)
    assert tables[0].keys() == tables[1].keys()
    assert all(torch.equal(tables[0][name], tables[1][name]) for name in tables[0])


@pytest.fixture(scope="module")
def graph(sharded_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student as ONNX at 48 px."""
    folder = tmp_path_factory.mktemp("onnx") / "student"
    said = write_export(sharded_run, folder, "onnx", role="student", size=48)
    assert "largest difference" in said
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.onnx"]
    return folder


def test_the_graph_gives_the_same_tokens_for_any_number_of_images(
    sharded_run: Path, graph: Path
) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(graph / "model.onnx")
    assert [output.name for output in session.get_outputs()] == ["cls", "patches"]
    backbone = find_trained(sharded_run).network("student").backbone
    for count in (1, 2, 5):
        images = torch.randn(count, 3, 48, 48)
        found = session.run(None, {"images": images.numpy()})
        for theirs, ours in zip(found, backbone(images), strict=True):
            torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=1e-4, atol=1e-5)


def test_a_graph_that_differs_from_torch_is_not_left_behind(
    sharded_run: Path, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    another = SimpleNamespace(save=lambda path: shutil.copy(graph / "model.onnx", path))
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: another)
    with pytest.raises(LvdError, match="differs from torch") as caught:
        write_export(sharded_run, tmp_path / "teacher", "onnx", size=48)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_onnx_says_what_to_install(
    sharded_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(LvdError, match=r"onnxruntime.*\[onnx\]") as caught:
        write_export(sharded_run, tmp_path / "graph", "onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "form", "more", "said"),
    [
        ("", "timm", {"size": 30}, "--size 30.*multiple"),
        ("", "heads", {"size": 48}, "--size"),
        ("", "single", {"role": "student"}, "--network"),
        ("", "onnx", {"half": True}, "--half"),
        ("model", "timm", {"role": "student"}, "--network student"),
        ("model", "heads", {}, "needs a checkpoint"),
        ("model", "single", {}, "needs a checkpoint"),
        ("index", "timm", {}, "no whole checkpoint"),
        ("nowhere", "single", {}, "no such folder"),
        ("run.json", "timm", {}, "it is a file"),
    ],
)
def test_what_cannot_be_exported_is_said_in_one_line_and_leaves_nothing(
    sharded_run: Path, tmp_path: Path, source: str, form: str, more: dict, said: str
) -> None:
    with pytest.raises(LvdError, match=said) as caught:
        write_export(sharded_run / source, tmp_path / "new", form, **more)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_half_of_the_bytes_give_the_features_to_half_precision(
    sharded_run: Path, tmp_path: Path
) -> None:
    for name, half in (("whole", False), ("half", True)):
        write_export(sharded_run, tmp_path / name, "timm", half=half)
    whole, half = (tmp_path / name / "model.safetensors" for name in ("whole", "half"))
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    images = torch.randn(4, 3, 32, 32)
    features = [
        timm.create_model(f"local-dir:{file.parent}", pretrained=True).eval()(images)
        for file in (whole, half)
    ]
    torch.testing.assert_close(features[1], features[0], atol=5e-3, rtol=5e-3)
    assert not torch.equal(*features)


def test_a_model_folder_that_is_torn_or_anothers_is_refused(
    sharded_run: Path, tmp_path: Path
) -> None:
    torn = Path(shutil.copytree(sharded_run / "model", tmp_path / "torn"))
    (torn / "model.safetensors").write_bytes(b"\x10" * 40)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"architecture": "dinov2", "hidden_size": 384}')
    for folder, said in ((torn, "model.safetensors"), (other, "another program's")):
        with pytest.raises(LvdError, match=said) as caught:
            write_export(folder, tmp_path / "new", "timm")
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)


@pytest.mark.parametrize("form", ["timm", "single"])
def test_what_is_there_is_never_overwritten(sharded_run: Path, tmp_path: Path, form: str) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (tmp_path / ".place.mine").mkdir()
    write_export(sharded_run, place, form)  # an empty folder is nobody's
    before = {path: path.read_bytes() for path in place.iterdir()}
    for taken in (place, next(iter(before))):
        with pytest.raises(LvdError, match="name another"):
            write_export(sharded_run, taken, form)
    assert {path: path.read_bytes() for path in place.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".place.mine", "place"]


@pytest.mark.parametrize("form", ["timm", "heads"])
def test_a_full_disk_is_said_in_one_line_and_leaves_nothing(
    sharded_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    monkeypatch.setattr("train.model.model_folder.save_file", full)
    monkeypatch.setattr("train.export.one_file.ONE_FILE", "/dev/full")
    with pytest.raises(LvdError, match="no space left") as caught:
        write_export(sharded_run, tmp_path / "new", form)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
