"""The loader with real workers: whose draws, which samples, what is broken, who dies of what."""

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import time
from functools import partial
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import forked
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from shared.errors import LvdError
from train.data.crops import SampleViews, Views
from train.data.index import ShardIndex, read_index
from train.data.loader import make_loader
from train.data.masks import batch_masks
from train.data.order import Order
from train.data.settings import CropSettings, DataSettings, MaskSettings

IMAGES, SHARDS = 48, 3
CROPS = CropSettings(global_size=16, local_size=8, local_views=2)
REAL_MASKS = partial(batch_masks, grid=(4, 4), group_size=2, seed=0, settings=MaskSettings())


class Marks:
    """Stands in for Views: each view says picture, sample, epoch, number of the view and height."""

    reduce_to = 90

    def __call__(self, image, sample, epoch):
        about = [int(image.float().mean()), sample, epoch, 0, image.shape[1] // 4]
        views = torch.tensor(about, dtype=torch.uint8).view(5, 1, 1).repeat(5, 1, 1, 1)
        views[:, 3, 0, 0] = torch.arange(5)
        return SampleViews(views[:2], views[2:], None)


class Deadly(Marks):
    """Kills the worker that shows sample 7, as the kernel does when memory runs out."""

    def __call__(self, image, sample, epoch):
        if sample == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(image, sample, epoch)


BITS = 16


class MaskMarks:
    """Stands in for the masks: their bits are the numbers of what was asked for."""

    def __call__(self, *, step, epochs, first, samples):
        drawn = enumerate(zip(epochs, samples, strict=True))
        asked = [[step, epoch, first + place, sample] for place, (epoch, sample) in drawn]
        bits = torch.tensor(asked)[..., None] >> torch.arange(BITS) & 1
        return bits.bool().flatten(1).repeat(2, 1)


def asked_for(masks):
    """Return what `MaskMarks` was asked for, [2n, 4]: step, epoch, place and sample."""
    return (masks.unflatten(1, (-1, BITS)).long() << torch.arange(BITS)).sum(-1)


def jpeg(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def grey(number):
    return jpeg(np.full((20, 24), number, np.uint8))


def write_shards(folder, image=grey):
    """Write samples 0 to 47 in three tars, and return their index."""
    folder.mkdir()
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number in range(shard * IMAGES // SHARDS, (shard + 1) * IMAGES // SHARDS):
                data = image(number)
                info = tarfile.TarInfo(f"{number:02d}.jpg")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return read_index(str(folder), folder.with_name(f"{folder.name}-index"))


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("loader") / "data")


def order(index, batch=8, window=2):
    return Order(index.sizes, batch_size=batch, window=window, seed=3)


def load(
    index, views=None, masks=None, *, batch=8, window=2, ranks=(0, 1), steps=(0, 6), accumulate=1,
    **options,
):  # fmt: skip
    return make_loader(
        index,
        order(index, batch, window),
        views or Marks(),
        masks or MaskMarks(),
        settings=DataSettings(**{"workers": 0, **options}),
        ranks=ranks,
        accumulate=accumulate,
        start_step=steps[0],
        stop_step=steps[1],
    )


def numbers(batch):
    """Return the samples that a batch's keys name."""
    return [int(key.rpartition("/")[2]) for key in batch.keys]


def same(batches, others):
    """Tell whether two runs loaded the same batches, to the last pixel."""
    batches, others = list(batches), list(others)
    plain = ("step", "micro", "epoch", "keys", "broken")
    tensors = ("global_views", "local_views", "masks", "index", "weights")
    return len(batches) == len(others) > 0 and all(
        all(getattr(one, name) == getattr(other, name) for name in plain)
        and all(torch.equal(getattr(one, name), getattr(other, name)) for name in tensors)
        for one, other in zip(batches, others, strict=True)
    )


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_dead(pids):
    for _ in range(300):
        if not any(map(alive, pids)):
            return
        time.sleep(0.1)
    raise AssertionError(f"of {pids}, {[pid for pid in pids if alive(pid)]} still live")


def test_the_places_of_the_loss_are_the_masked_ones_or_all_where_a_distillation_asks(index):
    common = {"settings": DataSettings(workers=0), "ranks": (0, 1), "accumulate": 1}
    common |= {"start_step": 0, "stop_step": 1}
    (batch,) = make_loader(index, order(index), Marks(), REAL_MASKS, **common)
    assert torch.equal(batch.index, batch.masks.flatten().nonzero()[:, 0])
    crop = batch.index // batch.masks.shape[1]
    assert torch.equal(batch.weights, 1 / batch.masks.sum(1).float()[crop])
    (batch,) = make_loader(index, order(index), Marks(), **common, patches=4)
    assert torch.equal(batch.index, torch.arange(16 * 4))
    assert batch.weights.unique().tolist() == [0.25]
    (batch,) = make_loader(index, order(index), Marks(), **common)
    assert batch.index is None


# pitfall 18
def test_draws_differ_between_samples_epochs_and_ranks_and_repeat_with_the_seed(tmp_path):
    # All samples are one picture: nothing but the draws can tell their views apart.
    picture = jpeg(np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8))
    index = write_shards(tmp_path / "data", lambda number: picture)

    def views(seed, workers):
        found = []
        for rank in range(2):
            options = {"ranks": (rank, 2), "steps": (0, 2 * IMAGES // 8), "workers": workers}
            for batch in load(index, Views(CROPS, seed), **options):
                found += torch.stack(batch.global_views.chunk(2), dim=1).flatten(1).tolist()
        return [tuple(view) for view in found]

    first = views(seed=0, workers=2)
    assert len(first) == len(set(first)) == 2 * IMAGES
    assert views(seed=0, workers=0) == first
    assert not set(views(seed=1, workers=0)) & set(first)


def test_batches_are_the_same_for_any_number_of_workers(index):
    alone = list(load(index, Views(CROPS, 0), REAL_MASKS, steps=(0, 3), accumulate=2))
    for workers in (1, 2):
        loaded = load(
            index, Views(CROPS, 0), REAL_MASKS, steps=(0, 3), accumulate=2, workers=workers
        )
        assert same(loaded, alone)


# pitfall 19
def test_ranks_draw_other_masks_and_together_what_one_process_draws(index):
    def masks(ranks, accumulate):
        loaded = load(index, Marks(), REAL_MASKS, ranks=ranks, accumulate=accumulate)
        return [batch.masks for batch in loaded]

    first, second, alone = masks((0, 2), 1), masks((1, 2), 1), masks((0, 1), 2)
    assert not any(map(torch.equal, first, second))
    assert all(map(torch.equal, first, alone[0::2]))
    assert all(map(torch.equal, second, alone[1::2]))


@settings(max_examples=20, deadline=None)
@given(
    world=st.sampled_from([1, 2, 3]),
    accumulate=st.sampled_from([1, 2, 4]),
    images=st.integers(1, 4),
    window=st.integers(1, 4),
)
def test_each_sample_is_seen_once_an_epoch_whatever_ranks_and_accumulation(
    index, world, accumulate, images, window
):
    batch = world * accumulate * images
    steps = range(IMAGES // batch, 2 * (IMAGES // batch))
    loaders = [
        load(
            index,
            batch=batch,
            window=window,
            ranks=(rank, world),
            steps=(steps.start, steps.stop),
            accumulate=accumulate,
        )
        for rank in range(world)
    ]
    seen = []
    for step in steps:
        at_step = [next(loader) for _ in range(accumulate) for loader in loaders]
        assert [b.micro for b in at_step] == [micro for micro in range(accumulate) for _ in loaders]
        assert {(b.step, b.epoch) for b in at_step} == {(step, 1)}
        places = torch.cat([asked_for(b.masks).chunk(2)[0] for b in at_step])
        expected = order(index, batch, window).batch(step).samples.tolist()
        assert places.tolist() == [[step, 1, n, sample] for n, sample in enumerate(expected)]
        assert [number for b in at_step for number in numbers(b)] == expected
        seen += expected
    assert len(seen) == len(set(seen)) > IMAGES - batch
    assert all(next(loader, None) is None for loader in loaders)


# pitfall 21
@pytest.mark.parametrize("step", [2, 4, 9])
def test_a_resumed_run_goes_on_with_the_very_next_sample(index, step):
    options = {"accumulate": 2, "batch": 12}
    whole = list(load(index, steps=(0, 12), **options))
    assert [batch.epoch for batch in whole] == [0] * 8 + [1] * 8 + [2] * 8
    before = load(index, steps=(0, step), **options)
    after = load(index, steps=(step, 12), workers=step // 4, **options)
    assert same([*before, *after], whole)
    for epoch in range(3):
        seen = [number for batch in whole if batch.epoch == epoch for number in numbers(batch)]
        assert sorted(seen) == list(range(IMAGES))


# pitfall 1
def test_views_are_crop_major(index):
    (batch,) = load(index, steps=(7, 8))
    for views, first, count in ((batch.global_views, 0, 2), (batch.local_views, 2, 3)):
        assert views.dtype == torch.uint8
        shown, sample, epoch, view, _ = views[:, :, 0, 0].T.tolist()
        assert shown == sample == numbers(batch) * count
        assert set(epoch) == {batch.epoch} == {1}
        assert view == [first + v for v in range(count) for _ in range(8)]


def test_a_broken_sample_is_named_and_its_place_taken_by_the_next_whole_one(tmp_path):
    broken = {3: b"", 17: b"<html>", **{n: grey(n)[:-200] for n in (16, 18, 31)}}
    write_shards(tmp_path / "data", lambda number: broken.get(number, grey(number)))
    last = tmp_path / "data/2.tar"
    with tarfile.open(last) as tar:
        end = tar.getmembers()[-1].offset_data + 10
    os.truncate(last, end)
    index = read_index(str(tmp_path / "data"), tmp_path / "i")
    broken[47] = b""
    named = []
    for batch in load(index, workers=1):
        samples = order(index).batch(batch.step).samples.tolist()
        shown = [
            next(s for s in samples[place:] + samples if s not in broken) for place in range(8)
        ]
        marks = batch.global_views[:8, :, 0, 0]
        assert numbers(batch) == marks[:, 0].tolist() == shown
        assert marks[:, 1].tolist() == samples  # its own draws
        assert asked_for(batch.masks)[:8, 3].tolist() == samples
        assert len(batch.local_views) == 3 * 8
        named += batch.broken
    reasons = {int(key.rpartition("/")[2]): reason for key, reason in named}
    assert len(named) == len(reasons)
    assert reasons.keys() == broken.keys()
    assert reasons[3] == "empty: 0 bytes"
    assert reasons[17] == "not an image of a readable format: it looks like an HTML page"
    assert reasons[47] == "tar ends inside this member"
    assert all("truncated" in reasons[number] for number in (16, 18, 31))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_micro_batch_of_nothing_but_broken_samples_stops_the_run_in_one_line(tmp_path, workers):
    index = write_shards(tmp_path / "data", lambda number: b"no image")
    line = r"^all 4 images of a micro-batch are broken, the first, \d/\d\d: not an image [^\n]*$"
    with pytest.raises(LvdError, match=line):
        next(load(index, workers=workers, accumulate=2))


def test_large_jpegs_are_decoded_reduced_unless_all_pixels_are_asked_for(tmp_path):
    index = write_shards(tmp_path / "data", lambda number: jpeg(np.zeros((400, 420), np.uint8)))
    for options, height in (({}, 100), ({"decode": "full"}, 400)):
        batch = next(load(index, batch=2, **options))
        assert set(batch.global_views[:, 4].flatten().tolist()) == {height // 4}


def test_signals_to_the_whole_job_stop_no_worker_and_closing_stops_all(index):
    others = multiprocessing.active_children()
    loader = load(index, workers=2, steps=(0, 20), prefetch=1)
    batches = [next(loader)]
    workers = [child.pid for child in multiprocessing.active_children() if child not in others]
    assert len(workers) == 2
    job = [str(pid) for pid in (*workers, forkserver._forkserver._forkserver_pid)]
    for name in ("INT", "USR1", "TERM"):
        subprocess.run(["kill", f"-{name}", *job], check=True)
    batches += [next(loader) for _ in range(12)]
    assert same(batches, load(index, steps=(0, 13)))
    loader.close()
    wait_until_dead(workers)


def test_a_worker_ends_when_the_training_process_tells_it_to(index):
    others = multiprocessing.active_children()
    loader = load(index, workers=1, steps=(0, 20))
    next(loader)
    (worker,) = (child for child in multiprocessing.active_children() if child not in others)
    worker.terminate()
    wait_until_dead([worker.pid])


def test_a_worker_that_dies_stops_the_run_in_one_line(index, monkeypatch):
    # torch looks for dead workers after so many seconds without a batch: 5, if it is not told.
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))
    with pytest.raises(LvdError, match=r"^a process that loads images died, [^\n]* again [^\n]*$"):
        list(load(index, Deadly(), workers=2))


def test_workers_leave_when_the_training_process_is_killed(index, tmp_path):
    log = tmp_path / "log"
    with forked(load_and_wait, index.path, log=log) as process:
        deadline = time.monotonic() + 120
        while not (log.exists() and log.read_text().endswith("\n")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        workers = [int(pid) for pid in log.read_text().split()]
        assert len(workers) == 2
        assert all(map(alive, workers))
        process.send_signal(signal.SIGKILL)
        wait_until_dead(workers)


def load_and_wait(path):
    """Load a batch by two workers, print who they are, and stay."""
    loader = load(ShardIndex(path), workers=2, steps=(0, 10**6))
    next(loader)
    print(*[child.pid for child in multiprocessing.active_children()])
    time.sleep(99)


def test_loading_draws_nothing_from_the_global_generator(index):
    before = torch.get_rng_state()
    for workers in (0, 1):
        assert len(list(load(index, Views(CROPS, 0), REAL_MASKS, workers=workers))) == 6
        assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_that_is_not_cut_evenly_is_refused_in_one_line(index):
    with pytest.raises(LvdError, match=r"^batch_size 8 cannot be cut into 3 processes x 2 [^\n]*$"):
        load(index, ranks=(0, 3), accumulate=2)


IN_A_LONG_FOLDER = """
import sys, time
from unittest.mock import MagicMock
for name in ("torch", "torch.utils", "torch.utils.data"):  # seconds, and no part of starting
    sys.modules[name] = MagicMock()
from train.data.workers import worker_context

class Slow:
    def __reduce__(self):
        return time.sleep, (2,)

context = worker_context(["json"])
process = context.Process(target=print, args=("a worker at work",))
process.start()
process.join(60)
assert process.exitcode == 0, process.exitcode
held = context.Semaphore()  # which goes with this process, and not behind `start`
late = context.Process(target=repr, args=((Slow(), held),), daemon=True)
late.start()
"""


def test_workers_start_where_the_path_of_temporary_files_is_too_long_and_end_without_a_word(
    tmp_path,
):
    folder = tmp_path / ("long-" * 20)
    folder.mkdir()
    said = subprocess.run(
        [sys.executable, "-c", IN_A_LONG_FOLDER],
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (said.returncode, said.stdout) == (0, "a worker at work\n"), said.stderr
    assert said.stderr == "", "the worker that was starting complains"
    assert not [*folder.iterdir()]
