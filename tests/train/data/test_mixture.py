"""Mixtures: how much of each dataset is in each batch, and that each keeps epochs of its own."""

from __future__ import annotations

import math
import pickle

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_run import draw, write_config, write_shards

import train.data.mixture as module
from shared.errors import LvdError
from train.data.index import read_index
from train.data.mixture import MixedIndex, Mixture
from train.data.order import Order
from train.data.sources import make_order, open_index
from train.recipe import read_recipe

SIZES = {"web": 50, "small": 12}
RATIOS = (0.75, 0.25)


def mixture(batches="mixed", *, ratios=RATIOS, batch_size=8, sizes=SIZES, seed=3):
    sources = {
        name: (Order([size // 2, size - size // 2], batch_size=1, window=1, seed=place), size)
        for place, (name, size) in enumerate(sizes.items())
    }
    return Mixture(sources, ratios, batch_size=batch_size, batches=batches, seed=seed)


def of_small(samples):
    return samples >= SIZES["web"]


@given(st.floats(0.01, 0.99), st.integers(1, 12), st.integers(0, 1000))
def test_a_mixed_batch_has_its_share_of_each_dataset_to_the_image(ratio, batch_size, step):
    mixed = mixture(ratios=(1 - ratio, ratio), batch_size=batch_size)
    _, samples, turns = mixed.batch(step)
    assert len(samples) == len(turns) == batch_size
    share = round(ratio * 2**20) / 2**20 * batch_size
    assert math.floor(share) <= of_small(samples).sum() <= math.ceil(share)


def test_a_share_that_comes_out_even_is_the_same_in_every_batch():
    mixed = mixture()
    assert {int(of_small(mixed.batch(step).samples).sum()) for step in range(100)} == {2}


def test_shares_are_met_on_average():
    for batches, batch_size, spread in (("mixed", 5, 0.5), ("homogeneous", 8, 4)):
        mixed, steps = mixture(batches, batch_size=batch_size), 4000
        counts = [of_small(mixed.batch(step).samples).sum() for step in range(steps)]
        assert abs(np.mean(counts) - 0.25 * batch_size) < 4 * spread / np.sqrt(steps)


def test_a_homogeneous_batch_is_of_one_dataset():
    mixed = mixture("homogeneous")
    counts = {int(of_small(mixed.batch(step).samples).sum()) for step in range(100)}
    assert counts == {0, 8}


@pytest.mark.parametrize("batches", ["mixed", "homogeneous"])
def test_each_dataset_keeps_epochs_of_its_own(batches):
    mixed, streams = mixture(batches), {"web": [], "small": []}
    for step in range(60):
        _, samples, turns = mixed.batch(step)
        order = np.argsort(turns, kind="stable")  # a batch may lie across an epoch's end
        for sample, turn in zip(samples[order].tolist(), turns[order].tolist(), strict=True):
            name, own = ("small", sample - 50) if sample >= 50 else ("web", sample)
            streams[name].append((own, turn))
    for name, size in SIZES.items():
        epochs = len(streams[name]) // size
        assert epochs > 1
        for epoch in range(epochs):
            own = streams[name][epoch * size : (epoch + 1) * size]
            assert sorted(own) == [(sample, epoch) for sample in range(size)], (name, epoch)


# pitfall 21
@given(st.lists(st.integers(0, 200), min_size=1, max_size=5))
def test_a_batch_depends_on_its_step_alone(steps):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_STEPS", 7)
        asked = mixture()
        for step in steps:
            fresh = pickle.loads(pickle.dumps(mixture())).batch(step)
            assert all(map(np.array_equal, fresh, asked.batch(step)))


@pytest.mark.parametrize("batches", ["mixed", "homogeneous"])
def test_nothing_is_left_out_or_taken_twice_where_counts_are_drawn_anew(monkeypatch, batches):
    monkeypatch.setattr(module, "_STEPS", 5)
    mixed = mixture(batches)
    seen = [
        pair
        for step in range(23)
        for pair in zip(*(of.tolist() for of in mixed.batch(step)[1:]), strict=True)
    ]
    assert len(seen) == len(set(seen)) == 23 * 8


def test_ratios_count_in_proportion():
    one, other = mixture(ratios=(0.9, 0.1)), mixture(ratios=(9, 1))
    assert all(
        np.array_equal(one.batch(step).samples, other.batch(step).samples) for step in range(20)
    )


def test_places_of_a_mixed_batch_are_drawn():
    mixed = mixture()
    places = {tuple(of_small(mixed.batch(step).samples)) for step in range(20)}
    assert len(places) > 5


@pytest.mark.parametrize(
    ("batches", "needed"), [("mixed", "16 that a batch of 64"), ("homogeneous", "64 that a batch")]
)
def test_a_dataset_that_a_batch_would_exhaust_is_refused_in_one_line(batches, needed):
    with pytest.raises(LvdError, match=rf"^data.mix.small: 12 images are fewer than the {needed}"):
        mixture(batches, batch_size=64, sizes={"web": 500, "small": 12})


def test_an_index_of_several_datasets_reads_each_where_it_lies(tmp_path):
    write_shards(tmp_path / "a")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "a"), "/test_mixture", recursive=True)
    own = read_index(str(tmp_path / "a"), tmp_path / "i")
    mixed = MixedIndex({"here": own, "there": read_index("memory://test_mixture", tmp_path / "j")})
    numbers = np.random.default_rng(0).permutation(2 * len(own)).tolist()
    found = dict(zip(numbers, pickle.loads(pickle.dumps(mixed)).read_each(numbers), strict=True))
    assert len(mixed) == len(found) == 72
    for number, data in found.items():
        place, sample = divmod(number, len(own))
        assert data == mixed.read(number) == draw(int(own.key(sample).rpartition("/")[2]))
        assert mixed.key(number) == f"{('here', 'there')[place]}: {own.key(sample)}"
    memory.rm("/test_mixture", recursive=True)


def test_a_recipe_mixes_and_its_images_may_move(tmp_path):
    for name in ("a", "b"):
        write_shards(tmp_path / name)
    mix = (
        f"data.mix={{a: {{shards: {tmp_path}/a, ratio: 3}}, b: {{shards: {tmp_path}/b, ratio: 1}}}}"
    )
    recipe = read_recipe(write_config(tmp_path), "small", [mix])
    index = open_index(recipe, None, None, tmp_path / "index")
    order = make_order(recipe, index)
    assert order.batches_per_epoch == 72 // 8
    samples = order.batch(0).samples
    assert sum(index.key(sample).startswith("b: ") for sample in samples.tolist()) == 2
    (tmp_path / "b").rename(tmp_path / "c")
    moved = read_recipe(
        tmp_path / "pipelines.yaml", "small", [mix, f"data.mix.b.shards={tmp_path}/c"]
    )
    assert open_index(moved, None, None, tmp_path / "index").fingerprint == index.fingerprint
