"""InfoNCE is the published loss, by loops in float64, inside groups and in any precision."""

import pytest
import torch

from train.objectives.infonce import infonce_loss


def drawn(rows=12, dim=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(2, rows, dim, generator=generator, dtype=dtype)
    return tuple(view.requires_grad_() for view in views)


def reference(first, second, group_size, temperature):
    losses = []
    for start in range(0, len(first), group_size):
        rows = [*first[start : start + group_size], *second[start : start + group_size]]
        unit = [row.double() / sum(value.double() ** 2 for value in row) ** 0.5 for row in rows]
        for i in range(2 * group_size):
            partner = (i + group_size) % (2 * group_size)
            similar = [
                torch.exp(sum(a * b for a, b in zip(unit[i], unit[j], strict=True)) / temperature)
                for j in range(2 * group_size)
            ]
            others = sum(value for j, value in enumerate(similar) if j != i)
            losses.append(-torch.log(similar[partner] / others))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("group_size", [2, 4, 12])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_it_is_the_loss_of_the_paper_inside_groups(group_size, temperature):
    views = drawn()
    expected = reference(*views, group_size, temperature)
    found = infonce_loss(*views, group_size=group_size, temperature=temperature)
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(expected, views)
    gradients = torch.autograd.grad(found, views)
    torch.testing.assert_close(gradients, wanted)


def test_lower_precision_and_autocast_do_not_change_it():
    views = [view.detach().bfloat16() for view in drawn()]
    expected = infonce_loss(*[v.double() for v in views], group_size=4, temperature=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = infonce_loss(*views, group_size=4, temperature=0.05)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_it_falls_as_the_views_of_an_image_agree():
    first, _ = drawn(rows=32, dim=16)
    noise = torch.randn(first.shape, generator=torch.Generator().manual_seed(1))
    losses = [
        float(infonce_loss(first, first + share * noise, group_size=32, temperature=0.1))
        for share in (0.1, 1.0, 10.0)
    ]
    assert losses == sorted(losses)


@pytest.mark.parametrize(("rows", "others", "group_size"), [(12, 12, 5), (12, 8, 4), (4, 4, 1)])
def test_rows_that_make_no_groups_are_refused(rows, others, group_size):
    with pytest.raises(ValueError, match=f"groups of {group_size}"):
        infonce_loss(
            torch.randn(rows, 3), torch.randn(others, 3), group_size=group_size, temperature=0.1
        )
