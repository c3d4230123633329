"""Training as on a card: each path of a step on fake CUDA tensors, none of which meets the CPU's."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat

import numpy as np
import pytest
import torch
from fake_card import CUDA, FakeCard, fake_card, on_card
from small_models import WITH_TOKENS, write_models
from small_run import HEAD, RECIPE
from torch import Tensor

from train.data.crops import Views, stack_views
from train.data.loader import Batch, loss_places
from train.data.masks import batch_masks
from train.distributed.parallelise import autocast
from train.distributed.ranks import Ranks
from train.monitoring.indicators import indicators
from train.objectives import tiles
from train.optimisation.schedules import Values
from train.persistence.checkpoints import training_state
from train.recipe import Recipe
from train.snapshot import snapshot
from train.step import MicroBatch, optimiser_step, to_device
from train.system import System, build_system

THERE = Ranks(0, 1, 0, CUDA)
VALUES = Values(1e-3, 0.04, 0.9, 0.04, last_layer_frozen=False)
IMAGES = 4

MODEL = RECIPE["model"] | {"options": RECIPE["model"]["options"] | {"depth": 1}}
"""Of one block: another would only do the same again."""

WITHOUT_TEACHER = {
    "masks": None,
    "heads": None,
    "objectives": {"dino": 0, "ibot": 0, "infonce": 1},
    "projector": {"hidden": 16, "width": 8},
}
STUDENTS = {
    "published": {},
    "EMA centre, DINOv2's positions": {
        "objectives": {"centering": {"kind": "ema"}},
        "model": MODEL | {"position_offset": 0.1, "position_antialias": False},
    },
    "squared cosines, explicit attention, never clipped": {
        "objectives": {"koleo_estimator": "squared_cosine"},
        "model": MODEL | {"attention": "explicit"},
        "optimiser": {"clip": None},
    },
    "shared head": {"heads": {"dino": HEAD, "shared": True}},
    "DINO alone": {"masks": None, "objectives": {"ibot": 0}, "heads": {"dino": HEAD}},
    "iBOT alone": {"objectives": {"dino": 0, "koleo": 0}},
    "InfoNCE alone": WITHOUT_TEACHER,
    "InfoNCE beside, float32": {
        "objectives": {"infonce": 0.5},
        "parallel": {"precision": "float32"},
    },
    "no local views, two micro-batches": {
        "crops": {"global_size": 32, "local_views": 0},
        "accumulate": 2,
    },
    "recomputed": {"parallel": {"activation_checkpointing": True, "precision": "bfloat16"}},
}


@pytest.fixture
def card() -> Iterator[FakeCard]:
    with fake_card() as card:
        yield card


def recipe(**changes: object) -> Recipe:
    settings = {"model": MODEL, "parallel": {"precision": "bfloat16"}, "group_size": 2}
    return Recipe.model_validate(RECIPE | settings | changes)


def batch(recipe: Recipe, device: str = "cpu", patches: int = 16) -> Batch:
    """A loader's batch: views with everything that may be done to colours, and masks."""
    crops = recipe.crops.model_copy(update={"device": device, "grey": 0.5, "solarise": 0.5})
    draw, rng = Views(crops, 0), np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (IMAGES, 3, 40, 48), dtype=np.uint8))
    views = stack_views([draw(image, number, 0) for number, image in enumerate(images)])
    masks = recipe.masks and batch_masks(
        range(IMAGES), first=0, step=0, epochs=[0] * IMAGES, grid=(4, 4), group_size=2,
        seed=0, settings=recipe.masks,
    )  # fmt: skip
    places = loss_places(masks, 2 * IMAGES, patches)
    keys = [str(n) for n in range(IMAGES)]
    return Batch(0, 0, 0, keys, *views[:2], masks, views[2], [], *places)


def everywhere(system: System) -> list[Tensor]:
    """All tensors that a run holds on to, but AdamW's settings."""
    state = training_state(system.student, system.teacher, system.optimiser)
    moments = [tensor for kept in state["optimiser"].values() for tensor in kept.values()]
    centres = [c for centering in system.centerings for c in centering.state_dict().values()]
    return [*state["student"].values(), *state["teacher"].values(), *moments, *centres]


def micro_batches(system: System, device: str = "cpu") -> list[MicroBatch]:
    loaded = batch(system.recipe, device, system.patches)
    return [to_device(loaded, system.ranks.device) for _ in range(system.recipe.accumulate)]


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_a_loaded_batch_goes_to_the_card_whole(card: FakeCard, device: str) -> None:
    loaded = batch(recipe(crops=RECIPE["crops"] | {"device": device}), device)
    assert (loaded.photometric is not None) == (device == "gpu")
    views = to_device(loaded, CUDA)
    for tensor in (views.global_views, views.local_views, views.masks, views.index, views.weights):
        assert tensor.device == CUDA
    assert views.global_views.dtype == torch.float32
    assert views.global_views.shape == (2 * IMAGES, 3, 32, 32)
    assert len(views.index) == loaded.masks.sum() == len(views.weights)
    assert card.reads == {}, "the step would wait for its own input"


