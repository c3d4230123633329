import math

import pytest
import torch
from timm.layers import resample_abs_pos_embed

from train.model.positions import resample_positions


def table(rows: int, prefix: int) -> torch.Tensor:
    return torch.randn(1, rows + prefix, 6, generator=torch.Generator().manual_seed(0))


# pitfall 13
@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("grid", [(7, 7), (3, 9), (20, 20)])
def test_the_default_is_timms_resampling(grid, prefix):
    given = table(49 * 4, prefix)
    found = resample_positions(given, grid, (14, 14), prefix=prefix)
    expected = resample_abs_pos_embed(given, list(grid), [14, 14], num_prefix_tokens=prefix)
    torch.testing.assert_close(found, expected)


def test_the_same_grid_leaves_every_row_as_it_is():
    given = table(12, 1)
    for offset in (0.0, 0.1):
        assert torch.equal(
            resample_positions(given, (3, 4), (3, 4), prefix=1, offset=offset), given
        )


# pitfall 13
@pytest.mark.parametrize("grid", [(7, 7), (3, 9), (20, 17)])
def test_the_offset_stretches_as_dinov2_does(grid):
    """Against a bilinear float64 reference that samples at (i + 0.5) * old / (new + 0.1) - 0.5."""
    given = table(16 * 16, 1)
    found = resample_positions(
        given, grid, (16, 16), prefix=1, mode="bilinear", antialias=False, offset=0.1
    )
    rows = given[0, 1:].double().view(16, 16, 6)

    def sources(new: int) -> list[tuple[int, int, float]]:
        at = [max(0.0, (i + 0.5) * 16 / (new + 0.1) - 0.5) for i in range(new)]
        return [(math.floor(a), min(15, math.floor(a) + 1), a - math.floor(a)) for a in at]

    expected = [
        (1 - v) * ((1 - u) * rows[top, left] + u * rows[top, right])
        + v * ((1 - u) * rows[low, left] + u * rows[low, right])
        for top, low, v in sources(grid[0])
        for left, right, u in sources(grid[1])
    ]
    torch.testing.assert_close(found[0, 1:].double(), torch.stack(expected), atol=1e-5, rtol=1e-5)
    assert torch.equal(found[:, :1], given[:, :1])
