"""The order of samples: permutations, windows, and batches found without what lies before them."""

import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import LvdError
from train.data.order import Order

orders = st.builds(
    dict,
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(sum),
    window=st.integers(1, 15),
    seed=st.integers(0, 2**63 - 1),
)


def order(sizes, *, batch_size=1, window=2, seed=0):
    return Order(sizes, batch_size=batch_size, window=window, seed=seed)


@given(orders, st.integers(0, 1000))
def test_an_epoch_is_a_permutation_of_all_samples(settings, epoch):
    permutation = order(**settings).epoch(epoch)
    assert sorted(permutation.tolist()) == list(range(sum(settings["sizes"])))


@given(orders, st.data())
def test_batches_are_an_epoch_in_pieces_and_leave_out_less_than_one(settings, data):
    batch_size = data.draw(st.integers(1, sum(settings["sizes"])))
    whole = order(**settings, batch_size=batch_size)
    for epoch in (0, 3):
        first = epoch * whole.batches_per_epoch
        found = [whole.batch(first + n) for n in range(whole.batches_per_epoch)]
        assert {batch.epoch for batch in found} == {epoch}
        assert {turn for batch in found for turn in batch.turns.tolist()} == {epoch}
        assert {len(batch.samples) for batch in found} == {batch_size}
        seen = np.concatenate([batch.samples for batch in found])
        assert seen.tolist() == whole.epoch(epoch)[: len(seen)].tolist()
        assert 0 <= sum(settings["sizes"]) - len(seen) < batch_size


# pitfall 21
@given(orders, st.data())
def test_a_batch_does_not_depend_on_which_were_asked_for_before(settings, data):
    batch_size = data.draw(st.integers(1, sum(settings["sizes"])))
    asked = order(**settings, batch_size=batch_size)
    steps = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=8))
    for step in steps:
        fresh = pickle.loads(pickle.dumps(order(**settings, batch_size=batch_size)))
        assert fresh.batch(step).samples.tolist() == asked.batch(step).samples.tolist()


@given(orders)
def test_so_many_shards_are_read_at_a_time_as_the_window_says(settings):
    sizes, window = settings["sizes"], settings["window"]
    part_of = np.repeat(np.arange(len(sizes)), sizes)
    parts = part_of[order(**settings).epoch(5)].tolist()
    last_use = {part: place for place, part in enumerate(parts)}
    open_now = set()
    for place, part in enumerate(parts):
        open_now.add(part)
        assert len(open_now) <= window
        if all(last_use[p] <= place for p in open_now):
            open_now.clear()


def test_samples_are_shuffled_across_the_parts_of_a_window():
    assert len(set((order([100] * 8, window=4).epoch(0)[:100] // 100).tolist())) == 4
    assert len(set((order([100] * 8, window=1).epoch(0)[:100] // 100).tolist())) == 1


def test_epochs_and_seeds_shuffle_parts_and_samples_differently():
    sizes = [50] * 4
    found = [order(sizes, window=1, seed=seed).epoch(epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple((samples[::50] // 50).tolist()) for samples in found}) > 1
    assert len({tuple(np.sort(samples[:50]).tolist()) for samples in found}) > 1
    assert len({tuple((samples[:50] % 50).tolist()) for samples in found}) == 4
    assert len({samples.tobytes() for samples in found}) == 4


def test_the_order_is_the_same_on_every_machine_and_with_every_version():
    assert order([4, 3, 2], seed=7).epoch(2).tolist() == [6, 4, 8, 5, 7, 3, 0, 2, 1]


def test_a_batch_of_a_billion_samples_is_found_without_their_permutation():
    large = order([10_000] * 100_000, batch_size=4096, window=16)
    tracemalloc.start()
    epoch, samples, _ = large.batch(large.batches_per_epoch * 3 + 123_456)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert epoch == 3
    assert len(set(samples.tolist())) == 4096
    assert peak < 32 * 2**20


def test_fewer_images_than_a_batch_are_refused_in_one_line():
    with pytest.raises(LvdError, match=r"^9 images are fewer than one batch of 10: [^\n]*$"):
        order([4, 5], batch_size=10)
