import math

import pytest
import torch
from torch import nn

from train.model.backbone import build_backbone
from train.model.heads import ProjectionHead
from train.model.network import Network
from train.model.settings import HeadSettings, ModelSettings
from train.optimisation.groups import make_optimiser, parameter_groups, set_values
from train.optimisation.schedules import Values
from train.optimisation.settings import OptimiserSettings


def build(name="vit_small_patch14_reg4_dinov2", *, shared=False, **options):
    small = {"embed_dim": 32, "num_heads": 2, "depth": 3}
    settings = ModelSettings(name=name, patch_size=14, options=small, **options)
    torch.manual_seed(0)
    heads = [
        ProjectionHead(32, HeadSettings(prototypes=12, hidden=16, bottleneck=8)) for _ in range(2)
    ]
    backbone = build_backbone(settings, image_size=28, masked=True)
    return Network(backbone, heads[0], None if shared else heads[1])


def loss_of(network, seed):
    """Return a loss that every parameter has a part in."""
    torch.manual_seed(seed)
    masks = torch.tensor([[True, False, False, True], [False] * 4])
    outputs = network(torch.randn(2, 3, 28, 28), masks=masks, masked_index=torch.tensor([0, 3]))
    return sum(logits.whole().exp().sum() for logits in outputs[1:3])


