"""KoLeo is the published estimator, by loops in float64, in any precision and on any split."""

import pytest
import torch
from forked import run_ranks
from safetensors.torch import load_file, save_file

from train.distributed.ranks import process_group
from train.objectives.groups import of_whole_groups
from train.objectives.koleo import koleo_loss


def drawn(rows=12, dim=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, dim, generator=generator, dtype=dtype).requires_grad_()


def reference(features, group_size):
    """-mean log of each unit vector's distance to the nearest other one of its group."""
    unit = [x / sum(value**2 for value in x) ** 0.5 for x in features.double()]
    logs = []
    for i in range(len(unit)):
        start = i - i % group_size
        distances = [
            sum((a - b) ** 2 for a, b in zip(unit[i], unit[j], strict=True)) ** 0.5
            for j in range(start, start + group_size)
            if j != i
        ]
        logs.append(torch.log(min(distances) + 1e-8))
    return -sum(logs) / len(logs)


def reference_of_squared_cosines(features, group_size):
    unit = [x / sum(value**2 for value in x) ** 0.5 for x in features.double()]
    squares = [
        sum(a * b for a, b in zip(unit[i], unit[j], strict=True)) ** 2
        for start in range(0, len(unit), group_size)
        for i in range(start, start + group_size)
        for j in range(start, start + group_size)
        if i != j
    ]
    return sum(squares) / len(squares)


REFERENCES = {"nearest": reference, "squared_cosine": reference_of_squared_cosines}


# pitfall 5
@pytest.mark.parametrize("estimator", REFERENCES)
@pytest.mark.parametrize("group_size", [2, 4, 12])
def test_it_is_the_estimator_of_the_paper_inside_groups(estimator, group_size):
    features = drawn()
    expected = REFERENCES[estimator](features, group_size)
    found = koleo_loss(features, group_size=group_size, estimator=estimator)
    torch.testing.assert_close(found, expected)
    (wanted,) = torch.autograd.grad(expected, features)
    (gradient,) = torch.autograd.grad(found, features)
    torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("estimator", REFERENCES)
def test_the_gradient_is_that_of_the_returned_loss(estimator):
    assert torch.autograd.gradcheck(
        lambda x: koleo_loss(x, group_size=4, estimator=estimator), (drawn(8, 3),)
    )


# pitfall 5
@pytest.mark.parametrize("estimator", REFERENCES)
def test_splitting_a_batch_over_processes_changes_nothing_while_groups_stay(estimator):
    features = drawn()
    whole = koleo_loss(features, group_size=4, estimator=estimator)
    parts = [koleo_loss(part, group_size=4, estimator=estimator) for part in features.split(4)]
    torch.testing.assert_close(sum(parts) / 3, whole)
    assert abs(koleo_loss(features, group_size=6, estimator=estimator) - whole) > 1e-3


# pitfall 5
@pytest.mark.parametrize("estimator", REFERENCES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_it_is_float32_under_autocast_and_for_features_of_half_precision(dtype, estimator):
    features = drawn(dtype=dtype)
    expected = REFERENCES[estimator](features, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = koleo_loss(features, group_size=4, estimator=estimator)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


# pitfall 5
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_features_give_finite_losses_and_gradients(dtype, value):
    features = torch.full((4, 3), value, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = koleo_loss(features, group_size=4)
    loss.backward()
    assert loss.item() == pytest.approx(-torch.log(torch.tensor(1e-8)).item())
    assert features.grad.isfinite().all()


# pitfall 5
def test_autocast_does_not_choose_another_neighbour():
    angles = torch.tensor([0.0, 0.5, -0.499, 3.0], dtype=torch.float64)
    features = torch.stack([angles.cos(), angles.sin()], dim=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = koleo_loss(features, group_size=4)
    torch.testing.assert_close(found.double(), reference(features, 4), rtol=1e-5, atol=0)


# pitfall 5
@pytest.mark.parametrize(("rows", "group_size"), [(4, 1), (5, 2), (1, 2)])
def test_groups_below_two_or_uneven_ones_are_an_error(rows, group_size):
    with pytest.raises(ValueError, match="group"):
        koleo_loss(drawn(rows), group_size=group_size)


def in_each_process(folder):
    """The loss and the gradient of the parameters of one of two processes, to `folder`."""
    with process_group("cpu") as ranks:
        found = {}
        for estimator in REFERENCES:
            for rows in (slice(0, 12), slice(0, 4)):
                found |= of_a_layer(drawn()[rows].chunk(2)[ranks.rank], estimator, f"{rows.stop} ")
        save_file(found, folder / f"{ranks.rank}.safetensors")


def of_a_layer(images, estimator, name=""):
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 3, dtype=torch.float64)
    loss = of_whole_groups(
        lambda views: sum(koleo_loss(view, group_size=4, estimator=estimator) for view in views),
        torch.stack([layer(images), layer(images.flip(1))]),
        4,
    )
    loss.backward()
    return {f"{name}{estimator} loss": loss.detach(), f"{name}{estimator}": layer.weight.grad}


# pitfall 5
def test_groups_that_processes_cut_have_the_loss_and_gradient_of_one_process(tmp_path):
    run_ranks(in_each_process, tmp_path, folder=tmp_path)
    found = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    for rows in (12, 4):
        for estimator in REFERENCES:
            for name, expected in of_a_layer(drawn()[:rows], estimator, f"{rows} ").items():
                mean = (found[0][name] + found[1][name]) / 2
                torch.testing.assert_close(mean, expected)


def test_a_group_that_is_cut_needs_another_process():
    with pytest.raises(ValueError, match="group"):
        of_a_layer(drawn(6), "nearest")