@pytest.mark.parametrize("case", STUDENTS)
def test_a_step_and_its_indicators_stay_on_the_card(card: FakeCard, case: str) -> None:
    system = build_system(recipe(**STUDENTS[case]), THERE)
    batches = micro_batches(system)
    card.reads.clear()
    report = optimiser_step(system, batches, VALUES, 0)
    assert card.reads == {}, "a step would wait for the card"
    assert not report.skipped
    assert report.losses
    assert card.reads == {"_read": 1}, "its figures come in one piece"
    assert all(tensor.device == CUDA for tensor in everywhere(system))
    assert report.features.device == CUDA
    assert {p.grad.device for p in system.student.parameters() if p.grad is not None} == {CUDA}
    assert {p.grad.dtype for p in system.student.parameters() if p.grad is not None} == {
        torch.float32
    }
    names = ("dino", "ibot", "infonce", "koleo")
    expected = {name for name in names if getattr(system.recipe.objectives, name)}
    assert set(report.losses) == {*expected, "loss"}
    measured = {"teacher_entropy", "feature_rank"} if system.centerings else {"feature_rank"}
    assert set(indicators(report.targets, report.features)) >= measured


def test_a_step_that_freezes_the_last_layer_stays_on_the_card(card: FakeCard) -> None:
    system = build_system(recipe(), THERE)
    values = Values(1e-3, 0.04, 0.9, 0.04, last_layer_frozen=True)
    optimiser_step(system, micro_batches(system), values, 0)
    assert system.student.dino_head.prototypes.grad is None
    assert all(tensor.device == CUDA for tensor in everywhere(system))


@pytest.mark.parametrize("centering", ["sinkhorn", "ema"])
def test_logits_in_tiles_stay_on_the_card(
    card: FakeCard, centering: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "DEVICE_KEPT", 0)
    monkeypatch.setattr(tiles, "DEVICE_TILE", 8 * HEAD["prototypes"])
    system = build_system(recipe(objectives={"centering": {"kind": centering}}), THERE)
    batches = micro_batches(system)
    card.reads.clear()
    report = optimiser_step(system, batches, VALUES, 0)
    assert card.reads == {}
    assert indicators(report.targets, report.features)["prototypes_won"] > 0


def test_products_are_bfloat16_and_weights_are_not(card: FakeCard) -> None:
    system = build_system(recipe(), THERE)
    (views,) = micro_batches(system)
    with autocast(system.precision, CUDA):
        found = system.teacher_called(views.global_views, masked_index=views.index)
    matrices = [x for some in (found.cls_logits, found.patch_logits) for x in some[:2]]
    assert {matrix.dtype for matrix in matrices} == {torch.bfloat16}
    assert {p.dtype for p in system.teacher.parameters()} == {torch.float32}


def test_what_a_checkpoint_saves_is_what_the_card_holds(card: FakeCard) -> None:
    system = build_system(recipe(objectives={"centering": {"kind": "ema"}}), THERE)
    state = snapshot(system, 3, {"broken": 0})
    assert {tensor.device for tensor in everywhere(system)} == {CUDA}
    assert state["centerings"]["0"]["centre"].device == CUDA


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_models(tmp_path_factory.mktemp("models"))


def distilled(teacher: str, batches: int) -> System:
    """A student of other patches than its teacher, and the anchors of a teacher without heads.

    These are taken of one or two batches.
    """
    student = MODEL | {"drop_path": 0, "patch_size": 16}
    student["options"] = student["options"] | {"embed_dim": 16}
    system = build_system(
        recipe(model=student, masks=None, distillation={"teacher": teacher}), THERE
    )
    frozen = system.frozen_teacher
    assert on_card(frozen)
    if frozen.has_anchors:
        views = micro_batches(system)[0].global_views
        views = views.repeat(-(-HEAD["prototypes"] // batches // len(views)), 1, 1, 1)
        with autocast(system.precision, CUDA):
            frozen.take_anchors(repeat(views), 0, THERE)
        assert on_card(frozen)
    return system


@pytest.mark.parametrize("teacher", WITH_TOKENS)
def test_what_a_frozen_teacher_says_stays_on_the_card(
    card: FakeCard, models: dict[str, str], teacher: str
) -> None:
    system = distilled(models[teacher], batches=1)
    assert system.frozen_teacher.has_anchors == (teacher != "run")
    (views,) = micro_batches(system)
    assert len(views.index) == 2 * IMAGES * 4
    card.reads.clear()
    with autocast(system.precision, CUDA):
        found = system.frozen_teacher(views.global_views, masked_index=views.index)
    assert {some.device for some in (found.cls, *found.whole())} == {CUDA}
    assert [len(logits) for logits in found.whole()] == [2 * IMAGES, len(views.index)]
    assert card.reads == {}


@pytest.mark.parametrize("teacher", ["run", "vit"])
def test_a_distillation_by_heads_or_anchors_stays_on_the_card(
    card: FakeCard, models: dict[str, str], teacher: str
) -> None:
    system = distilled(models[teacher], batches=2)
    batches = micro_batches(system)
    card.reads.clear()
    optimiser_step(system, batches, VALUES, 0)
    assert card.reads == {}
    assert all(tensor.device == CUDA for tensor in everywhere(system))