def groups_by_name(network, **settings):
    """Return the group of each parameter's name."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = parameter_groups(network, OptimiserSettings(**settings))
    return {names[id(p)]: group for group in groups for p in group["params"]}


MODELS = [
    ("vit_small_patch14_reg4_dinov2", {}),
    ("vit_tiny_patch16_224", {}),
    ("vit_giant_patch14_dinov2", {"layer_scale": 1e-5}),
]


# pitfall 8
@pytest.mark.parametrize(("name", "options"), MODELS)
def test_only_matrices_and_prototypes_decay(name, options):
    network = build(name, **options)
    decayed = {name for name, group in groups_by_name(network).items() if group["decay"]}
    vit = "backbone.vit"
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert decayed == {
        f"{vit}.patch_embed.proj.weight",
        *(f"{vit}.blocks.{block}.{layer}.weight" for block in range(3) for layer in layers),
        *(
            f"{head}.{matrix}"
            for head in ("dino_head", "ibot_head")
            for matrix in ("mlp.0.weight", "mlp.2.weight", "mlp.4.weight", "prototypes")
        ),
    }


# pitfall 8
def test_a_parameter_is_judged_by_its_kind_and_not_by_its_name():
    network = build()
    # By substrings, the first would pass for a norm and the second for a matrix.
    network.dino_head.norm_bias_gamma = nn.Linear(4, 4, bias=False)
    network.dino_head.projection_weight = nn.LayerNorm(4)
    groups = groups_by_name(network)
    assert groups["dino_head.norm_bias_gamma.weight"]["decay"]
    assert not groups["dino_head.projection_weight.weight"]["decay"]


# pitfall 9
def test_layer_decay_counts_from_the_embeddings_to_the_final_norm():
    scales = {
        name: group["lr_scale"]
        for name, group in groups_by_name(build(), layer_decay=0.5, patch_embed_lr=1.0).items()
    }
    for name, scale in scales.items():
        parts = name.split(".")
        depth = 0
        if parts[0] != "backbone" or parts[2:3] == ["norm"]:
            depth = 4
        elif parts[2:3] == ["blocks"]:
            depth = int(parts[3]) + 1
        assert scale == pytest.approx(0.5 ** (4 - depth)), name
    at_zero = {name for name, scale in scales.items() if scale == 0.5**4}
    assert at_zero == {
        "backbone.mask_token",
        *(
            f"backbone.vit.{name}"
            for name in (
                "cls_token",
                "reg_token",
                "pos_embed",
                "patch_embed.proj.weight",
                "patch_embed.proj.bias",
            )
        ),
    }


# pitfall 9
def test_the_patch_embedding_multiplier_reaches_the_patch_embedding_only():
    scales = {name: g["lr_scale"] for name, g in groups_by_name(build(), layer_decay=0.9).items()}
    plain = groups_by_name(build(), layer_decay=0.9, patch_embed_lr=1.0)
    for name, scale in scales.items():
        factor = 0.2 if name.startswith("backbone.vit.patch_embed.") else 1.0
        assert scale == pytest.approx(factor * plain[name]["lr_scale"]), name


@pytest.mark.parametrize("shared", [True, False])
def test_every_trainable_parameter_is_in_one_group_and_prototypes_in_the_last_layer(shared):
    network = build(shared=shared)
    network.backbone.vit.pos_embed.requires_grad = False
    groups = parameter_groups(network, OptimiserSettings())
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters() if p.requires_grad)
    last = {name for name, group in groups_by_name(network).items() if group["last_layer"]}
    assert last == {"dino_head.prototypes"} | (set() if shared else {"ibot_head.prototypes"})


def test_a_trained_gain_is_decayed_and_frozen_as_the_prototypes_are():
    network = build()
    settings = HeadSettings(prototypes=12, hidden=16, bottleneck=8, train_gain=True)
    network.dino_head = ProjectionHead(32, settings)
    groups = groups_by_name(network)
    assert groups["dino_head.gain"] is groups["dino_head.prototypes"]
    assert groups["dino_head.gain"]["decay"]


def test_tokens_and_positions_are_decayed_where_that_is_set():
    plain, set_ = groups_by_name(build()), groups_by_name(build(), decay_tokens=True)
    changed = {name for name in plain if plain[name]["decay"] != set_[name]["decay"]}
    assert changed == {
        *("backbone.mask_token", "backbone.vit.cls_token", "backbone.vit.reg_token"),
        "backbone.vit.pos_embed",
    }


def test_groups_of_the_same_kind_are_one():
    # Patch embedding with and without decay, the rest with and without, the prototypes.
    assert len(parameter_groups(build(), OptimiserSettings())) == 5
    # Besides, tokens stand at a depth of their own, and each block at its own.
    assert len(parameter_groups(build(), OptimiserSettings(layer_decay=0.9))) == 5 + 1 + 3 * 2


def test_a_step_equals_adamw_in_float64_with_the_rates_and_decays_of_each_parameter():
    network = build()
    settings = OptimiserSettings(layer_decay=0.7, betas=(0.8, 0.95))
    optimiser = make_optimiser(parameter_groups(network, settings), settings)
    groups = groups_by_name(network, layer_decay=0.7)
    references = {name: p.detach().double() for name, p in network.named_parameters()}
    moments = {name: (0.0, 0.0) for name in references}
    for step in range(1, 4):
        values = Values(0.01 * step, 0.1 * step, 0.9, 0.04, False)
        optimiser.zero_grad()
        loss_of(network, step).backward()
        set_values(optimiser, values)
        optimiser.step()
        for name, parameter in network.named_parameters():
            gradient = parameter.grad.double()
            first, second = moments[name]
            first, second = 0.8 * first + 0.2 * gradient, 0.95 * second + 0.05 * gradient**2
            moments[name] = first, second
            lr = values.lr * groups[name]["lr_scale"]
            decay = values.weight_decay if groups[name]["decay"] else 0.0
            root = (second / (1 - 0.95**step)).sqrt() + 1e-8
            references[name] = references[name] * (1 - lr * decay) - lr * (
                first / (1 - 0.8**step) / root
            )
    for name, parameter in network.named_parameters():
        difference = (parameter.double() - references[name]).abs().max()
        assert difference < 1e-6, name


def test_the_state_of_a_run_stopped_while_the_last_layer_is_frozen_is_whole():
    def stepped(network, optimiser, steps):
        for step in steps:
            optimiser.zero_grad()
            loss_of(network, step).backward()
            if step < 2:
                network.dino_head.prototypes.grad = network.ibot_head.prototypes.grad = None
            set_values(optimiser, Values(0.01, 0.1, 0.9, 0.04, step < 2))
            optimiser.step()

    def fresh():
        network, settings = build(), OptimiserSettings()
        return network, make_optimiser(parameter_groups(network, settings), settings)

    whole = fresh()
    stepped(*whole, range(4))
    first, second = fresh(), fresh()
    stepped(*first, range(1))
    state = first[1].state_dict()
    assert len(state["state"]) == len(list(first[0].parameters()))
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(state)
    stepped(*second, range(1, 4))
    for one, other in zip(whole[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(one, other)
    assert second[1].state[second[0].dino_head.prototypes]["step"] == 2


@pytest.mark.parametrize(
    "setting",
    [{"base_lr": 0}, {"layer_decay": 1.1}, {"clip": 0}, {"min_lr": math.nan}, {"warmup": 3}],
)
def test_impossible_settings_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        OptimiserSettings(**setting)
