"""Two whole steps against DINOv2 written down anew: float64, plain timm, and one loop for each sum."""

from __future__ import annotations

import copy
import math

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, normalize

from train.distributed.ranks import Ranks
from train.objectives.ibot_loss import mask_weights
from train.optimisation.schedules import Values
from train.recipe import Recipe
from train.step import MicroBatch, optimiser_step
from train.system import build_system

IMAGES, LOCALS, SIDE, LOCAL_SIDE, PATCH, GROUP = 4, 3, 32, 16, 8, 2
OPTIONS = {"embed_dim": 24, "depth": 3, "num_heads": 2, "reg_tokens": 1}
LAYER_DECAY, PATCH_LR, CLIP, STUDENT_TEMPERATURE, KOLEO = 0.8, 0.2, 0.05, 0.1, 0.1
VALUES = [
    Values(2e-3, 3.0, 0.9, 0.05, last_layer_frozen=True),
    Values(3e-3, 6.0, 0.95, 0.07, last_layer_frozen=False),
]


def recipe(kind: str) -> Recipe:
    head = {"prototypes": 40, "hidden": 32, "bottleneck": 16}
    return Recipe.model_validate(
        {
            "batch_size": IMAGES,
            "group_size": GROUP,
            "crops": {"global_size": SIDE, "local_size": LOCAL_SIDE, "local_views": LOCALS},
            "masks": {},
            "model": {
                "name": "vit_tiny_patch16_224",
                "patch_size": PATCH,
                "options": OPTIONS,
                "layer_scale": 0.1,
            },
            "heads": {"dino": head, "ibot": {**head, "prototypes": 48}},
            "objectives": {"koleo": KOLEO, "centering": {"kind": kind}},
            "optimiser": {
                "layer_decay": LAYER_DECAY,
                "patch_embed_lr": PATCH_LR,
                "clip": CLIP,
            },
            "parallel": {"precision": "float32", "device": "cpu"},
        }
    )


