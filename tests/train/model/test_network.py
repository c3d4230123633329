import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from shared.errors import LvdError
from train.model.network import Network, build_network, make_teacher
from train.model.settings import HeadSettings, HeadsSettings, ModelSettings, ProjectorSettings

HEAD = HeadSettings(prototypes=20, hidden=24, bottleneck=8)
UNTIED = HeadsSettings(dino=HEAD, ibot=HeadSettings(prototypes=30, hidden=24, bottleneck=6))
SHARED = HeadsSettings(dino=HEAD, shared=True)


def model(name: str = "vit_small_patch14_reg4_dinov2", **settings) -> ModelSettings:
    options = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    return ModelSettings(
        name=name, patch_size=8, options=options, **{"layer_scale": 0.5} | settings
    )


def network(heads: HeadsSettings = UNTIED, *, masked: bool = True, **settings) -> Network:
    made = build_network(model(**settings), heads, masked=masked, sizes=[32, 16], seed=3)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        for parameter in made.parameters():  # as after training: at the start all is nearly linear
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return made


def views(seed: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(4, 16, dtype=torch.bool)
    masks[0, 2:7] = masks[3, 8:11] = True
    return {
        "global_views": torch.randn(4, 3, 32, 32, generator=generator),
        "local_views": torch.randn(6, 3, 16, 16, generator=generator),
        "masks": masks,
        "masked_index": masks.flatten().nonzero()[:, 0],
    }


@pytest.mark.parametrize("heads", [UNTIED, SHARED])
def test_outputs_are_those_of_backbone_and_heads_called_one_by_one(heads):
    student, given = network(heads), views()
    outputs = student(**given)
    cls, patches = student.backbone(given["global_views"], masks=given["masks"])
    local, _ = student.backbone(given["local_views"])
    patch_head = student.ibot_head or student.dino_head
    torch.testing.assert_close(outputs.cls, cls)
    torch.testing.assert_close(outputs.cls_logits.whole()[:4], student.dino_head(cls).whole())
    torch.testing.assert_close(outputs.cls_logits.whole()[4:], student.dino_head(local).whole())
    expected = patch_head(patches[given["masks"]])
    torch.testing.assert_close(outputs.patch_logits, expected)
    assert (student.ibot_head is None) == heads.shared
    assert (
        sum(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(outputs)) == 5
    )  # where FSDP looks for what needs a backward pass


@pytest.mark.parametrize("heads", [None, UNTIED])
@pytest.mark.parametrize("projector", [None, ProjectorSettings(hidden=24, width=6, layers=2)])
def test_all_views_are_projected_for_infonce(heads, projector):
    student = build_network(
        model(), heads, projector, masked=False, infonce=True, sizes=[32, 16], seed=3
    )
    given = views()
    outputs = student(given["global_views"], given["local_views"])
    tokens = [student.backbone(given[name])[0] for name in ("global_views", "local_views")]
    expected = torch.cat(tokens)
    if projector is not None:
        first, _, last = student.projector.mlp
        expected = last(torch.nn.functional.gelu(first(expected)))
    torch.testing.assert_close(outputs.projections, expected)
    assert (outputs.cls_logits is None) == (heads is None)
    assert build_network(model(), UNTIED, masked=False, sizes=[32], seed=3).projector is None


# pitfall 2
def test_the_students_cls_comes_from_masked_crops_and_locals_are_never_masked():
    student, given = network(), views()
    masked = student(**given)
    whole = student(given["global_views"], given["local_views"])
    changed = (masked.cls - whole.cls).abs().amax(1)
    assert changed[0] > 0.01
    assert changed[3] > 0.01
    torch.testing.assert_close(masked.cls[1:3], whole.cls[1:3])
    torch.testing.assert_close(masked.cls_logits.vectors[4:], whole.cls_logits.vectors[4:])


# pitfall 2
def test_the_teacher_sees_no_mask_has_no_stochastic_depth_and_no_gradient():
    student, given = network(drop_path=0.5), views()
    teacher = make_teacher(student)
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    seen = teacher(given["global_views"], masked_index=given["masked_index"])
    again = teacher.train()(given["global_views"], masked_index=given["masked_index"])
    student.eval()
    cls, patches = student.backbone(given["global_views"])
    torch.testing.assert_close(seen.cls, cls)
    torch.testing.assert_close(seen.patch_logits, student.ibot_head(patches[given["masks"]]))
    torch.testing.assert_close(again, seen)
    assert seen.cls_logits.whole().shape == (4, 20)
    student.train()
    assert {block.drop_path for block in student.backbone.vit.blocks} == {0.5}


def test_the_teacher_is_a_copy():
    student = network()
    teacher = make_teacher(student)
    before = teacher.dino_head.prototypes.clone()
    student.dino_head.prototypes.data.zero_()
    assert torch.equal(teacher.dino_head.prototypes, before)


@pytest.mark.parametrize(
    "name", ["vit_small_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_giant_patch14_dinov2"]
)
@pytest.mark.parametrize(
    ("heads", "masked"), [(UNTIED, True), (SHARED, True), (HeadsSettings(dino=HEAD), False)]
)
def test_every_parameter_gets_a_gradient(name, heads, masked):
    student, given = network(heads, masked=masked, name=name), views()
    if not masked:
        given["masks"] = given["masked_index"] = None
    outputs = student(**given)
    logits = [each.whole() for each in outputs[1:3] if each is not None]
    sum(output.square().sum() for output in (outputs.cls, *logits)).backward()
    assert [n for n, p in student.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_initialisation_depends_on_the_seed_alone():
    state = torch.get_rng_state()
    one, other = (build_network(model(), UNTIED, masked=True, sizes=[32], seed=7) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    third = build_network(model(), SHARED, masked=True, sizes=[32], seed=8)
    fourth = build_network(model(), UNTIED, masked=False, sizes=[32], seed=8)
    assert not torch.equal(third.dino_head.prototypes, one.dino_head.prototypes)
    for name, value in fourth.state_dict().items():  # what else there is changes nothing
        assert torch.equal(value, third.state_dict()[name])


def test_on_meta_nothing_is_allocated_and_shapes_are_known():
    giant = ModelSettings(name="vit_giant_patch14_dinov2")
    heads = HeadsSettings(dino=HeadSettings(prototypes=131_072, bottleneck=384))
    made = build_network(giant, heads, masked=True, sizes=[224, 98], seed=0, device="meta")
    assert {parameter.device.type for parameter in made.parameters()} == {"meta"}
    assert sum(p.numel() for p in made.backbone.parameters()) == pytest.approx(1.135e9, rel=0.01)
    outputs = made(
        torch.empty(2, 3, 224, 224, device="meta"), torch.empty(4, 3, 98, 98, device="meta")
    )
    assert outputs.cls_logits.whole().shape == (6, 131_072)


class Fillings(TorchDispatchMode):
    """Counts the draws from a truncated normal distribution."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.count += function is torch.ops.aten.erfinv_.default
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize(("device", "filled"), [("meta", False), ("cpu", True)])
def test_a_backbone_without_content_is_not_filled(device, filled):
    with Fillings() as fillings:
        build_network(model(), None, masked=True, infonce=True, sizes=[32], seed=0, device=device)
    assert (fillings.count > 0) == filled


def test_every_size_of_view_must_be_divisible_by_the_patch():
    with pytest.raises(LvdError, match="20 x 20 px cannot be cut in patches of 8 px"):
        build_network(model(), UNTIED, masked=True, sizes=[32, 20], seed=0)
