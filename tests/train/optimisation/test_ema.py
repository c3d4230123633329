import copy

import pytest
import torch
from torch import nn

from train.optimisation.ema import update_teacher


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 4, bias=False))


# pitfall 10
def test_a_thousand_small_updates_equal_a_float64_reference():
    student, teacher = network(0), network(1)
    references = [weight.detach().double() for weight in teacher.parameters()]
    momenta = torch.linspace(0.99, 0.99999, 1000, dtype=torch.float64).tolist()
    for momentum in momenta:
        update_teacher(student, teacher, momentum)
        references = [
            momentum * reference + (1 - momentum) * weight.detach().double()
            for reference, weight in zip(references, student.parameters(), strict=True)
        ]
    for weight, reference in zip(teacher.parameters(), references, strict=True):
        torch.testing.assert_close(weight.double(), reference, rtol=1e-5, atol=1e-6)


# pitfall 10
def test_the_update_follows_the_optimiser_step_with_the_momentum_of_that_step():
    student, teacher = network(0), network(0)
    before = copy.deepcopy(teacher)
    with torch.no_grad():
        for weight in student.parameters():
            weight += 1.0  # the optimiser step
    update_teacher(student, teacher, 0.75)
    for weight, old in zip(teacher.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(weight, old + 0.25)


@pytest.mark.parametrize(("momentum", "followed"), [(1.0, "teacher"), (0.0, "student")])
def test_a_momentum_of_one_keeps_the_teacher_and_of_zero_copies_the_student(momentum, followed):
    student, teacher = network(0), network(1)
    expected = copy.deepcopy({"student": student, "teacher": teacher}[followed])
    update_teacher(student, teacher, momentum)
    for weight, same in zip(teacher.parameters(), expected.parameters(), strict=True):
        assert torch.equal(weight, same)


def test_buffers_are_copied_whatever_their_type():
    student, teacher = network(0), network(1)
    student(torch.randn(7, 6))
    update_teacher(student, teacher, 0.9)
    assert teacher[1].num_batches_tracked == 1
    assert torch.equal(teacher[1].running_mean, student[1].running_mean)


def test_the_student_stays_as_it_is_and_no_graph_is_recorded():
    student, teacher = network(0), network(1)
    before = copy.deepcopy(student)
    update_teacher(student, teacher, 0.5)
    for weight, old in zip(student.parameters(), before.parameters(), strict=True):
        assert torch.equal(weight, old)
    assert all(weight.grad_fn is None for weight in teacher.parameters())


# pitfall 10
def test_weights_in_which_a_small_update_would_vanish_are_refused():
    student, teacher = network(0).bfloat16(), network(1).bfloat16()
    with pytest.raises(TypeError, match="bfloat16, not float32"):
        update_teacher(student, teacher, 0.9)


def test_a_teacher_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="zip"):
        update_teacher(network(0)[0], network(1), 0.9)