def views(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Global views, local views and masks, view after view: [2, n, ...], [L, n, ...], [2, n, p]."""
    generator = torch.Generator().manual_seed(step)
    masks = torch.rand(2, IMAGES, (SIDE // PATCH) ** 2, generator=generator) < 0.3
    masks[0, ::2] = False  # whole crops
    return (
        torch.randn(2, IMAGES, 3, SIDE, SIDE, generator=generator),
        torch.randn(LOCALS, IMAGES, 3, LOCAL_SIDE, LOCAL_SIDE, generator=generator),
        masks,
    )


class Plain(nn.Module):
    """A network as the papers have it, with the trainer's names for its weights."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.vit = timm.create_model(
            "vit_tiny_patch16_224",
            num_classes=0,
            img_size=SIDE,
            patch_size=PATCH,
            init_values=0.1,
            dynamic_img_size=True,
            **OPTIONS,
        )
        own = {
            name.removeprefix("backbone.vit."): w for name, w in state.items() if ".vit." in name
        }
        self.vit.load_state_dict(own)
        self.mask_token = nn.Parameter(state["backbone.mask_token"].clone())
        self.heads = nn.ParameterDict(
            {
                name.replace(".", "/"): nn.Parameter(weight.clone())
                for name, weight in state.items()
                if "_head." in name
            }
        )
        self.double()

    def tokens(self, images: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The CLS token and the patch tokens of images, [n, d] and [n, p, d]."""
        vit = self.vit
        x = vit.patch_embed(images.double())
        if mask is not None:
            grid = mask.view(len(x), *x.shape[1:3])
            x = torch.where(grid[..., None], self.mask_token.view(1, 1, 1, -1), x)
        x = vit.norm(vit.blocks(vit.norm_pre(vit._pos_embed(x))))
        return x[:, 0], x[:, vit.num_prefix_tokens :]

    def logits(self, name: str, x: Tensor) -> Tensor:
        def weight(of: str) -> Tensor:
            return self.heads[f"{name}_head/{of}"]

        for layer in (0, 2, 4):
            x = x @ weight(f"mlp/{layer}/weight").T + weight(f"mlp/{layer}/bias")
            x = gelu(x) if layer < 4 else x
        return normalize(x, dim=-1) @ normalize(weight("prototypes"), dim=-1).T

    def by_name(self) -> dict[str, nn.Parameter]:
        named = {f"backbone.vit.{name}": p for name, p in self.vit.named_parameters()}
        named |= {name.replace("/", "."): p for name, p in self.heads.items()}
        return {**named, "backbone.mask_token": self.mask_token}


def sinkhorn(logits: Tensor, temperature: float) -> Tensor:
    q = (logits / temperature).exp()
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(0, keepdim=True) / q.shape[1]
        q = q / q.sum(1, keepdim=True) / q.shape[0]
    return q * q.shape[0]


class Centre:
    """Of DINO: what a step's targets are centred by comes from the steps before it."""

    def __init__(self) -> None:
        self.value: Tensor | float = 0.0

    def __call__(self, logits: Tensor, temperature: float) -> Tensor:
        targets = ((logits - self.value) / temperature).softmax(1)
        self.value = 0.9 * self.value + 0.1 * logits.mean(0)
        return targets


def crossed(target: Tensor, logits: Tensor) -> Tensor:
    return -(target * (logits / STUDENT_TEMPERATURE).log_softmax(-1)).sum(-1)


def loss_of(student: Plain, teacher: Plain, centre, step: int, values: Values) -> dict[str, Tensor]:
    crops, local_crops, masks = views(step)
    with torch.no_grad():
        cls, patches = teacher.tokens(crops.flatten(0, 1))
        taught = centre["dino"](teacher.logits("dino", cls), values.teacher_temperature)
        shown = patches[masks.flatten(0, 1)]
        taught_patches = centre["ibot"](teacher.logits("ibot", shown), values.teacher_temperature)
    cls, patches = student.tokens(crops.flatten(0, 1), masks.flatten(0, 1))
    local_cls, _ = student.tokens(local_crops.flatten(0, 1))
    seen = student.logits("dino", torch.cat([cls, local_cls])).unflatten(0, (-1, IMAGES))
    pairs = [
        crossed(taught.unflatten(0, (2, -1))[g], seen[v]).mean()
        for v in range(2 + LOCALS)
        for g in range(2)
        if v != g
    ]
    ibot, place = 0.0, 0
    for crop, mask in zip(patches, masks.flatten(0, 1), strict=True):
        if count := int(mask.sum()):
            target = taught_patches[place : place + count]
            ibot = ibot + crossed(target, student.logits("ibot", crop[mask])).mean()
            place += count
    koleo = 0.0
    for group in cls.unflatten(0, (2, -1, GROUP)).flatten(0, 1):  # of each view by itself
        x = normalize(group, dim=-1)
        for i in range(GROUP):
            nearest = min((x[i] - x[j]).norm() for j in range(GROUP) if j != i)
            koleo = koleo - (nearest + 1e-8).log() / IMAGES
    losses = {"dino": sum(pairs) / len(pairs), "ibot": ibot / (2 * IMAGES), "koleo": koleo}
    return losses | {"loss": losses["dino"] + losses["ibot"] + KOLEO * koleo}


def rates(name: str) -> tuple[float, bool]:
    """The factor of a parameter's learning rate, and whether it decays."""
    depth = OPTIONS["depth"] + 1
    if ".blocks." in name:
        depth = int(name.split(".blocks.")[1].split(".")[0]) + 1
    elif "_head." not in name and ".norm." not in name:
        depth = 0
    scale = LAYER_DECAY ** (OPTIONS["depth"] + 1 - depth)
    matrix = name.endswith((".weight", ".prototypes")) and "norm" not in name
    return scale * (PATCH_LR if "patch_embed" in name else 1), matrix


def step_by_hand(student: Plain, teacher: Plain, moments, values: Values) -> None:
    named = student.by_name()
    frozen = [n for n in named if n.endswith("prototypes") and values.last_layer_frozen]
    for part in ("backbone.", "dino_head.", "ibot_head."):
        own = {n: p.grad for n, p in named.items() if n.startswith(part) and n not in frozen}
        norm = math.sqrt(sum(float(g.square().sum()) for g in own.values()))
        for name, gradient in own.items():
            gradient = gradient * min(1.0, CLIP / norm)
            scale, decays = rates(name)
            lr = values.lr * scale
            weight = named[name].data
            weight *= 1 - lr * (values.weight_decay if decays else 0)
            age, first, second = moments.get(name, (0, 0.0, 0.0))
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            moments[name] = age + 1, first, second
            size = (second / (1 - 0.999 ** (age + 1))).sqrt() + 1e-8
            weight -= lr * first / (1 - 0.9 ** (age + 1)) / size
    for ours, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
        ours.data = values.momentum * ours.data + (1 - values.momentum) * theirs.data


@pytest.mark.parametrize("kind", ["sinkhorn", "ema"])
def test_two_steps_are_those_of_the_papers(kind: str) -> None:
    system = build_system(recipe(kind), Ranks(0, 1, 0, torch.device("cpu")))
    with torch.no_grad():
        for number, weight in enumerate(system.student.parameters()):
            torch.manual_seed(number)  # zeros, ones and equal networks would hide mistakes
            weight += 0.05 * torch.randn_like(weight)
    student = Plain(system.student.state_dict())
    teacher = copy.deepcopy(Plain(system.teacher.state_dict())).requires_grad_(False)
    centre = {"dino": Centre(), "ibot": Centre()}
    if kind == "sinkhorn":
        centre = {"dino": sinkhorn, "ibot": sinkhorn}
    moments: dict[str, tuple] = {}
    for step, values in enumerate(VALUES):
        crops, local_crops, masks = views(step)
        batch = MicroBatch(
            crops.flatten(0, 1),
            local_crops.flatten(0, 1),
            masks.flatten(0, 1),
            *mask_weights(masks.flatten(0, 1)),
        )
        report = optimiser_step(system, [batch], values, step)
        student.zero_grad()
        losses = loss_of(student, teacher, centre, step, values)
        losses["loss"].backward()
        assert report.losses == pytest.approx({n: v.item() for n, v in losses.items()}, rel=1e-4)
        step_by_hand(student, teacher, moments, values)
    for ours, plain in ((system.student, student), (system.teacher, teacher)):
        expected = plain.by_name()
        assert dict(ours.named_parameters()).keys() == expected.keys()
        for name, weight in ours.named_parameters():
            torch.testing.assert_close(
                weight, expected[name].float(), rtol=1e-4, atol=2e-5, msg=lambda m, n=name: n + m
            )
