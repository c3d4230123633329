import copy

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer as ClipTransformer
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from timm.utils import AttentionExtract
from torch.nn.functional import interpolate

from shared.embedders import EmbedderSettings
from shared.errors import LvdError
from shared.evaluation_transform import square
from train.evaluation.attention import attention, jaccard
from train.evaluation.attention_maps import cls_attention, most_attended
from train.evaluation.frozen import FrozenModel, JoinedModel, Needs
from train.evaluation.settings import AttentionSettings
from train.evaluation.towers import patch_and_registers

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
VITS = {
    "plain": {},
    "registers": {"reg_tokens": 3},
    "registers without positions": {"reg_tokens": 2, "no_embed_class": True},
    "qk norm": {"qk_norm": True},
    "layer scale, pre norm": {"init_values": 0.3, "pre_norm": True},
}


def frozen(module, size=32, precision="float32", name="tiny"):
    patch, registers = patch_and_registers(module)
    needs = Needs(size, (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0, "token", patch, registers)
    told = EmbedderSettings(kind="timm", model="any", precision=precision, device="cpu")
    return FrozenModel(name, module.eval(), square(size), needs, told, "test")


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


def seer(sign=(3.0, -3.0), patch=4, size=16, registers=1):
    """A ViT of one block whose heads look at bright and at dark patches, by `sign`."""
    heads, width = len(sign), 2 * len(sign)
    network = VisionTransformer(
        img_size=size, patch_size=patch, embed_dim=width, depth=1, num_heads=heads,
        reg_tokens=registers, num_classes=0, norm_layer=torch.nn.Identity,
    )  # fmt: skip
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    block = network.blocks[0]
    with torch.no_grad():
        network.patch_embed.proj.weight[0] = 1 / (3 * patch * patch)  # the mean of a patch
        network.cls_token.fill_(99.0)
        network.reg_token.fill_(99.0)
        for head, strength in enumerate(sign):
            block.attn.qkv.bias[2 * head] = 1.0  # each query is (1, 0)
            block.attn.qkv.weight[width + 2 * head, 0] = strength
    return network


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


def test_jaccard_is_that_of_the_map_enlarged_to_the_mask():
    generator = np.random.default_rng(0)
    kept = torch.from_numpy(generator.random((3, 4, 4)) < 0.4)
    for shape in ((30, 50), (4, 4), (3, 7)):
        thing, counted = generator.random((2, *shape)) < 0.7
        large = interpolate(kept[None].float(), shape, mode="nearest-exact")[0].bool().numpy()
        thing[0, 0] = counted[0, 0] = True
        both = (large & thing & counted).sum(axis=(1, 2))
        either = ((large | thing) & counted).sum(axis=(1, 2))
        assert jaccard(kept, thing, counted).tolist() == pytest.approx(both / either)


def scene(root, name, box, value=1, size=(64, 32), void=None):
    """A black picture with a white box of patches, and its mask; boxes are in quarters."""
    width, height = size
    left, top, right, bottom = (
        round(share * side / 4) for share, side in zip(box, size * 2, strict=True)
    )
    image, mask = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
    image[top:bottom, left:right] = 255
    mask[top:bottom, left:right] = value
    if void is not None:
        mask[void] = 255
    for folder, content in (("images", image), ("masks", mask)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(content).save(root / folder / f"{name}.png")


def scores(data, *models, **options):
    models = models or (frozen(seer(), size=16),)
    found = attention(JoinedModel("model", models), str(data), AttentionSettings(**options))
    return {score.metric: score.value for score in found}


def test_the_best_head_is_the_one_that_looks_at_the_object_wherever_it_is(tmp_path):
    # Of a box of 4 patches 60 % of the mass are 3; of 2 patches, both.
    scene(tmp_path, "left", (0, 1, 2, 3))
    scene(tmp_path, "right", (2, 0, 4, 2), value=7, size=(36, 92))
    scene(tmp_path, "narrow", (1, 3, 3, 4))
    found = scores(tmp_path)
    assert found["Jaccard, best head"] == pytest.approx((0.75 + 0.75 + 1) / 3)
    # The head that looks at dark patches keeps 8 of 12 or 9 of 14, and none of the object.
    assert found["Jaccard, all heads"] == pytest.approx((0.75 + 0.75 + 1) / 6)
    assert scores(tmp_path, mass=1.0)["Jaccard, best head"] < 0.3


def test_void_pixels_count_for_nothing_and_can_be_the_object(tmp_path):
    scene(tmp_path, "one", (0, 0, 2, 1), void=np.s_[16:, :])
    assert scores(tmp_path)["Jaccard, best head"] == pytest.approx(1)
    bright = frozen(seer((3.0,)), size=16)
    assert scores(tmp_path, bright, void=-1)["Jaccard, best head"] == pytest.approx(2 / 10)


def test_the_heads_of_joined_models_stand_side_by_side(tmp_path):
    scene(tmp_path, "one", (0, 0, 2, 1))
    bright, dark = frozen(seer((3.0,)), 16), frozen(seer((-3.0,), patch=2, size=8), 8)
    assert scores(tmp_path, dark)["Jaccard, best head"] == 0
    assert scores(tmp_path, dark, bright) == scores(tmp_path, frozen(seer(), 16))


def test_pairs_that_cannot_be_used_are_left_out_and_said(tmp_path, capsys):
    scene(tmp_path, "a", (0, 0, 2, 1))
    whole = scores(tmp_path)
    for name in ("broken", "empty", "turned"):
        scene(tmp_path, name, (0, 0, 2, 1), value=0 if name == "empty" else 1)
    (tmp_path / "images" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    Image.new("L", (32, 64), 1).save(tmp_path / "masks" / "turned.png")
    capsys.readouterr()
    assert scores(tmp_path) == whole
    said = capsys.readouterr().err
    assert "3 pairs are left out, as broken.png" in said


def test_masks_without_an_object_are_an_error_that_names_the_setting(tmp_path):
    scene(tmp_path, "binary", (0, 0, 2, 1), value=255)
    with pytest.raises(LvdError, match="void=255"):
        scores(tmp_path)
    assert scores(tmp_path, void=-1)["Jaccard, best head"] == pytest.approx(1)
