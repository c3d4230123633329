"""Images that stay on the device: the batches of the loader that decodes, bit for bit, on any device."""

from __future__ import annotations

import io
import shutil
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fake_card import CUDA, fake_card
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from small_run import (
    command,
    lines,
    run_command,
    run_here,
    run_twofold,
    write_config,
    write_shards,
)
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resized_crop

from shared.errors import LvdError
from train.cli import main
from train.data import resident as module
from train.data.crops import Views
from train.data.device_crops import resized_crops
from train.data.index import ShardIndex, read_index
from train.data.loader import make_loader
from train.data.masks import batch_masks
from train.data.order import Order
from train.data.resident import ResidentImages, read_resident, resident_bytes
from train.data.settings import CropSettings, DataSettings, MaskSettings
from train.distributed.ranks import Ranks
from train.step import to_device

IMAGES = 24
CROPS = CropSettings(global_size=16, local_size=8, local_views=3, solarise=0.5)
MASKS = partial(batch_masks, grid=(4, 4), group_size=2, seed=0, settings=MaskSettings())
ALONE = Ranks(0, 1, 0, torch.device("cpu"))
BROKEN = {3: b"", 9: b"<html>", 10: b"text", 23: b"\xff\xd8\xff"}


def noise(number: int, height: int, width: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, ("PNG", "JPEG")[number % 2])
    return stream.getvalue()


