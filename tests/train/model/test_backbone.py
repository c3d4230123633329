import pytest
import timm
import torch
from pydantic import ValidationError
from timm.layers import Attention
from torch import nn

from shared.errors import LvdError
from train.model.backbone import Backbone, build_backbone
from train.model.settings import ModelSettings

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2}
MODELS = [
    "vit_small_patch16_224",
    "vit_base_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_giant_patch14_dinov2",
]


def tiny(name: str = MODELS[0], *, masked: bool = True, **settings) -> Backbone:
    settings = {"patch_size": 8, "layer_scale": 0.5} | settings
    options = TINY | settings.pop("options", {})
    torch.manual_seed(1)
    given = ModelSettings(name=name, options=options, **settings)
    backbone = build_backbone(given, image_size=32, masked=masked)
    for parameter in backbone.parameters():  # as after training: at the start all is nearly linear
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=1.0 if parameter.ndim == 3 else 0.2)
    return backbone.eval()


def images(n: int = 3, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(2))


def plain_timm(name: str, backbone: Backbone, **options) -> nn.Module:
    arguments = {"img_size": 32, "patch_size": 8, "init_values": 0.5, "num_classes": 0, **TINY}
    plain = timm.create_model(name, dynamic_img_size=True, **arguments | options).eval()
    plain.load_state_dict(backbone.vit.state_dict())
    return plain


def first_block_input(backbone: Backbone, images: torch.Tensor, **arguments) -> torch.Tensor:
    seen = []
    handle = backbone.vit.blocks[0].register_forward_pre_hook(
        lambda _, given: seen.append(given[0])
    )
    backbone(images, **arguments)
    handle.remove()
    return seen[0].unflatten(0, (len(images), -1))


