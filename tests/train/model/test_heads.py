import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.utils import parametrizations

from train.model.heads import ProjectionHead
from train.model.settings import HeadSettings, HeadsSettings

SETTINGS = HeadSettings(prototypes=50, hidden=24, bottleneck=8)


def head(settings: HeadSettings = SETTINGS) -> ProjectionHead:
    torch.manual_seed(0)
    made = ProjectionHead(16, settings)
    for parameter in made.mlp.parameters():  # larger than at the start, so that GELU matters
        nn.init.normal_(parameter, std=0.3)
    return made


def tokens(n: int = 5) -> torch.Tensor:
    return torch.randn(n, 16, generator=torch.Generator().manual_seed(1))


def reference(made: ProjectionHead, x: torch.Tensor) -> torch.Tensor:
    """The formula, in the type of `x`: cosines of the MLP's output with the prototypes."""
    *inner, last = [layer for layer in made.mlp if isinstance(layer, nn.Linear)]
    for layer in inner:
        x = x @ layer.weight.to(x.dtype).T + layer.bias.to(x.dtype)
        x = x * 0.5 * (1 + torch.erf(x / 2**0.5))
    x = x @ last.weight.to(x.dtype).T + last.bias.to(x.dtype)
    prototypes = made.prototypes.to(x.dtype)
    lengths = x.norm(dim=1)[:, None] * prototypes.norm(dim=1)[None]
    return (x @ prototypes.T) / lengths


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_logits_and_gradients_equal_a_float64_reference(layers):
    made = head(SETTINGS.model_copy(update={"layers": layers}))
    weights = torch.randn(5, 50)
    logits = made(tokens()).whole()
    (logits * weights).sum().backward()
    found = [parameter.grad.clone() for parameter in made.parameters()]
    expected = reference(made, tokens().double())
    torch.testing.assert_close(logits.double(), expected, atol=1e-6, rtol=1e-5)
    gradients = torch.autograd.grad((expected * weights).sum(), list(made.parameters()))
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one, other.float(), atol=1e-5, rtol=1e-4)


def test_prototypes_are_torchs_weight_norm_with_a_gain_of_one():
    made = head()
    layer = nn.Linear(8, 50, bias=False)
    layer.weight.data.copy_(made.prototypes.data)
    layer = parametrizations.weight_norm(layer)
    layer.parametrizations.weight.original0.data.fill_(1)
    bottleneck = nn.functional.normalize(made.mlp(tokens()), dim=1)
    torch.testing.assert_close(made(tokens()).whole(), layer(bottleneck))


def test_a_trained_gain_is_torchs_weight_norm_in_values_and_gradients():
    made = head(SETTINGS.model_copy(update={"train_gain": True}))
    assert torch.equal(made.gain, torch.ones(50, 1))
    made.gain.data = torch.rand(50, 1) + 0.5
    layer = nn.Linear(8, 50, bias=False)
    layer.weight.data.copy_(made.prototypes.data)
    layer = parametrizations.weight_norm(layer)
    theirs = layer.parametrizations.weight
    theirs.original0.data.copy_(made.gain.data)
    logits = layer(nn.functional.normalize(made.mlp(tokens()), dim=1))
    torch.testing.assert_close(made(tokens()).whole(), logits)
    expected = torch.autograd.grad(logits.square().sum(), (theirs.original0, theirs.original1))
    found = torch.autograd.grad(made(tokens()).whole().square().sum(), (made.gain, made.prototypes))
    torch.testing.assert_close(found, expected)
    assert "gain" not in head().state_dict()


def test_logits_do_not_depend_on_the_lengths_of_prototypes_and_stay_in_range():
    made = head()
    logits = made(tokens()).whole()
    made.prototypes.data *= torch.rand(50, 1) * 10 + 0.1
    torch.testing.assert_close(made(tokens()).whole(), logits)
    assert logits.abs().max() <= 1 + 1e-6


def test_a_bound_is_told_of_cosines_alone():
    settings = SETTINGS.model_copy(update={"train_gain": True})
    assert head()(tokens()).bound == 1
    assert head(settings)(tokens()).bound is None
    with torch.autocast("cpu", torch.bfloat16):
        made = head()(tokens())
    assert made.bound == 1
    assert made.whole().abs().max() <= 1 + 2**-7


def test_bfloat16_logits_are_close_and_gradients_float32():
    made = head()
    exact = made(tokens()).whole()
    with torch.autocast("cpu", torch.bfloat16):
        logits = made(tokens()).whole()
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), exact, atol=0.03, rtol=0)
    logits.float().square().sum().backward()
    assert {parameter.grad.dtype for parameter in made.parameters()} == {torch.float32}


def test_no_tokens_give_no_logits_and_zero_gradients():
    made = head()
    logits = made(tokens(0)).whole()
    assert logits.shape == (0, 50)
    logits.sum().backward()
    assert all(not parameter.grad.any() for parameter in made.parameters())


def test_initialisation_is_the_published_one():
    torch.manual_seed(0)
    made = ProjectionHead(64, HeadSettings(prototypes=4096, hidden=256, bottleneck=64))
    linears = [layer for layer in made.mlp if isinstance(layer, nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in linears] == [(256, 64), (256, 256), (64, 256)]
    for layer in linears:
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not layer.bias.any()
    # nn.Linear's default: uniform within 1 / sqrt(64).
    assert made.prototypes.abs().max().item() == pytest.approx(0.125, rel=0.01)
    assert made.prototypes.std().item() == pytest.approx(0.125 / 3**0.5, rel=0.02)


def test_a_shared_head_has_one_set_of_settings():
    with pytest.raises(ValidationError, match="remove 'ibot' or 'shared'"):
        HeadsSettings(dino=SETTINGS, ibot=SETTINGS, shared=True)
