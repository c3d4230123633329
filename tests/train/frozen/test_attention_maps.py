import copy

import numpy as np
import pytest
import timm
import torch
from attentive_model import frozen, seer
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer as ClipTransformer
from timm.models.vision_transformer import VisionTransformer
from timm.utils import AttentionExtract

from shared.errors import LvdError
from train.frozen.attention_maps import cls_attention, most_attended

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
VITS = {
    "plain": {},
    "registers": {"reg_tokens": 3},
    "registers without positions": {"reg_tokens": 2, "no_embed_class": True},
    "qk norm": {"qk_norm": True},
    "layer scale, pre norm": {"init_values": 0.3, "pre_norm": True},
}


def random_weights(module, seed=0):
    torch.manual_seed(seed)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def vit(**options):
    return random_weights(VisionTransformer(**(TINY | options), num_classes=0))


def pixels(count=2, size=32):
    return torch.randint(
        256, (count, 3, size, size), generator=torch.Generator().manual_seed(1)
    ).byte()


def explicit(model, network, images):
    """The maps by timm's own extraction of the explicit attention of the last block."""
    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    name = f"blocks.{len(network.blocks) - 1}.attn.attn_drop"
    extract = AttentionExtract(network, names=[name], method="hook")
    with torch.inference_mode():
        found = extract(model.normalised(images))[name]
    maps = found[:, :, 0, network.num_prefix_tokens :]
    return maps / maps.sum(dim=2, keepdim=True)


@pytest.mark.parametrize("kind", VITS)
def test_maps_are_those_of_timms_explicit_attention(kind):
    network = vit(**VITS[kind])
    model = frozen(network)
    maps = cls_attention(model, pixels())
    assert maps.shape == (2, 2, 4, 4)
    assert maps.dtype == torch.float32
    expected = explicit(model, copy.deepcopy(network), pixels())
    torch.testing.assert_close(maps.flatten(2), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "beit_base_patch16_224"])
def test_maps_of_rotary_and_relative_positions_are_those_of_the_model(name):
    network = timm.create_model(name, num_classes=0, **(TINY | {"patch_size": 16}))
    random_weights(network)
    model = frozen(network)
    maps = cls_attention(model, pixels())
    expected = explicit(model, network, pixels())
    torch.testing.assert_close(maps.flatten(2), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_maps_of_clip_are_the_softmax_of_its_query_and_keys(qk_norm):
    shape = {"width": 24, "layers": 2, "heads": 2, "mlp_ratio": 2.0, "qk_norm": qk_norm}
    tower = random_weights(ClipTransformer(32, 8, **shape))
    model = frozen(tower)
    maps = cls_attention(model, pixels())
    seen = []
    last = tower.transformer.resblocks[-1]
    hook = last.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.tokens(pixels())
    hook.remove()
    with torch.no_grad():
        tokens = last.ln_1(seen[0])
        mixed = tokens @ last.attn.in_proj_weight.T + last.attn.in_proj_bias
        query, key, _ = mixed.unflatten(2, (3, 2, 12)).permute(2, 0, 3, 1, 4)
        if qk_norm:
            query, key = last.attn.ln_q(query), last.attn.ln_k(key)
    weights = (query[:, :, :1] @ key.mT / 12**0.5).softmax(dim=3)[:, :, 0, 1:]
    expected = weights / weights.sum(dim=2, keepdim=True)
    torch.testing.assert_close(maps.flatten(2), expected, rtol=1e-4, atol=1e-6)


def test_maps_of_a_timm_model_inside_open_clip_are_its_own(monkeypatch):
    small = {"model_name": "vit_tiny_patch16_224", "embed_dim": 8, "pool": "token"}
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **more: create(name, **(TINY | more)))
    tower = TimmModel(**small)
    random_weights(tower)
    inside, bare = frozen(tower), frozen(copy.deepcopy(tower.trunk))
    assert torch.equal(cls_attention(inside, pixels()), cls_attention(bare, pixels()))


def test_maps_of_a_hand_built_attention_are_known_and_leave_registers_out():
    images = pixels(size=16)
    model = frozen(seer(), size=16)
    maps = cls_attention(model, images)
    means = model.normalised(images).mean(dim=1).unfold(1, 4, 4).unfold(2, 4, 4).mean(dim=(3, 4))
    for head, sign in enumerate((3.0, -3.0)):
        logits = sign * means.flatten(1) / 2**0.5
        expected = logits.softmax(dim=1).view_as(means)
        torch.testing.assert_close(maps[:, head], expected, rtol=1e-4, atol=1e-6)


def test_maps_sum_to_one_at_any_size():
    model = frozen(vit(reg_tokens=2, dynamic_img_size=True))
    for size, grid in ((32, 4), (56, 7)):
        maps = cls_attention(model, pixels(size=size))
        assert maps.shape[2:] == (grid, grid)
        torch.testing.assert_close(maps.sum(dim=(2, 3)), torch.ones(2, 2))


def test_maps_do_not_change_with_the_form_of_attention_and_the_model_is_left_as_it_was():
    network = vit(reg_tokens=1)
    model = frozen(network)
    forms = {}
    for fused in (True, False):
        for block in network.blocks:
            block.attn.fused_attn = fused
        forms[fused] = cls_attention(model, pixels())
        assert [block.attn.fused_attn for block in network.blocks] == [fused, fused]
    torch.testing.assert_close(forms[True], forms[False], rtol=1e-4, atol=1e-6)
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_maps_of_reduced_precision_come_from_a_float32_softmax():
    network = vit()
    exact = cls_attention(frozen(network), pixels())
    reduced = cls_attention(frozen(network, precision="bfloat16"), pixels())
    assert reduced.dtype == torch.float32
    torch.testing.assert_close(reduced, exact, rtol=0.1, atol=0.01)
    torch.testing.assert_close(reduced.sum(dim=(2, 3)), torch.ones(2, 2))


@pytest.mark.parametrize(
    "network",
    [
        lambda: vit(class_token=False, global_pool="avg"),
        lambda: timm.create_model("test_resnet", num_classes=0),
        lambda: timm.create_model(
            "vit_tiny_patch16_224", block_fn=_parallel(), num_classes=0, **TINY
        ),
    ],
    ids=["no CLS token", "convolutions", "parallel attention"],
)
def test_a_model_without_cls_attention_is_refused_in_one_line(network):
    with pytest.raises(LvdError, match="tiny has no attention maps") as refused:
        cls_attention(frozen(network()), pixels())
    assert "\n" not in str(refused.value)


def _parallel():
    from timm.models.vision_transformer import ParallelThingsBlock

    return ParallelThingsBlock


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=4, max_size=4).filter(any),
    st.sampled_from([0.2, 0.5, 0.6, 0.95, 1.0]),
)
def test_the_kept_patches_are_the_fewest_with_the_mass_and_the_first_of_equal_ones(weights, mass):
    shares = np.array(weights) / sum(weights)
    kept = most_attended(torch.tensor(shares).float().view(1, 1, 2, 2), mass)[0, 0].flatten()
    order = sorted(range(4), key=lambda place: (-weights[place], place))
    total, expected = 0, set()
    for place in order:
        if total >= mass * sum(weights) - 1e-5:
            break
        expected.add(place)
        total += weights[place]
    assert set(np.flatnonzero(kept)) == expected
