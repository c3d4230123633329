"""The iBOT loss and its gradient are those of the published formula, written out in float64."""

import pytest
import torch
from given_logits import given

from train.objectives import tiles
from train.objectives.ibot_loss import ibot_loss, mask_weights
from train.objectives.targets import Targets

CROPS, PATCHES, PROTOTYPES = 5, 6, 7
TEMPERATURE = 0.1


def drawn_masks():
    """Crops with 3, 0, 1, 6 and 0 masked patches of 6."""
    masks = torch.zeros(CROPS, PATCHES, dtype=torch.bool)
    masks[0, [0, 2, 5]] = True
    masks[2, 3] = True
    masks[3] = True
    return masks


def drawn(dtype=torch.float64):
    """Student logits and teacher distributions at every patch of every crop."""
    generator = torch.Generator().manual_seed(0)
    shape = CROPS, PATCHES, PROTOTYPES
    logits = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    taught = torch.randn(shape, generator=generator, dtype=torch.float64).softmax(dim=-1)
    return logits.requires_grad_(), taught


def reference(logits, probabilities, masks):
    """The loss by loops over crops, their masked patches and prototypes."""
    total = torch.zeros((), dtype=torch.float64)
    for crop in range(len(masks)):
        masked = [place for place in range(masks.shape[1]) if masks[crop, place]]
        for place in masked:
            z = logits[crop, place].double() / TEMPERATURE
            normaliser = torch.logsumexp(z, dim=0)
            q = probabilities[crop, place]
            term = sum(-q[k] * (z[k] - normaliser) for k in range(len(q)))
            total = total + term / len(masked)
    return total / len(masks)


def as_computed(logits, probabilities, masks):
    index, weights = mask_weights(masks)
    taught = probabilities.flatten(0, 1)[index].to(torch.promote_types(logits.dtype, torch.float32))
    targets = Targets(taught, torch.ones(PROTOTYPES))
    picked = logits.flatten(0, 1)[index]
    return ibot_loss(given(picked), targets, weights, crops=len(masks), temperature=TEMPERATURE)


# pitfall 3
def test_each_masked_token_weighs_one_over_those_of_its_crop_and_all_crops_count():
    logits, probabilities = drawn()
    masks = drawn_masks()
    expected = reference(logits, probabilities, masks)
    found = as_computed(logits, probabilities, masks)
    # The weights are float32.
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=0)
    (wanted,) = torch.autograd.grad(expected, logits)
    (gradient,) = torch.autograd.grad(found, logits)
    torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-9)


# pitfall 3
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_without_masks_has_no_loss_and_a_gradient_of_zero(dtype):
    tokens = torch.ones(4, 3, requires_grad=True)
    head = torch.nn.Linear(3, PROTOTYPES)
    index, weights = mask_weights(torch.zeros(2, 2, dtype=torch.bool))
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        logits = head(tokens[index])
    targets = Targets(logits.detach(), torch.ones(PROTOTYPES))
    loss = ibot_loss(given(logits), targets, weights, crops=2, temperature=TEMPERATURE)
    (0.5 * loss).backward()
    assert loss == 0
    for parameter in (tokens, *head.parameters()):
        torch.testing.assert_close(parameter.grad, torch.zeros_like(parameter))


# pitfall 3
def test_the_weights_of_each_masked_crop_add_up_to_one():
    masks = drawn_masks()
    index, weights = mask_weights(masks)
    assert weights.dtype == torch.float32
    assert index.tolist() == [
        crop * PATCHES + place
        for crop in range(CROPS)
        for place in range(PATCHES)
        if masks[crop, place]
    ]
    sums = torch.zeros(CROPS).index_add_(0, index // PATCHES, weights)
    torch.testing.assert_close(sums, masks.any(dim=1).float())


# pitfall 6
def test_the_gradient_is_that_of_the_returned_loss():
    logits, probabilities = drawn()
    masks = drawn_masks()[:3]
    assert torch.autograd.gradcheck(
        lambda z: as_computed(z, probabilities[:3], masks),
        (logits.detach()[:3].requires_grad_(),),
        check_undefined_grad=False,
    )


@pytest.mark.parametrize("block", [1, 3 * PROTOTYPES, 4 * PROTOTYPES])
def test_the_size_of_blocks_changes_nothing(monkeypatch, block):
    logits, probabilities = drawn()
    monkeypatch.setattr(tiles, "CPU_BLOCK", block)
    found = as_computed(logits, probabilities, drawn_masks())
    torch.testing.assert_close(
        found, reference(logits, probabilities, drawn_masks()), rtol=1e-7, atol=0
    )


def test_bfloat16_logits_give_a_float32_loss_and_their_own_gradient():
    logits, probabilities = drawn(torch.bfloat16)
    masks = drawn_masks()
    expected = reference(logits, probabilities, masks)
    with torch.autocast("cpu", torch.bfloat16):
        found = as_computed(logits, probabilities, masks)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    (wanted,) = torch.autograd.grad(expected, logits)
    (gradient,) = torch.autograd.grad(found, logits)
    assert (gradient - wanted).abs().max() <= 2**-8 * wanted.abs().max()


def test_counts_that_differ_are_an_error():
    logits = torch.zeros(3, PROTOTYPES)
    targets = Targets(logits, torch.ones(PROTOTYPES))
    with pytest.raises(ValueError, match="2 weights"):
        ibot_loss(given(logits), targets, torch.ones(2), crops=2, temperature=TEMPERATURE)
