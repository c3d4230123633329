"""InfoNCE is the published loss, by loops in float64, inside groups and in any precision."""

import pytest
import torch

from train.objectives.infonce import infonce_loss


def drawn(rows=12, dim=5, views=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(views, rows, dim, generator=generator, dtype=dtype).requires_grad_()


def reference(views, group_size, temperature):
    """Return the mean of the losses of all pairs of a view and a global one."""
    losses = []
    for start in range(0, views.shape[1], group_size):
        unit = [
            [row.double() / sum(value.double() ** 2 for value in row) ** 0.5 for row in view]
            for view in views[:, start : start + group_size]
        ]

        def similar(one, other):
            return torch.exp(sum(a * b for a, b in zip(one, other, strict=True)) / temperature)

        for image in range(group_size):
            for own, other in ((0, 1), (1, 0)):
                anchor = unit[own][image]
                among = [similar(anchor, row) for row in [*unit[0], *unit[1]] if row is not anchor]
                losses.append(-torch.log(similar(anchor, unit[other][image]) / sum(among)))
            for local in unit[2:]:
                for of_global in unit[:2]:
                    among = [similar(local[image], row) for row in of_global]
                    losses.append(-torch.log(among[image] / sum(among)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("views", [2, 3, 5])
@pytest.mark.parametrize("group_size", [2, 3, 6])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_it_is_the_loss_of_the_paper_inside_groups(views, group_size, temperature):
    views = drawn(rows=6, views=views)
    expected = reference(views, group_size, temperature)
    found = infonce_loss(views, group_size=group_size, temperature=temperature)
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(expected, views)
    torch.testing.assert_close(torch.autograd.grad(found, views), wanted)


def test_lower_precision_and_autocast_do_not_change_it():
    views = drawn(views=3).detach().bfloat16()
    expected = infonce_loss(views.double(), group_size=4, temperature=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = infonce_loss(views, group_size=4, temperature=0.05)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_it_falls_as_the_views_of_an_image_agree():
    first, _ = drawn(rows=32, dim=16).detach()
    noise = torch.randn(first.shape, generator=torch.Generator().manual_seed(1))
    losses = [
        float(
            infonce_loss(
                torch.stack([first, first + share * noise]), group_size=32, temperature=0.1
            )
        )
        for share in (0.1, 1.0, 10.0)
    ]
    assert losses == sorted(losses)


@pytest.mark.parametrize(("views", "rows", "group_size"), [(2, 12, 5), (1, 12, 4), (2, 4, 1)])
def test_rows_that_make_no_groups_are_refused(views, rows, group_size):
    with pytest.raises(ValueError, match=f"groups of {group_size}"):
        infonce_loss(torch.randn(views, rows, 3), group_size=group_size, temperature=0.1)
