"""Clipping and freezing, on plain tensors and on the DTensors of two processes."""

import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from forked import run_ranks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from train.distributed.agreement import agree
from train.distributed.ranks import process_group
from train.optimisation.ema import update_teacher
from train.optimisation.gradients import clip_by_module, drop_gradients_of_frozen, square_sums
from train.optimisation.groups import make_optimiser, take_step
from train.optimisation.settings import OptimiserSettings

MAX_NORM = 0.5


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = nn.Linear(5, 3)
        self.prototypes = nn.Parameter(torch.randn(7, 3))

    def forward(self, x):
        return self.mlp(x) @ self.prototypes.T


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(4, 5)
        self.dino_head = Head()
        self.ibot_head = Head()

    def forward(self, x):
        features = self.backbone(x)
        return 3 * self.dino_head(features).square().mean() + self.ibot_head(features).mean() / 10


def network(seed=0):
    torch.manual_seed(seed)
    return Network()


def images():
    torch.manual_seed(5)
    return torch.randn(8, 4)


def optimiser_of(network):
    prototypes = [network.dino_head.prototypes, network.ibot_head.prototypes]
    rest = [p for p in network.parameters() if all(p is not q for q in prototypes)]
    groups = [{"params": rest, "last_layer": False}, {"params": prototypes, "last_layer": True}]
    return torch.optim.AdamW(groups, lr=0.01, weight_decay=0.5, fused=True)


def gradients(network):
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def reference_norms(network):
    """Return each child's norm, from float64."""
    squares = {name: 0.0 for name, _ in network.named_children()}
    for name, gradient in gradients(network).items():
        squares[name.split(".")[0]] += gradient.double().square().sum().item()
    return {name: math.sqrt(square) for name, square in squares.items()}


