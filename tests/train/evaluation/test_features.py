import io
import os
import shutil
import signal
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import forked
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from small_models import REGISTERS, TINY, timm_folder
from torch.nn.functional import normalize

from shared.errors import LvdError
from shared.pictures.images import decode
from train.data.labelled import LabelledImages
from train.evaluation.cache import GrowingArray, scratch_folder
from train.evaluation.features import Bank, bank
from train.frozen.loading import load_models
from train.frozen.model import FrozenModel


def draw(seed, size=(40, 30)):
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write_tar(path, images, labels=True):
    with tarfile.open(path, "w") as tar:
        for n, data in enumerate(images):
            members = {"png": data, "cls": b"%d" % (n % 3)} if labels else {"png": data}
            for end, content in members.items():
                info = tarfile.TarInfo(f"{n:03d}.{end}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return timm_folder(tmp_path_factory.mktemp("timm"), **REGISTERS)


@pytest.fixture(scope="module")
def without_cls(tmp_path_factory):
    options = TINY | {"class_token": False, "global_pool": "avg", "embed_dim": 32}
    return timm_folder(tmp_path_factory.mktemp("avg"), **options)


@pytest.fixture
def data(tmp_path):
    """A folder of two tars of seven images."""
    (tmp_path / "data").mkdir()
    write_tar(tmp_path / "data" / "a.tar", [draw(n) for n in range(5)])
    write_tar(tmp_path / "data" / "b.tar", [draw(n) for n in (5, 6)])
    return tmp_path / "data"


def load(*names, precision="float32"):
    return load_models([str(name) for name in names], precision=precision, device="cpu")


def extract(model, data, cache, **options):
    given = {"role": "--train", "batch_size": 3, "workers": 2}
    return bank(model, str(data), cache=cache, **(given | options))


@pytest.fixture
def seen(monkeypatch):
    """The number of images that models look at."""
    counts = []
    look = FrozenModel.tokens

    def counted(self, pixels, blocks=1):
        counts.append(len(pixels))
        return look(self, pixels, blocks)

    monkeypatch.setattr(FrozenModel, "tokens", counted)
    return counts


def test_a_bank_holds_the_features_of_each_image_in_order_and_is_made_once(
    folder, data, tmp_path, seen
):
    (model,) = load(folder)
    (part,) = model.parts
    found = extract(model, data, tmp_path / "cache")
    assert sum(seen) == len(found) == 7
    assert found.keys == [f"a/{n:03d}" for n in range(5)] + ["b/000", "b/001"]
    assert found.labels == ["0", "1", "2", "0", "1", "0", "1"]
    for row in range(7):
        pixels = torch.tensor(part.prepare(decode(draw(row)))).permute(2, 0, 1)[None]
        tokens = part.tokens(pixels, 3)
        expected = tokens.pooled[0], tokens.cls[0], tokens.patches[0].mean(dim=(0, 1))
        for field, values in zip((found.pooled, found.cls, found.mean), expected, strict=True):
            assert field.dtype == torch.float16
            torch.testing.assert_close(field[row].float(), values, rtol=2e-3, atol=2e-3)
    before = sum(seen)
    again = extract(load(folder)[0], data, tmp_path / "cache", batch_size=7, workers=1)
    assert sum(seen) == before
    assert (again.keys, again.labels) == (found.keys, found.labels)
    assert torch.equal(again.cls, found.cls)


def test_the_same_data_and_weights_elsewhere_are_the_same_entry(folder, data, tmp_path, seen):
    cache = tmp_path / "cache"
    extract(load(folder)[0], data, cache)
    moved = shutil.copytree(data, tmp_path / "elsewhere")  # with its times
    weights = shutil.copytree(folder, tmp_path / "weights")
    extract(load(weights)[0], moved, cache)
    assert sum(seen) == 7


def test_a_changed_picture_size_weight_or_transform_is_another_entry(folder, data, tmp_path, seen):
    cache, weights = tmp_path / "cache", shutil.copytree(folder, tmp_path / "weights")
    first = extract(load(weights)[0], data, cache).pooled
    write_tar(data / "b.tar", [draw(5), draw(99)])
    changed = extract(load(weights)[0], data, cache).pooled
    assert torch.equal(changed[:6], first[:6])
    assert not torch.equal(changed[6], first[6])
    (model,) = load_models([str(weights)], size=48, precision="float32")
    extract(model, data, cache)
    config = (weights / "config.json").read_text()
    (weights / "config.json").write_text(config.replace('"crop_pct": 0.8', '"crop_pct": 0.9'))
    extract(load(weights)[0], data, cache)
    (weights / "config.json").write_text(config)
    state = load_file(weights / "model.safetensors")
    save_file(state | {"norm.bias": state["norm.bias"] + 1}, weights / "model.safetensors")
    extract(load(weights)[0], data, cache)
    assert sum(seen) == 5 * 7


def test_what_cannot_be_decoded_or_has_no_label_is_left_out_and_said_each_time(
    folder, tmp_path, capsys
):
    images = [draw(0), draw(1)[:90], b"no image", draw(3), draw(4)]
    write_tar(tmp_path / "a.tar", images)
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        info = tarfile.TarInfo("unlabelled.png")
        info.size = len(draw(9))
        tar.addfile(info, io.BytesIO(draw(9)))
    (model,) = load(folder)
    for _ in range(2):
        found = extract(model, tmp_path / "a.tar", tmp_path / "cache", batch_size=2)
        assert found.keys == ["a/000", "a/003", "a/004"]
        assert found.labels == ["0", "0", "1"]
        said = capsys.readouterr().err
        assert "--train: 2 images cannot be decoded" in said
        assert "--train: 1 images have no label" in said
    found = extract(model, tmp_path / "a.tar", tmp_path / "cache", labelled=False)
    assert found.keys[-1] == "a/unlabelled"
    assert found.labels == ["0", "0", "1", ""]


def test_data_without_a_whole_image_or_a_label_is_one_line(folder, tmp_path):
    (model,) = load(folder)
    write_tar(tmp_path / "broken.tar", [b"no image", b"nor this"])
    write_tar(tmp_path / "plain.tar", [draw(1)], labels=False)
    for name, said in (("broken.tar", "can be decoded"), ("plain.tar", "has a label")):
        with pytest.raises(LvdError, match=rf"--train: none of the images at .*{said}"):
            extract(model, tmp_path / name, tmp_path / "cache")
    assert extract(model, tmp_path / "plain.tar", tmp_path / "cache", labelled=False).labels == [""]


def test_several_models_stand_side_by_side_each_of_unit_length(
    folder, without_cls, data, tmp_path, seen
):
    joined, first, second = load(f"{folder}+{without_cls}", folder, without_cls)
    cache = tmp_path / "cache"
    found, *alone = (extract(model, data, cache) for model in (joined, first, second))
    assert sum(seen) == 14
    assert not (cache / "joined").exists()  # until something is read
    for field in ("pooled", "mean"):
        parts = [normalize(getattr(one, field).float(), dim=1) for one in alone]
        expected = torch.cat(parts, dim=1)
        torch.testing.assert_close(getattr(found, field).float(), expected, rtol=0, atol=1e-3)
    assert found.pooled.shape == (7, 24 + 32)
    assert found.cls is None
    assert (found.labels, found.keys) == (alone[0].labels, alone[0].keys)
    other = timm_folder(tmp_path / "shallow", **TINY | {"depth": 1})
    (joined,) = load(f"{folder}+{other}")
    cls = extract(joined, data, cache).cls
    assert cls.shape == (7, 1, 48)
    expected = normalize(alone[0].cls[:, -1:].float(), dim=2)
    torch.testing.assert_close(cls[..., :24].float(), expected, rtol=0, atol=1e-3)


def test_joined_rows_are_those_that_every_model_could_see(folder, data, tmp_path, monkeypatch):
    alone, joined = load(folder, f"{folder}+pixels")
    first = extract(alone, data, tmp_path / "cache")
    picture = LabelledImages._picture

    def picky(self, reader, member):
        refused = self._transform.input_side == 32 and member.key == "a/001"  # by `pixels`
        return None if refused else picture(self, reader, member)

    monkeypatch.setattr(LabelledImages, "_picture", picky)
    found = extract(joined, data, tmp_path / "cache")
    rows = [0, 2, 3, 4, 5, 6]
    assert found.keys == [first.keys[row] for row in rows]
    assert found.labels == [first.labels[row] for row in rows]
    expected = normalize(first.pooled[rows].float(), dim=1)
    torch.testing.assert_close(found.pooled[:, :24].float(), expected, rtol=0, atol=1e-3)


def test_a_field_is_read_when_it_is_wanted_and_no_earlier():
    asked = []

    def cls():
        asked.append("cls")
        return torch.ones(2, 4, 3)

    found = Bank(["0", "1"], ["a", "b"], torch.zeros(2, 3), cls)
    assert len(found) == 2
    assert found.pooled.shape == (2, 3)
    assert found.mean is None
    assert not asked
    assert found.cls is found.cls
    assert asked == ["cls"]


def test_features_too_large_for_float16_are_its_largest(tmp_path, data):
    folder = timm_folder(tmp_path / "large", **TINY)
    state = load_file(folder / "model.safetensors")
    save_file(state | {"norm.weight": state["norm.weight"] * 1e7}, folder / "model.safetensors")
    pooled = extract(load(folder)[0], data, tmp_path / "cache").pooled
    assert pooled.isfinite().all()
    assert pooled.abs().max() == 65504


def test_a_model_that_fails_leaves_nothing_that_is_taken_for_whole(
    folder, data, tmp_path, monkeypatch
):
    (model,) = load(folder)
    look = FrozenModel.tokens

    def broken(self, pixels, blocks=1):
        return look(self, pixels.fill_(255), blocks) if len(pixels) == 3 else 1 / 0

    with monkeypatch.context() as patch:
        patch.setattr(FrozenModel, "tokens", broken)
        with pytest.raises(ZeroDivisionError):
            extract(model, data, tmp_path / "cache")
    found = extract(model, data, tmp_path / "cache")
    assert len(found) == 7
    assert len(found.pooled.unique(dim=0)) == 7


def extract_killed(name, data, cache):
    """Extract features in a process that is killed at the third batch."""
    look, calls = FrozenModel.tokens, []

    def killed(self, pixels, blocks=1):
        calls.append(len(pixels))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return look(self, pixels, blocks)

    FrozenModel.tokens = killed
    (model,) = load_models([name], precision="float32", device="cpu")
    bank(model, data, role="--train", cache=cache, batch_size=3, workers=1)


def test_a_killed_extraction_is_done_again_whole_and_leaves_no_rubbish(folder, data, tmp_path):
    cache = tmp_path / "cache"
    log = tmp_path / "log"
    with forked(extract_killed, str(folder), str(data), cache, log=log) as process:
        process.said(-signal.SIGKILL)
    assert [path.name for path in cache.glob("unfinished/*/*/*.npy")]
    found = extract(load(folder)[0], data, cache)
    assert len(found) == len(found.pooled) == 7
    assert list((cache / "unfinished").iterdir()) == []


def test_rubbish_stays_while_another_process_is_at_work(tmp_path):
    with scratch_folder(tmp_path) as folder:
        (folder / "theirs").mkdir()
        with scratch_folder(tmp_path) as again:
            assert again != folder
            assert (folder / "theirs").exists()
    with scratch_folder(tmp_path) as folder:
        assert list(folder.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_one_line(folder, data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LvdError, match=r"--cache .* cannot be written"):
        extract(load(folder)[0], data, tmp_path / "file")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=12), st.lists(st.integers(1, 3), max_size=2))
def test_a_growing_array_is_what_was_appended(counts, shape):
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(count, *shape)).astype(np.float16) for count in counts]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        with GrowingArray(path) as file:
            for part in parts:
                file.append(part)
        found = np.load(path)
    expected = np.concatenate(parts) if parts else np.empty(0, np.float16)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float16