def write(folder: Path, sizes, broken=None) -> ShardIndex:
    """Return the index of two tars of pictures, of which the n-th has the size `sizes(n)`."""
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number in range(shard * IMAGES // 2, (shard + 1) * IMAGES // 2):
                data = (broken or {}).get(number, noise(number, *sizes(number)))
                info = tarfile.TarInfo(f"{number:02d}.jpg")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return read_index(str(folder), folder.with_name(f"{folder.name}-index"))


def alike(number: int) -> tuple[int, int]:
    return 32, 32


def mixed(number: int) -> tuple[int, int]:
    return 11 + 7 * (number % 5), 90 - 13 * (number % 6)


@pytest.fixture(scope="module", params=[alike, mixed])
def index(request, tmp_path_factory) -> ShardIndex:
    return write(tmp_path_factory.mktemp("resident") / "data", request.param)


def read(index: ShardIndex, workers: int = 0) -> ResidentImages:
    return read_resident(index, Views(CROPS, 0).reduce_to, workers=workers, prefetch=2, ranks=ALONE)


def load(index, resident=None, *, steps=(0, 5), ranks=(0, 1), accumulate=2, workers=0, crops=CROPS):
    order = Order(index.sizes, batch_size=8, window=1, seed=3)
    views = Views(crops.model_copy(update={"device": "gpu"}), 5)
    return list(
        make_loader(
            index, order, views, MASKS, settings=DataSettings(workers=workers), ranks=ranks,
            accumulate=accumulate, start_step=steps[0], stop_step=steps[1], resident=resident,
        )
    )  # fmt: skip


def assert_same(batches, others) -> None:
    assert len(batches) == len(others) > 0
    for one, other in zip(batches, others, strict=True):
        for name in ("step", "micro", "epoch", "keys", "broken"):
            assert getattr(one, name) == getattr(other, name), name
        for name in ("global_views", "local_views", "masks", "index", "weights"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert one.photometric.keys() == other.photometric.keys()
        for name, values in one.photometric.items():
            assert torch.equal(values, other.photometric[name]), name
            assert values.dtype == other.photometric[name].dtype


def random_crops(draw: np.random.Generator, height: int, width: int, shape: tuple[int, int]):
    """Return images of noise (of two levels, which overshoot, or of all), boxes and flips."""
    images = draw.integers(0, 256, (shape[0], 3, height, width), dtype=np.uint8)
    images = np.where(draw.random() < 0.3, 255 * (images // 128), images).astype(np.uint8)
    high, wide = draw.integers(1, height + 1, shape), draw.integers(1, width + 1, shape)
    top, left = draw.integers(0, height - high + 1), draw.integers(0, width - wide + 1)
    boxes = np.stack([top, left, high, wide], -1)
    return *map(torch.from_numpy, (images, boxes)), torch.from_numpy(draw.random(shape) < 0.5)


def cubic(x: float) -> float:
    """Keys' kernel with a = -0.5, as a polynomial of its own for each of its two parts."""
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def resample(lines: np.ndarray, size: int) -> np.ndarray:
    """Return [..., size] of [..., length] by antialiased bicubic sums in float64."""
    length = lines.shape[-1]
    stretch = max(1.0, length / size)
    made = []
    for place in range(size):
        centre = (place + 0.5) * length / size
        weights = np.array([cubic((n + 0.5 - centre) / stretch) for n in range(length)])
        made.append(lines @ (weights / weights.sum()))
    return np.stack(made, -1)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    size=st.integers(5, 70),  # as settings allow; torch itself fails at some of 1 px
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_batched_crops_are_torchvisions_bit_for_bit(
    height, width, size, shape, interpolation, seed
):
    images, boxes, flips = random_crops(np.random.default_rng(seed), height, width, shape)
    made = resized_crops(images, boxes, flips, size, interpolation)
    mode = InterpolationMode(interpolation)
    for crop, (view, image) in zip(made, np.ndindex(shape[::-1]), strict=True):
        box = boxes[image, view].tolist()
        expected = resized_crop(images[image], *box, [size, size], mode, antialias=True)
        assert torch.equal(crop, expected.flip(-1) if flips[image, view] else expected)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    size=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_batched_crops_are_antialiased_bicubic_in_float64_but_for_rounding_twice(
    height, width, size, seed
):
    images, boxes, flips = random_crops(np.random.default_rng(seed), height, width, (1, 2))
    made = resized_crops(images, boxes, flips, size, "bicubic")
    for crop, (top, left, high, wide), flip in zip(made, boxes[0].tolist(), flips[0], strict=True):
        pixels = images[0, :, top : top + high, left : left + wide].double().numpy()
        rows = resample(pixels, size).clip(0, 255)  # levels end at both, after rows too
        expected = resample(rows.swapaxes(1, 2), size).swapaxes(1, 2).clip(0, 255)
        apart = np.abs((crop.flip(-1) if flip else crop).numpy() - expected)
        # Half a level after the columns; half a one after the rows, which the columns' weights,
        # whose magnitudes add up to less than 1.5, may enlarge; and the rounding of the weights.
        assert apart.max() < 0.5 + 0.75 + 0.1


def test_a_large_reduction_is_exact_too():
    images, boxes, flips = random_crops(np.random.default_rng(1), 1100, 900, (1, 1))
    boxes[:] = torch.tensor([0, 0, 1100, 900])
    made = resized_crops(images, boxes, flips, 9, "bicubic")
    expected = resized_crop(
        images[0], 0, 0, 1100, 900, [9, 9], InterpolationMode.BICUBIC, antialias=True
    )
    assert torch.equal(made[0], expected.flip(-1) if flips.item() else expected)


def test_autocast_changes_no_crop():
    images, boxes, flips = random_crops(np.random.default_rng(4), 60, 50, (2, 3))
    plain = resized_crops(images, boxes, flips, 30, "bicubic")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(resized_crops(images, boxes, flips, 30, "bicubic"), plain)


def test_pixels_outside_a_box_play_no_part():
    images, boxes, flips = random_crops(np.random.default_rng(2), 40, 50, (2, 3))
    boxes[..., :2], boxes[..., 2:] = 5, boxes[..., 2:].clamp_max(20)
    other = 255 - images
    other[:, :, 5:25, 5:25] = images[:, :, 5:25, 5:25]
    made = (resized_crops(some, boxes, flips, 12, "bicubic") for some in (images, other))
    assert torch.equal(*made)


def test_the_batches_are_the_loaders_bit_for_bit(index):
    resident = read(index)
    assert_same(load(index, resident), load(index))
    for changes in ({"local_views": 0}, {"interpolation": "bilinear", "global_area": (1, 1)}):
        crops = CROPS.model_copy(update=changes)
        assert_same(load(index, resident, crops=crops), load(index, crops=crops))


def test_finished_views_are_those_of_the_workers(index):
    order = Order(index.sizes, batch_size=8, window=1, seed=3)
    common = {"ranks": (0, 1), "accumulate": 1, "start_step": 0, "stop_step": 3}
    by_workers, by_device = (
        make_loader(
            index, order, Views(CROPS, 5), settings=DataSettings(workers=0), resident=of, **common
        )
        for of in (None, read(index))
    )
    for one, other in zip(by_workers, by_device, strict=True):
        assert one.photometric is None
        for name in ("global_views", "local_views"):
            ours = getattr(to_device(other, ALONE.device), name)
            assert torch.equal(ours, getattr(to_device(one, ALONE.device), name))


def test_workers_change_nothing(index):
    alone = load(index, read(index))
    assert_same(load(index, read(index, workers=2), workers=2), alone)


@pytest.mark.parametrize("step", [2, 4])
def test_a_resumed_run_goes_on_with_the_very_next_sample(index, step):
    resident = read(index)
    parts = [load(index, resident, steps=(0, step)), load(index, resident, steps=(step, 7))]
    assert_same([batch for part in parts for batch in part], load(index, resident, steps=(0, 7)))


def test_ranks_see_together_what_one_process_sees(index):
    resident = read(index)
    ranks = [load(index, resident, ranks=(rank, 2), accumulate=1) for rank in range(2)]
    together = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    for ours, whole in zip(together, load(index, resident), strict=True):
        assert ours.keys == whole.keys
        assert torch.equal(ours.global_views, whole.global_views)
        assert torch.equal(ours.local_views, whole.local_views)
        assert torch.equal(ours.masks, whole.masks)


@pytest.mark.parametrize("sizes", [alike, mixed])
def test_broken_images_are_named_and_replaced_as_by_the_loader(tmp_path, sizes):
    index = write(tmp_path / "data", sizes, BROKEN)
    resident = read(index)
    assert resident.broken.keys() == BROKEN.keys()
    batches = load(index, resident, steps=(0, 6))
    assert_same(batches, load(index, steps=(0, 6)))
    assert sum(len(batch.broken) for batch in batches) == 2 * len(BROKEN)


def test_nothing_but_broken_images_stops_a_run_with_the_loaders_line(tmp_path):
    index = write(tmp_path / "data", alike, dict.fromkeys(range(IMAGES), b"text"))
    said = []
    for resident in (None, read(index)):
        with pytest.raises(LvdError) as error:
            load(index, resident)
        said.append(str(error.value))
    assert said[0] == said[1]


def test_images_take_the_bytes_that_are_said(index):
    resident = read(index)
    assert resident.pixels.nbytes == 3 * int(resident.shapes.prod(1).sum())
    assert resident_bytes(index, Views(CROPS, 0).reduce_to) == resident.pixels.nbytes


@pytest.mark.parametrize("free", [10, None])
def test_images_that_do_not_fit_are_refused_in_one_line(index, monkeypatch, free):
    """At once by the sizes of some; where those were too small, once all sizes are known."""
    needed = read(index).pixels.nbytes
    if free is None:
        free = needed
        monkeypatch.setattr(module, "resident_bytes", lambda *_: 0)
    monkeypatch.setattr(module, "_free_memory", lambda device: free)
    line = rf"^data.resident needs {needed / 1e9:.2f} GB of cpu for 24 images, [^\n]*set [^\n]*$"
    with pytest.raises(LvdError, match=line):
        read(index)


def test_a_batch_in_blocks_is_the_same(index, monkeypatch):
    whole = load(index, read(index))
    monkeypatch.setitem(module._VALUES_AT_ONCE, "cpu", 1)
    assert_same(load(index, read(index)), whole)


def test_on_a_card_no_tensor_of_the_host_is_mixed_in_and_nothing_waits(index):
    on_host, host = read(index), load(index, read(index), steps=(0, 1))
    with fake_card() as card:
        pixels = torch.empty(len(on_host.pixels), dtype=torch.uint8, device="cuda")
        resident = ResidentImages(pixels, on_host.shapes, on_host.broken)
        on_card = load(index, resident, steps=(0, 1))
        made = [to_device(batch, CUDA) for batch in on_card]
    assert not card.reads
    assert not card.pageable
    for ours, other in zip(made, host, strict=True):
        theirs = to_device(other, ALONE.device)
        for name in ("global_views", "local_views", "masks", "index", "weights"):
            tensor, expected = getattr(ours, name), getattr(theirs, name)
            assert tensor.device == CUDA, name
            assert (tensor.shape, tensor.dtype) == (expected.shape, expected.dtype), name


def changed(*values: str) -> list[str]:
    return [text for value in values for text in ("--set", value)]


def test_runs_are_the_same_whether_images_are_resident_or_not(tmp_path):
    config, shards = write_config(tmp_path), write_shards(tmp_path / "shards", {4: b"", 9: b"text"})
    knn = (f"knn.train={shards}", f"knn.test={shards}", "knn.every=3", "knn.k=3")
    more = changed("steps=6", "data.workers=0", "checkpoints.every=3", *knn)
    run_command(command(config, shards, tmp_path / "loader", *more))
    resident = [*more, *changed("data.resident=true", "data.workers=1")]
    said = run_command(command(config, shards, tmp_path / "resident", *resident))
    assert "broken images left out" in said
    # Stopped in the middle of an epoch, by the loader, and gone on with by resident images.
    half = Path(shutil.copytree(tmp_path / "loader", tmp_path / "half"))
    (half / "done.json").unlink()
    for path in (half / "checkpoints" / "step-0000006").iterdir():
        path.unlink()
    (half / "checkpoints" / "step-0000006").rmdir()
    run_command(command(config, shards, half, *resident))
    expected = load_file(tmp_path / "loader" / "model" / "model.safetensors")
    for out in (tmp_path / "resident", half):
        assert lines(out) == lines(tmp_path / "loader")
        weights = load_file(out / "model" / "model.safetensors")
        assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_two_processes_share_the_decoding_and_see_what_one_sees(tmp_path):
    config, shards = (
        write_config(tmp_path),
        write_shards(tmp_path / "shards", {4: b"", 35: b"text"}),
    )
    more = changed("steps=2", "data.workers=0", "data.resident=true", "model.drop_path=0")
    run_here(command(config, shards, tmp_path / "one", *more, *changed("accumulate=2")))
    run_twofold(command(config, shards, tmp_path / "two", *more), tmp_path)
    for ours, theirs in zip(lines(tmp_path / "two"), lines(tmp_path / "one"), strict=True):
        if "loss" in ours:
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
            assert ours["broken"] == theirs["broken"]


def test_a_dry_run_says_what_the_images_will_take(tmp_path):
    config, shards = write_config(tmp_path), write_shards(tmp_path / "shards")
    asked = command(config, shards, tmp_path / "out", *changed("data.resident=true"), "--dry-run")
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 0, result.output
    assert "resident images     36, about 0.00 GiB on each process's device" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_cuts_what_the_cpu_cuts_bit_for_bit(index):
    on_host = read(index)
    on_card = ResidentImages(on_host.pixels.cuda(), on_host.shapes, on_host.broken)
    for one, other in zip(load(index, on_card), load(index, on_host), strict=True):
        assert torch.equal(one.global_views.cpu(), other.global_views)
        assert torch.equal(one.local_views.cpu(), other.local_views)
