"""The DINO loss and its gradient are those of the published formula, written out in float64."""

import math

import pytest
import torch
from given_logits import given

from train.objectives import tiles
from train.objectives.dino_loss import dino_loss
from train.objectives.targets import Targets

IMAGES, PROTOTYPES, GLOBALS, LOCALS = 3, 7, 2, 8
VIEWS = GLOBALS + LOCALS
TEMPERATURE = 0.1


def as_targets(probabilities):
    """Targets that are these very distributions."""
    return Targets(probabilities, torch.ones(probabilities.shape[1]))


def drawn(views=VIEWS, images=IMAGES, prototypes=PROTOTYPES, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(views * images, prototypes, generator=generator, dtype=torch.float64)
    taught = torch.randn(GLOBALS * images, prototypes, generator=generator, dtype=torch.float64)
    logits = (scale * logits).to(dtype).requires_grad_()
    return logits, taught.softmax(dim=1)


def terms(logits, probabilities, images=IMAGES, temperature=TEMPERATURE):
    """Every term of the loss, by loops over images, views and prototypes."""
    views, globals_ = len(logits) // images, len(probabilities) // images
    found = []
    for image in range(images):
        for v in range(views):
            z = logits[v * images + image].double() / temperature
            normaliser = torch.logsumexp(z, dim=0)
            for g in range(globals_):
                if g != v:
                    q = probabilities[g * images + image]
                    found.append(sum(-q[k] * (z[k] - normaliser) for k in range(len(q))))
    return found


def reference(logits, probabilities, **kwargs):
    found = terms(logits, probabilities, **kwargs)
    return sum(found) / len(found)


def loss_and_gradient(loss, logits):
    (gradient,) = torch.autograd.grad(loss, logits)
    return loss.detach().double(), gradient.double()


# pitfall 1
@pytest.mark.parametrize("local_views", [0, 1, LOCALS])
def test_it_is_the_mean_over_pairs_of_different_views_and_images(local_views):
    logits, probabilities = drawn(GLOBALS + local_views)
    assert len(terms(logits, probabilities)) == IMAGES * (2 + 2 * local_views)
    expected = loss_and_gradient(reference(logits, probabilities), logits)
    found = loss_and_gradient(
        dino_loss(given(logits), as_targets(probabilities), temperature=TEMPERATURE), logits
    )
    torch.testing.assert_close(found, expected)


# pitfall 1
def test_a_global_view_of_the_student_does_not_see_the_teachers_same_view():
    logits, probabilities = drawn()
    changed = probabilities.clone()
    changed[:IMAGES] = changed[:IMAGES].flip(1)
    gradients = [
        torch.autograd.grad(
            dino_loss(given(logits), as_targets(p), temperature=TEMPERATURE), logits
        )[0]
        for p in (probabilities, changed)
    ]
    same = [torch.equal(*(g[v * IMAGES : (v + 1) * IMAGES] for g in gradients)) for v in range(3)]
    assert same == [True, False, False]


def test_more_than_two_global_views_teach_each_other():
    logits, probabilities = drawn(views=5)
    three = torch.cat([probabilities, probabilities[:IMAGES].roll(1, dims=1)])
    found = dino_loss(given(logits), as_targets(three), global_views=3, temperature=TEMPERATURE)
    torch.testing.assert_close(found, reference(logits, three))


# pitfall 6
def test_the_gradient_is_that_of_the_returned_loss():
    logits, probabilities = drawn(views=3, images=2, prototypes=4)
    targets = as_targets(probabilities)
    assert torch.autograd.gradcheck(
        # Each undefined or zero gradient would be one more backward pass through the same graph.
        lambda z: dino_loss(given(z), targets, temperature=0.7),
        (logits,),
        check_undefined_grad=False,
    )


@pytest.mark.parametrize(
    ("dtype", "loss_error", "gradient_error"),
    [(torch.float32, 1e-6, 1e-6), (torch.bfloat16, 1e-6, 2**-8)],
)
def test_float32_and_bfloat16_logits_give_a_float32_loss(dtype, loss_error, gradient_error):
    logits, probabilities = drawn(dtype=dtype)
    expected, wanted = loss_and_gradient(reference(logits, probabilities), logits)
    with torch.autocast("cpu", torch.bfloat16):
        loss = dino_loss(given(logits), as_targets(probabilities.float()), temperature=TEMPERATURE)
    found, gradient = loss_and_gradient(loss, logits)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=loss_error, atol=0)
    assert (gradient - wanted).abs().max() <= gradient_error * wanted.abs().max()


@pytest.mark.parametrize("block", [1, 2 * PROTOTYPES, 5 * PROTOTYPES, 1000])
def test_the_size_of_blocks_changes_nothing(monkeypatch, block):
    logits, probabilities = drawn()
    monkeypatch.setattr(tiles, "CPU_BLOCK", block)
    found = loss_and_gradient(
        dino_loss(given(logits), as_targets(probabilities), temperature=TEMPERATURE), logits
    )
    expected = loss_and_gradient(reference(logits, probabilities), logits)
    torch.testing.assert_close(found, expected)


def test_logits_whose_exponential_overflows_are_no_trouble():
    logits, probabilities = drawn(dtype=torch.float32, scale=100.0)
    assert math.isinf((logits.detach().max() / TEMPERATURE).exp())
    expected = loss_and_gradient(reference(logits, probabilities), logits)
    loss = dino_loss(given(logits), as_targets(probabilities.float()), temperature=TEMPERATURE)
    torch.testing.assert_close(loss_and_gradient(loss, logits), expected, rtol=1e-5, atol=1e-6)


def test_a_weighted_loss_has_a_weighted_gradient():
    logits, probabilities = drawn()
    loss = dino_loss(given(logits), as_targets(probabilities), temperature=TEMPERATURE)
    (weighted,) = torch.autograd.grad(0.25 * loss, logits)
    (plain,) = torch.autograd.grad(reference(logits, probabilities), logits)
    torch.testing.assert_close(weighted, 0.25 * plain)


def test_a_second_backward_pass_that_would_be_wrong_is_an_error():
    logits, probabilities = drawn()
    loss = 0.5 * dino_loss(given(logits), as_targets(probabilities), temperature=TEMPERATURE)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("views", "targets", "global_views"), [(10, 5, 2), (1, 6, 2), (10, 0, 2), (10, 3, 1)]
)
def test_views_that_do_not_fit_are_an_error(views, targets, global_views):
    logits, probabilities = drawn(views)
    with pytest.raises(ValueError, match="views"):
        dino_loss(
            given(logits),
            as_targets(probabilities[:targets]),
            global_views=global_views,
            temperature=TEMPERATURE,
        )