def measured(network):
    """What a step learns of its gradients, in all processes there are."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    return agree({"loss": torch.ones(())}, square_sums(network, world), {}, world)


def clip(network, max_norm=MAX_NORM):
    """Clip, and return the norms before that."""
    found = measured(network)
    clip_by_module(network, found.norms_there, max_norm)
    return found.norms


def test_each_module_is_clipped_by_its_own_norm():
    net = network()
    net(images()).backward()
    before = {name: gradient.clone() for name, gradient in gradients(net).items()}
    expected = reference_norms(net)
    assert expected["dino_head"] > MAX_NORM > expected["ibot_head"], "one of each kind"
    norms = clip(net)
    assert norms == pytest.approx(expected, rel=1e-6)
    for name, gradient in gradients(net).items():
        norm = expected[name.split(".")[0]]
        factor = min(1.0, MAX_NORM / norm)
        torch.testing.assert_close(gradient, before[name] * factor, rtol=1e-5, atol=1e-8)
    assert reference_norms(net)["dino_head"] == pytest.approx(MAX_NORM, rel=1e-5)


def test_gradients_that_are_measured_or_short_enough_are_left_alone():
    net = network()
    net(images()).backward()
    before = {name: gradient.clone() for name, gradient in gradients(net).items()}
    assert measured(net).norms == pytest.approx(reference_norms(net), rel=1e-6)
    clip(net, 1e6)
    assert all(torch.equal(g, before[name]) for name, g in gradients(net).items())


def test_a_module_without_gradients_has_no_norm():
    net = network()
    net.backbone(images()).sum().backward()
    assert set(clip(net)) == {"backbone"}


# pitfall 7
def test_a_frozen_last_layer_stays_bit_equal_and_outside_the_clip_norm():
    net = network()
    optimiser = optimiser_of(net)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for step in range(3):
        optimiser.zero_grad()
        net(images()).backward()
        whole = reference_norms(net)
        drop_gradients_of_frozen(optimiser)
        rest = reference_norms(net)
        assert rest["dino_head"] < whole["dino_head"]
        assert rest["backbone"] == whole["backbone"]
        assert clip(net) == pytest.approx(rest, rel=1e-6)
        optimiser.step()
        for name, parameter in net.named_parameters():
            frozen = name.endswith("prototypes")
            assert torch.equal(parameter, before[name]) == frozen, (step, name)


# pitfall 7
def test_a_freed_last_layer_starts_with_the_bias_correction_of_its_own_first_step():
    frozen_first, never_frozen = network(), network()
    optimisers = optimiser_of(frozen_first), optimiser_of(never_frozen)
    frozen_first(images()).backward()
    drop_gradients_of_frozen(optimisers[0])
    optimisers[0].step()
    frozen_first.load_state_dict(never_frozen.state_dict())
    for net, optimiser in zip((frozen_first, never_frozen), optimisers, strict=True):
        optimiser.zero_grad()
        net(images()).backward()
        optimiser.step()
    assert torch.equal(frozen_first.dino_head.prototypes, never_frozen.dino_head.prototypes)


# pitfall 16
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_or_a_gradient_that_is_not_finite_is_noticed(bad):
    net = network()
    net(images()).backward()
    assert not measured(net).skipped
    assert not measured(net).skipped_there
    wrong = agree({"loss": torch.tensor(bad)}, square_sums(net, 1), {}, 1)
    assert wrong.skipped
    assert wrong.skipped_there
    net.ibot_head.mlp.bias.grad[1] = bad
    found = measured(net)
    assert not math.isfinite(found.norms["ibot_head"])
    assert math.isfinite(found.norms["dino_head"])
    assert found.skipped
    assert found.skipped_there


# pitfall 16
def test_a_step_that_is_skipped_on_the_device_leaves_weights_moments_and_their_age():
    net, teacher = network(), network(1)
    optimiser = make_optimiser(
        [{"params": list(net.parameters()), "lr_scale": 1.0, "decay": True, "last_layer": False}],
        OptimiserSettings(),
    )
    optimiser.param_groups[0]["lr"] = 0.01
    for skipped in (False, True, False):
        kept = [*net.parameters(), *teacher.parameters()]
        kept += [t for state in optimiser.state.values() for t in state.values()]
        before = [tensor.detach().clone() for tensor in kept]
        optimiser.zero_grad()
        net(images()).backward()
        if skipped:
            net.backbone.weight.grad[0, 0] = math.nan
        take_step(optimiser, torch.tensor(skipped))
        update_teacher(net, teacher, 0.75, torch.tensor(skipped))
        still = [torch.equal(tensor, old) for tensor, old in zip(kept, before, strict=True)]
        assert all(still) if skipped else not any(still)


def trained(net, teacher):
    """Take two steps, the first with a frozen last layer; return all norms and weights."""
    optimiser = optimiser_of(net)
    found = {}
    for step in range(2):
        optimiser.zero_grad()
        rank, world = (dist.get_rank(), 2) if dist.is_initialized() else (0, 1)
        net(images().chunk(world)[rank]).backward()
        if step == 0:
            drop_gradients_of_frozen(optimiser)
        norms = clip(net)
        found |= {f"{step} {name}": np.array(norm) for name, norm in norms.items()}
        optimiser.step()
        update_teacher(net, teacher, 0.75)
    for who, module in (("student", net), ("teacher", teacher)):
        for name, weight in module.named_parameters():
            full = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
            found[f"{who} {name}"] = full.detach().numpy()
    return found


def in_each_process(folder):
    with process_group("cpu") as ranks:
        mesh = init_device_mesh("cpu", (2,))
        net, teacher = network(), network(1)
        for module in (net, teacher):
            for child in module.children():
                fully_shard(child, mesh=mesh)
            fully_shard(module, mesh=mesh)
        np.savez(folder / f"{ranks.rank}.npz", **trained(net, teacher))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    run_ranks(in_each_process, folder, folder=folder)
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(2)]


def test_norms_steps_and_teacher_of_two_sharded_processes_equal_one_process(sharded):
    alone = trained(network(), network(1))
    for found in sharded:
        assert set(found) == set(alone)
        for name, values in alone.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_teacher_left_unsharded_is_refused(tmp_path):
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        student = network()
        fully_shard(student, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(TypeError, match="sharded"):
            update_teacher(student, network(1), 0.9)
    finally:
        dist.destroy_process_group()
