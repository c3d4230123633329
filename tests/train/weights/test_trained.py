"""What a run has trained is found whole, or refused in one line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.errors import LvdError
from train.weights.trained import find_trained

NEWEST, OLDER = "step-0000002", "step-0000001"


@pytest.fixture
def copy(sharded_run: Path, tmp_path: Path) -> Path:
    """Another OUT with the same in it."""
    return Path(shutil.copytree(sharded_run, tmp_path / "out"))


def refusal(source: Path) -> str:
    with pytest.raises(LvdError) as caught:
        find_trained(source)
    said = str(caught.value)
    assert "\n" not in said
    assert str(source) in said
    return said


def test_the_teacher_is_what_the_model_folder_holds_and_the_student_another(
    sharded_run: Path,
) -> None:
    trained = find_trained(sharded_run)
    teacher, student = trained.network("teacher"), trained.network("student")
    held = load_file(sharded_run / "model" / "model.safetensors")
    ours = teacher.backbone.vit.state_dict()
    assert ours.keys() == held.keys()
    assert all(torch.equal(ours[name], held[name]) for name in held)
    assert not torch.equal(student.backbone.vit.norm.weight, teacher.backbone.vit.norm.weight)
    for network in (teacher, student):
        assert not any(module.training for module in network.modules())
        assert {p.dtype for p in network.parameters()} == {torch.float32}
        assert {p.device.type for p in network.parameters()} == {"cpu"}
        assert not any(p.requires_grad for p in network.parameters())
        images = torch.randn(2, 3, 32, 32)
        assert network(images).cls_logits.whole().shape == (2, 32)


def test_an_out_stands_for_its_newest_checkpoint_and_a_checkpoint_for_itself(
    sharded_run: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / "done.json").unlink()
    for source in (sharded_run, copy, sharded_run / "checkpoints" / NEWEST):
        trained = find_trained(source)
        assert (trained.checkpoint.name, trained.step) == (NEWEST, 2)
        assert trained.recipe.model.options["embed_dim"] == 24
    assert find_trained(sharded_run / "checkpoints" / OLDER).step == 1
    monkeypatch.chdir(sharded_run / "checkpoints" / OLDER)
    assert find_trained(Path()).step == 1


def test_a_torn_newest_checkpoint_is_passed_over(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "checkpoints" / NEWEST / "manifest.json").unlink()
    assert find_trained(copy).step == 1
    assert NEWEST in capsys.readouterr().err


def weights(checkpoint: Path) -> Path:
    return next(checkpoint.glob("*.safetensors"))


def alter(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: os.truncate(weights(path), 1000), "bytes"),
        (lambda path: weights(path).unlink(), "missing"),
        (lambda path: alter(weights(path)), "damaged"),
        (lambda path: (path / "manifest.json").unlink(), "manifest.json"),
        (lambda path: os.truncate(path / "manifest.json", 20), "manifest.json"),
    ],
    ids=["truncated", "missing", "altered", "no manifest", "half a manifest"],
)
def test_a_torn_checkpoint_is_refused_in_one_line(
    copy: Path, damage: Callable[[Path], None], said: str
) -> None:
    torn = copy / "checkpoints" / NEWEST
    damage(torn)
    assert said in refusal(torn)
    assert "step-..." in refusal(torn)
    shutil.rmtree(copy / "checkpoints" / OLDER)
    assert "no whole checkpoint" in refusal(copy)


def test_a_checkpoint_that_is_being_written_is_refused(copy: Path) -> None:
    checkpoint = copy / "checkpoints" / NEWEST
    unfinished = checkpoint.rename(checkpoint.with_name(f"{NEWEST}.partial"))
    assert "not finished" in refusal(unfinished)


class Alarm:
    """Leaves a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


def of_torch(folder: Path) -> None:
    torch.save({"weights": Alarm(folder.parent / "unpickled")}, folder / "checkpoint.pt")


def of_a_trainer(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "dinov2"}')
    (folder / "trainer_state.json").write_text('{"global_step": 5}')
    save_file({"weight": torch.zeros(3)}, folder / "model.safetensors")
    of_torch(folder)


def of_torch_distributed(folder: Path) -> None:
    torch.distributed.checkpoint.save({"x": torch.zeros(3)}, checkpoint_id=folder, no_dist=True)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize(
    "fill",
    [
        lambda folder: None,
        lambda folder: folder.rmdir(),
        lambda folder: (folder.rmdir(), folder.write_bytes(b"weights")),
        lambda folder: (folder / "manifest.json").write_text('{"name": "a web page"}'),
        lambda folder: (folder / "manifest.json").write_text('[{"files": {}}]'),
        lambda folder: (folder / "manifest.json").write_text('{"files": [1]}'),
        lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe"),
        lambda folder: (folder / "manifest.json").write_text('{"files": {}}'),
        lambda folder: (folder / "checkpoint.safetensors").write_bytes(b"\x00" * 20),
        of_torch,
        of_a_trainer,
        of_torch_distributed,
    ],
    ids=["empty", "none", "file", "other manifest", "list", "list of files", "no text", "no step",
         "other single file", "torch", "trainer", "torch.distributed"],
)  # fmt: skip
def test_what_is_foreign_is_refused_in_one_line_and_never_unpickled(
    tmp_path: Path, fill: Callable[[Path], object]
) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir()
    fill(folder)
    assert "give" in refusal(folder)
    assert not (tmp_path / "unpickled").exists()


def test_a_checkpoint_without_its_recipe_is_refused(copy: Path, tmp_path: Path) -> None:
    lone = shutil.copytree(copy / "checkpoints" / NEWEST, tmp_path / "lone" / NEWEST)
    assert "run.json" in refusal(lone)
    (copy / "run.json").write_text("{}")
    assert "recipe" in refusal(copy)


def test_a_recipe_that_is_not_the_checkpoints_is_said(copy: Path) -> None:
    told = json.loads((copy / "run.json").read_text())
    told["recipe"]["model"]["options"]["embed_dim"] = 48
    (copy / "run.json").write_text(json.dumps(told))
    with pytest.raises(LvdError, match=f"{NEWEST}: its teacher has backbone") as caught:
        find_trained(copy).network("teacher")
    assert "\n" not in str(caught.value)
    told["recipe"]["model"]["colour"] = "blue"
    (copy / "run.json").write_text(json.dumps(told))
    with pytest.raises(LvdError, match=r"recipe\.model\.colour in .*run\.json"):
        find_trained(copy)
