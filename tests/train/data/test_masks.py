import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from train.data.masks import batch_masks, block_mask, group_counts
from train.data.settings import MaskSettings

SETTINGS = MaskSettings()
BATCH, GROUP, GRID = 24, 4, (8, 8)


def masks(samples, *, first=0, step=5, epoch=2, seed=0, grid=GRID, group_size=GROUP, **changed):
    return batch_masks(
        samples,
        first=first,
        step=step,
        epochs=[epoch] * len(samples),
        grid=grid,
        group_size=group_size,
        seed=seed,
        settings=MaskSettings(**changed),
    )


def cut(samples, chunks):
    """The masks of a batch drawn in `chunks` parts, put back together crop-major."""
    size = len(samples) // chunks
    parts = [
        masks(samples[start : start + size], first=start).view(2, size, -1)
        for start in range(0, len(samples), size)
    ]
    return torch.cat(parts, 1).flatten(0, 1)


@st.composite
def grids_and_counts(draw):
    grid = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    return grid, draw(st.integers(0, grid[0] * grid[1]))


@given(grids_and_counts(), st.integers(0, 2**32), st.integers(1, 20), st.floats(0.05, 1.0))
@settings(max_examples=300, deadline=None)
def test_a_mask_hits_its_count_whatever_the_grid(grid_and_count, seed, min_patches, aspect):
    grid, count = grid_and_count
    chosen = MaskSettings(min_patches=min_patches, aspect=aspect)
    mask = block_mask(grid, count, np.random.default_rng(seed), chosen)
    assert mask.shape == grid
    assert mask.dtype == bool
    assert mask.sum() == count


@given(grids_and_counts(), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_blocks_that_may_stop_short_are_those_that_the_exact_mask_grows_from(case, seed):
    grid, count = case
    loose = MaskSettings(min_patches=1, exact=False)
    short = block_mask(grid, count, np.random.default_rng(seed), loose)
    exact = block_mask(grid, count, np.random.default_rng(seed), MaskSettings(min_patches=1))
    assert short.sum() <= count == exact.sum()
    assert not (short & ~exact).any()


def test_counts_of_blocks_stop_short_where_that_is_set():
    counts = [int(mask.sum()) for mask in masks(range(BATCH), exact=False)]
    wanted = [int(mask.sum()) for mask in masks(range(BATCH))]
    assert all(found <= most for found, most in zip(counts, wanted, strict=True))
    assert sum(counts) < sum(wanted)
    assert all((found > 0) == (most > 0) for found, most in zip(counts, wanted, strict=True))


@given(grids_and_counts(), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_no_masked_patch_stands_alone(grid_and_count, seed):
    grid, count = grid_and_count
    mask = block_mask(grid, count, np.random.default_rng(seed), SETTINGS)
    around = np.pad(mask, 1)
    beside = around[:-2, 1:-1] | around[2:, 1:-1] | around[1:-1, :-2] | around[1:-1, 2:]
    assert count == 1 or beside[mask].all()


def test_masks_are_blocks_and_not_scattered_patches():
    def inner_edges(mask):  # between two masked patches
        return (mask[1:] & mask[:-1]).sum() + (mask[:, 1:] & mask[:, :-1]).sum()

    draw = np.random.default_rng(0)
    blocks = [block_mask((16, 16), 77, draw, SETTINGS) for _ in range(50)]
    scattered = [draw.permutation(256).reshape(16, 16) < 77 for _ in range(50)]
    assert sum(map(inner_edges, blocks)) > 2 * sum(map(inner_edges, scattered))


def test_every_patch_is_masked_at_times():
    draw = np.random.default_rng(0)
    for grid, count in (((4, 4), 5), ((8, 8), 19), ((16, 16), 77)):
        assert np.any([block_mask(grid, count, draw, SETTINGS) for _ in range(300)], axis=0).all()


@pytest.mark.parametrize("count", [-1, 17])
def test_more_patches_than_there_are_cannot_be_masked(count):
    with pytest.raises(ValueError, match="4 x 4"):
        block_mask((4, 4), count, np.random.default_rng(0), SETTINGS)


def test_half_of_the_crops_share_out_the_range_of_ratios():
    counts = group_counts(64, 256, SETTINGS)
    assert (counts == 0).sum() == 32
    edges = np.linspace(0.1, 0.5, 33) * 256
    masked = counts[32:]
    assert (masked >= np.floor(edges[:-1])).all()
    assert (masked <= np.ceil(edges[1:])).all()
    assert abs(masked.mean() - 0.3 * 256) < 0.5


@given(st.integers(1, 40), st.integers(1, 400), st.floats(0.01, 1.0))
@settings(max_examples=100, deadline=None)
def test_a_group_always_has_a_masked_crop_with_a_masked_patch(images, patches, share):
    counts = group_counts(2 * images, patches, MaskSettings(share=share))
    masked = counts[counts > 0]
    assert len(masked) == max(1, round(share * 2 * images))
    assert masked.max() <= patches


def test_every_group_masks_the_same_number_of_patches():
    drawn = masks(range(BATCH)).view(2, BATCH // GROUP, GROUP, -1)
    counts = drawn.sum(-1).permute(1, 0, 2).flatten(1)
    expected = torch.from_numpy(group_counts(2 * GROUP, 64, SETTINGS))
    assert (counts.sort(1).values == expected).all()
    assert len({tuple(row) for row in counts.tolist()}) > 1


# pitfall 19
def test_masks_differ_between_ranks():
    half = BATCH // 2
    first, second = (masks(range(at, at + half), first=at) for at in (0, half))
    same = (first == second).all(1) & first.any(1)
    assert first.shape == second.shape == (2 * half, 64)
    assert not same.any()


# pitfall 12
@pytest.mark.parametrize("chunks", [2, 3, 6])
def test_masks_do_not_depend_on_how_the_batch_is_cut(chunks):
    samples = torch.randperm(1000, generator=torch.Generator().manual_seed(1))[:BATCH].tolist()
    assert torch.equal(cut(samples, chunks), masks(samples))


# pitfall 18
def test_masks_repeat_with_the_seed_and_change_with_epoch_step_and_seed():
    again = masks(range(BATCH))
    assert torch.equal(masks(range(BATCH)), again)
    for changed in ({"epoch": 3}, {"step": 6}, {"seed": 1}):
        assert not torch.equal(masks(range(BATCH), **changed), again)


def test_blocks_follow_the_sample_and_not_its_place():
    everywhere = {"share": 1.0, "ratio": (0.3, 0.3)}
    there = masks(range(BATCH), **everywhere).view(2, BATCH, -1)
    turned = masks([*range(1, BATCH), 0], step=9, **everywhere).view(2, BATCH, -1)
    assert torch.equal(turned.roll(1, dims=1), there)
    assert len({tuple(mask) for mask in there.flatten(0, 1).tolist()}) == 2 * BATCH


def test_grids_of_small_pictures_are_masked():
    for grid in ((4, 4), (8, 8), (2, 3)):
        drawn = masks(range(8), grid=grid)
        assert drawn.shape == (16, grid[0] * grid[1])
        assert drawn.any(1).sum() == 8


@pytest.mark.parametrize("chunks", [8, 12])
def test_a_group_that_is_cut_has_the_masks_of_the_whole_one(chunks):
    assert BATCH // chunks % GROUP
    assert torch.equal(cut(range(BATCH), chunks), masks(range(BATCH)))


@pytest.mark.parametrize(
    "wrong", [{"ratio": (0.5, 0.1)}, {"ratio": (0.0, 0.0)}, {"share": 0.0}, {"aspect": 0.0}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        MaskSettings(**wrong)