# pitfall 14
@pytest.mark.parametrize("size", [(32, 32), (16, 16), (24, 56)])
@pytest.mark.parametrize(
    ("name", "prefix", "options"),
    [
        (MODELS[0], 1, {}),
        (MODELS[1], 1, {}),
        (MODELS[2], 5, {}),
        (MODELS[3], 1, {}),
        (MODELS[0], 3, {"reg_tokens": 2}),
    ],
)
def test_tokens_are_those_of_plain_timm_behind_cls_and_registers(name, prefix, options, size):
    backbone = tiny(name, options=options)
    tokens = plain_timm(name, backbone, **options).forward_features(images(3, *size))
    cls, patches = backbone(images(3, *size))
    assert backbone.prefix_tokens == prefix
    assert patches.shape == (3, size[0] * size[1] // 64, 32)
    torch.testing.assert_close(cls, tokens[:, 0])
    torch.testing.assert_close(patches, tokens[:, prefix:])


@pytest.mark.parametrize("name", MODELS)
def test_the_mask_token_replaces_exactly_the_masked_embeddings_before_positions_are_added(name):
    backbone = tiny(name)
    masks = torch.rand(3, 16, generator=torch.Generator().manual_seed(3)) < 0.4
    masks[2] = False
    unmasked = first_block_input(backbone, images())
    masked = first_block_input(backbone, images(), masks=masks)
    prefix = backbone.prefix_tokens
    embeddings = backbone.vit.patch_embed(images()).flatten(1, 2)
    expected = unmasked.clone()
    expected[:, prefix:] += (backbone.mask_token - embeddings) * masks[..., None]
    torch.testing.assert_close(masked, expected)
    torch.testing.assert_close(masked[2], unmasked[2])
    positions = (masked[:, prefix:] - backbone.mask_token)[masks]
    assert len(positions.unique(dim=0)) > 1  # masked patches still know where they are


@pytest.mark.parametrize("name", [MODELS[0], MODELS[2]])
def test_tokens_asked_for_by_index_equal_those_of_all_with_their_gradients(name):
    backbone = tiny(name)
    index = torch.tensor([40, 0, 15, 16, 47])
    cls, patches = backbone(images())
    (cls.sum() + patches.flatten(0, 1)[index].square().sum()).backward()
    expected = {n: p.grad.clone() for n, p in backbone.named_parameters() if p.grad is not None}
    backbone.zero_grad()
    some_cls, some = backbone(images(), patch_index=index)
    (some_cls.sum() + some.square().sum()).backward()
    torch.testing.assert_close(some, patches.flatten(0, 1)[index])
    torch.testing.assert_close(some_cls, cls)
    for parameter, gradient in expected.items():
        torch.testing.assert_close(
            backbone.get_parameter(parameter).grad, gradient, atol=1e-5, rtol=1e-4
        )


def in_one_call_and_in_several(name: str, **settings) -> list[dict[str, torch.Tensor]]:
    """Tokens and gradients, in float64, of views of three sizes; some of the first are masked."""
    sizes = [images(3), images(4, 16, 24), images(5, 24, 16)]
    masks = torch.rand(3, 16, generator=torch.Generator().manual_seed(3)) < 0.4
    index = masks.flatten().nonzero()[:, 0]
    found = []
    for together in (True, False):
        backbone = tiny(name, **settings).double()
        views = [view.double() for view in sizes]
        if together:
            cls, patches = backbone(*views, masks=masks, patch_index=index)
        else:
            cls, patches = backbone(views[0], masks=masks, patch_index=index)
            cls = torch.cat([cls, *[backbone(view)[0] for view in views[1:]]])
        (cls.pow(3).sum() + patches.square().sum()).backward()
        gradients = {name: p.grad for name, p in backbone.named_parameters()}
        found.append({"CLS": cls, "patches": patches, **gradients})
    return found


@pytest.mark.parametrize("attention", ["fused", "explicit"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *[(name, {}) for name in MODELS],
        (MODELS[0], {"qk_norm": True, "qkv_bias": False, "reg_tokens": 2}),
    ],
)
def test_views_of_several_sizes_in_one_call_are_those_of_a_call_for_each(name, options, attention):
    together, apart = in_one_call_and_in_several(name, options=options, attention=attention)
    for what, expected in apart.items():
        torch.testing.assert_close(together[what], expected, rtol=1e-10, atol=1e-10, msg=what)


def test_an_attention_of_another_kind_is_called_for_each_size():
    class Other(Attention):
        """The same numbers from another class."""

    backbone = tiny()
    for block in backbone.vit.blocks:
        block.attn.__class__ = Other
    views = [images(3), images(4, 16, 24)]
    calls = []
    backbone.vit.blocks[0].attn.register_forward_pre_hook(lambda _, given: calls.append(given))
    cls, _ = backbone(*views)
    assert [given[0].shape[:2] for given in calls] == [(3, 17), (4, 7)]
    torch.testing.assert_close(cls, torch.cat([backbone(view)[0] for view in views]))


def test_each_size_drops_its_own_share_of_samples():
    backbone = tiny(drop_path=0.4, layer_scale=1.0).train()
    block = backbone.vit.blocks[0]
    nn.init.zeros_(block.mlp.fc2.weight)
    nn.init.zeros_(block.mlp.fc2.bias)
    sizes = torch.randn(10, 4, 32), torch.randn(3, 6, 32)  # 6 of 10 are kept, and 2 of 3
    x = torch.cat([size.flatten(0, 1) for size in sizes])
    updates = (block(x, ((10, 4), (3, 6))) - x).split([40, 18])
    for size, update, scale, count in zip(sizes, updates, (10 / 6, 3 / 2), (6, 2), strict=True):
        update = update.view(size.shape)
        kept = update.flatten(1).abs().amax(1) > 0
        assert kept.sum() == count
        full = block.eval()(size) - size
        block.train()
        torch.testing.assert_close(update[kept], full[kept] * scale, atol=1e-5, rtol=1e-4)


# pitfall 13
@pytest.mark.parametrize(
    "changed",
    [{"position_mode": "bilinear"}, {"position_antialias": False}, {"position_offset": 0.1}],
)
def test_resampling_options_change_tokens_at_other_sizes_only(changed):
    default, other = tiny(), tiny(**changed)
    torch.testing.assert_close(other(images())[0], default(images())[0])
    small = images(3, 16, 24)
    assert (other(small)[0] - default(small)[0]).abs().max() > 0.01


@pytest.mark.parametrize(("name", "rows"), [(MODELS[0], 5), (MODELS[2], 0)])
def test_only_patches_positions_are_resampled(name, rows):
    backbone = tiny(name, options={"reg_tokens": 4})
    table = torch.randn(1, rows + 16, 32)
    found = backbone.resampled(table.bfloat16(), (4, 4), (2, 3))
    assert found.dtype == torch.float32
    assert found.shape == (1, rows + 6, 32)
    torch.testing.assert_close(found[:, :rows], table[:, :rows].bfloat16().float())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_plain_timm(name, training):
    backbone = tiny(name).train(training)
    plain = plain_timm(name, backbone).train(training)
    backbone(images())[0].square().sum().backward()
    plain(images()).square().sum().backward()
    for parameter, value in plain.named_parameters():
        found = backbone.vit.get_parameter(parameter).grad
        torch.testing.assert_close(found, value.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("read", [None, torch.tensor([0, 5, 10, 15, 20, 25, 30, 39, 38])])
@pytest.mark.parametrize("silent", ["attn.proj", "mlp.fc2"])
def test_stochastic_depth_drops_a_fixed_share_of_samples_and_scales_the_rest(silent, read):
    backbone = tiny(drop_path=0.4, layer_scale=1.0).train()
    block = backbone.vit.blocks[0]
    for parameter in block.get_submodule(silent).parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(10, 4, 32)
    full = block.eval()(x) - x
    dropped = []
    for _ in range(30):
        update = block.train()(x, read=read)
        rows = torch.arange(40) if read is None else read
        update = update - x.flatten(0, 1)[rows].view(update.shape)
        expected = full.flatten(0, 1)[rows] * 10 / 6
        update = update.reshape(expected.shape)
        kept = (update.abs().amax(1) > 0).tolist()
        torch.testing.assert_close(update[kept], expected[kept], atol=1e-5, rtol=1e-4)
        gone = {int(row) // 4 for row, alive in zip(rows, kept, strict=True) if not alive}
        assert len(gone) == 4 if read is None else len(gone) <= 4
        dropped.append(frozenset(gone))
    assert len(set(dropped)) > 10
    assert set().union(*dropped) == {int(row) // 4 for row in rows}


def test_drop_path_is_uniform_or_grows_from_zero():
    def rates(schedule: str) -> list[float]:
        backbone = tiny(drop_path=0.3, drop_path_schedule=schedule, options={"depth": 4})
        return [round(block.drop_path, 6) for block in backbone.vit.blocks]

    assert rates("uniform") == [0.3] * 4
    assert rates("linear") == [0.0, 0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("attention", "in_float32", "in_bfloat16"),
    [("auto", True, False), ("fused", True, True), ("explicit", False, False)],
)
def test_attention_follows_the_setting_and_the_precision_on_cpu(attention, in_float32, in_bfloat16):
    backbone = tiny(attention=attention)

    def fused() -> set[bool]:
        return {m.fused_attn for m in backbone.modules() if isinstance(m, Attention)}

    exact, _ = backbone(images())
    assert fused() == {in_float32}
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = backbone(images())
    assert fused() == {in_bfloat16}
    torch.testing.assert_close(rounded, exact, atol=0.05, rtol=0.05)


def test_there_is_a_mask_token_only_where_masks_are():
    assert tiny(masked=False).mask_token is None
    fresh = build_backbone(
        ModelSettings(name=MODELS[0], options=TINY), image_size=32, masked=True
    ).mask_token
    assert fresh.shape == (1, 1, 32)
    assert not fresh.any()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"name": "vit_smal_patch16_224"}, "did you mean 'vit_small_patch16_224'"),
        ({"name": "vit_medium_patch16_gap_240"}, "no CLS token"),
        ({"name": "vit_base_patch16_siglip_224"}, "no CLS token"),
        ({"name": "vit_small_patch16_18x2_224"}, "no plain VisionTransformer"),
        ({"name": "resnet18"}, "plain Vision Transformer"),
        ({"name": "vit_small_patch14_dinov2"}, "32 px are not divisible by its patches of 14 px"),
        (
            {"name": MODELS[0], "options": {"embed_dim": 32, "num_heads": 3}},
            "divisible by num_heads",
        ),
    ],
)
def test_models_that_do_not_fit_are_refused_in_one_line(settings, problem):
    with torch.device("meta"), pytest.raises(LvdError, match=problem) as raised:
        build_backbone(ModelSettings(**settings), image_size=32, masked=True)
    assert "\n" not in str(raised.value)


def test_views_that_do_not_fit_are_refused():
    with pytest.raises(LvdError, match=r"30 x 32 px .* patches of 8 px"):
        tiny()(images(1, 30, 32))


@pytest.mark.parametrize("options", [{"img_size": 64}, {"colour": 1}, {"depth": [1]}])
def test_options_that_are_settings_elsewhere_or_unknown_are_refused(options):
    with pytest.raises(ValidationError, match="options"):
        ModelSettings(name=MODELS[0], options=options)
