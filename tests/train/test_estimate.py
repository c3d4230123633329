import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import train.estimate
from train.distributed.parallelise import autocast, parallelise
from train.distributed.ranks import Ranks
from train.distributed.settings import ParallelSettings
from train.estimate import Load, cost_of_image, estimate, memory_of_step
from train.model.network import build_network, make_teacher
from train.model.settings import HeadSettings, HeadsSettings, ModelSettings, ProjectorSettings
from train.objectives import tiles
from train.objectives.centering import SinkhornKnopp
from train.objectives.dino_loss import dino_loss
from train.objectives.ibot_loss import ibot_loss, mask_weights
from train.preview import load_of
from train.recipe import read_recipe
from train.student import new_network

PROJECT = Path(__file__).parents[2]
WIDTH, DEPTH, HEADS, PATCH, HIDDEN, BOTTLENECK, PROTOTYPES = 64, 2, 2, 8, 96, 32, 512
GLOBAL, LOCAL, LOCALS, IMAGES = 32, 16, 3, 4
LOAD = Load(images=IMAGES, global_size=GLOBAL, local_size=LOCAL, local_views=LOCALS)


def network(
    device="meta",
    *,
    masked=False,
    registers=0,
    shared=False,
    headless=False,
    projector=None,
    depth=DEPTH,
    **settings,
):
    options = {"embed_dim": WIDTH, "depth": depth, "num_heads": HEADS, "reg_tokens": registers}
    model = ModelSettings(
        name="vit_tiny_patch16_224", patch_size=PATCH, options=options, **settings
    )
    head = HeadSettings(prototypes=PROTOTYPES, hidden=HIDDEN, bottleneck=BOTTLENECK)
    ibot = head.model_copy(update={"prototypes": 256}) if masked and not shared else None
    heads = None if headless else HeadsSettings(dino=head, ibot=ibot, shared=shared)
    return build_network(
        model,
        heads,
        projector,
        masked=masked,
        infonce=headless or projector is not None,
        sizes=[GLOBAL, LOCAL],
        seed=0,
        device=device,
    )


def flops_of(network, load=LOAD):
    _, _, flops = cost_of_image(network, load)
    return flops


@pytest.fixture(scope="module")
def plain():
    """The estimate of a network without anything special."""
    return estimate(network(), LOAD)


def views(load, masks=None):
    local_views = torch.randn(load.local_views * load.images, 3, load.local_size, load.local_size)
    global_views = torch.randn(2 * load.images, 3, load.global_size, load.global_size)
    return (global_views, local_views, masks, None if masks is None else mask_weights(masks)[0])


def some_masks(load):
    patches = (load.global_size // PATCH) ** 2
    masks = torch.zeros(2 * load.images, patches, dtype=torch.bool)
    masks[: load.images, : patches // 3] = True
    return masks


def test_flops_are_those_of_the_formulas(plain):
    def forward(tokens):  # one view; all but its CLS token skip the last MLP
        patches = 2 * (tokens - 1) * 3 * PATCH**2 * WIDTH
        attention = 2 * tokens * 4 * WIDTH**2 + 2 * 2 * tokens**2 * WIDTH
        mlp = 2 * 2 * 4 * WIDTH**2
        return patches, DEPTH * attention + ((DEPTH - 1) * tokens + 1) * mlp

    head = 2 * (WIDTH * HIDDEN + HIDDEN**2 + HIDDEN * BOTTLENECK + BOTTLENECK * PROTOTYPES)
    patches, blocks = forward((GLOBAL // PATCH) ** 2 + 1)
    local_patches, local_blocks = forward((LOCAL // PATCH) ** 2 + 1)
    all_patches, all_blocks = (
        2 * of_global + LOCALS * of_local
        for of_global, of_local in ((patches, local_patches), (blocks, local_blocks))
    )
    flops = plain.flops
    assert flops["teacher"] == 2 * (patches + blocks)
    assert flops["student forward"] == all_patches + all_blocks
    assert flops["student backward"] == all_patches + 2 * all_blocks  # images need no gradient
    assert flops["heads"] == (2 + 3 * (2 + LOCALS)) * head
    assert flops["in all"] == sum(flops.values()) - flops["in all"]


@pytest.mark.parametrize("schedule", ["uniform", "linear"])
def test_the_flops_of_a_deep_network_are_those_of_all_its_blocks(schedule, monkeypatch):
    deep = network(depth=7, masked=True, drop_path=0.5, drop_path_schedule=schedule)
    load = replace(LOAD, masked=20)
    found = cost_of_image(deep, load)
    assert len(deep.backbone.vit.blocks) == 7
    monkeypatch.setattr(train.estimate, "_kind", id)  # no two blocks are equal
    assert found == cost_of_image(deep, load)


def test_without_heads_no_teacher_is_asked():
    found = estimate(network(headless=True), replace(LOAD, local_views=0))
    assert found.flops["teacher"] == found.flops["heads"] == found.memory["logits"] == 0
    assert found.flops["student forward"] > 0
    assert "teacher" not in found.image_tokens


@pytest.mark.parametrize("headless", [True, False])
def test_a_projector_counts_as_a_head(headless):
    settings = ProjectorSettings(hidden=HIDDEN, width=BOTTLENECK, layers=2)
    plain, found = (flops_of(network(headless=headless, projector=of)) for of in (None, settings))
    passes = (0 if headless else 2) + 3 * (2 + LOCALS)  # without heads no teacher is asked
    projector = 2 * (WIDTH * HIDDEN + HIDDEN * BOTTLENECK)
    assert found["heads"] - plain["heads"] == passes * projector
    assert found["student forward"] == plain["student forward"]
    assert found["student backward"] == plain["student backward"]


def test_stochastic_depth_and_masked_patches_change_the_flops(plain):
    plain = plain.flops
    deep = flops_of(network(drop_path=0.5))
    assert deep["student forward"] < 0.7 * plain["student forward"]
    assert deep["teacher"] == plain["teacher"]
    head = 2 * (WIDTH * HIDDEN + HIDDEN**2 + HIDDEN * BOTTLENECK + BOTTLENECK * 256)
    load = replace(LOAD, masked=20)
    masked = flops_of(network(masked=True), load)
    assert masked["heads"] - plain["heads"] == pytest.approx(4 * head * 20 / IMAGES)


def test_parameters_and_tokens_are_those_of_the_network():
    real = network("cpu", masked=True, registers=4)
    found = estimate(network(masked=True, registers=4), LOAD)
    assert found.parameters == {
        name: sum(p.numel() for p in getattr(real, name).parameters())
        for name in ("backbone", "dino_head", "ibot_head")
    }
    assert found.view_tokens == {"global": 5 + 16, "local": 5 + 4}
    assert found.image_tokens == {"student": 2 * 21 + 3 * 9, "teacher": 2 * 21}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", [{}, {"drop_path": 0.3, "layer_scale": 1e-5, "registers": 2}])
def test_activations_are_the_bytes_that_a_real_forward_pass_saves(precision, settings):
    masks = some_masks(LOAD)
    load = replace(LOAD, masked=int(masks.sum()), precision=precision)
    real = network("cpu", masked=True, **settings).train()
    storages = {p.untyped_storage().data_ptr(): 0 for p in real.parameters()}
    kept = []

    def pack(tensor):
        kept.append(tensor)
        storages.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        autocast(precision, torch.device("cpu")),
    ):
        real(*views(load, masks))
    memory = memory_of_step(network(masked=True, **settings), load)
    assert memory["activations"] == sum(storages.values())


def test_memory_follows_checkpointing_shards_and_accumulation():
    deep = network(depth=4)
    plain = memory_of_step(deep, LOAD)
    changed = {
        name: memory_of_step(deep, replace(LOAD, **{name: value}))
        for name, value in {"checkpointing": True, "shards": 2, "accumulate": 3}.items()
    }
    selective = memory_of_step(deep, replace(LOAD, checkpointing="selective"))
    kept = [m["activations"] for m in (changed["checkpointing"], selective, plain)]
    assert kept == sorted(kept)
    assert len(set(kept)) == 3
    assert changed["checkpointing"]["activations"] < 0.5 * plain["activations"]
    for name in ("weights", "teacher", "optimiser", "gradients"):
        assert changed["shards"][name] == plain[name] // 2
    more = changed["accumulate"]["logits"] - plain["logits"]
    # Vectors, kept shares and the float32 buffers of two more micro-batches.
    assert more == 2 * 2 * IMAGES * 4 * (BOTTLENECK + PROTOTYPES + 4 * PROTOTYPES)
    for memory in (plain, selective, *changed.values()):
        assert memory["in all"] == sum(memory.values()) - memory["in all"]


def measured_peak(load, masks):
    """Return the bytes that a real step holds at its peak, by torch's profiler."""
    student = network("cpu", masked=True).train()
    teacher = make_teacher(student)
    settings = ParallelSettings(activation_checkpointing=load.checkpointing)
    parallelise(student, teacher, settings, Ranks(0, 1, 0, torch.device("cpu")))
    optimiser = torch.optim.AdamW(student.parameters(), fused=True)
    (global_views, local_views, _, index), (_, weights) = views(load, masks), mask_weights(masks)
    centering = SinkhornKnopp(3)

    def step():
        with torch.no_grad(), autocast(load.precision, torch.device("cpu")):
            seen = teacher(global_views, masked_index=index)
        (cls_targets,) = centering.targets([seen.cls_logits], 0.05)
        (patch_targets,) = centering.targets([seen.patch_logits], 0.05)
        optimiser.zero_grad(set_to_none=True)
        with autocast(load.precision, torch.device("cpu")):
            outputs = student(global_views, local_views, masks, index)
        loss = dino_loss(outputs.cls_logits, cls_targets, global_views=2, temperature=0.1)
        loss = loss + ibot_loss(
            outputs.patch_logits, patch_targets, weights, crops=len(masks), temperature=0.1
        )
        loss.backward()
        optimiser.step()

    step()
    optimiser.zero_grad(set_to_none=True)
    lasting = [*student.parameters(), *teacher.parameters()]
    lasting += [moment for state in optimiser.state.values() for moment in state.values()]
    gc.disable()  # or what other tests left would be freed, and counted, meanwhile
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            step()
    finally:
        gc.enable()
    held = peak = sum(tensor.nbytes for tensor in lasting)
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@pytest.mark.parametrize(
    ("precision", "checkpointing", "tiled"),
    [
        (torch.float32, False, False),
        (torch.bfloat16, False, False),
        (torch.bfloat16, False, True),
        (torch.bfloat16, True, False),
        (torch.bfloat16, "selective", True),
    ],
)
def test_memory_is_near_the_measured_peak_of_a_step(precision, checkpointing, tiled, monkeypatch):
    if tiled:
        monkeypatch.setattr(tiles, "CPU_KEPT", 0)
        monkeypatch.setattr(tiles, "CPU_TILE", 16 * PROTOTYPES)
        monkeypatch.setattr(tiles, "CPU_BLOCK", 4 * PROTOTYPES)
    load = replace(LOAD, images=32, precision=precision, checkpointing=checkpointing)
    masks = some_masks(load)
    load = replace(load, masked=int(masks.sum()))
    guessed = memory_of_step(network(masked=True), load)["in all"]
    assert 0.9 < guessed / measured_peak(load, masks) < 1.25


def test_a_distilled_student_with_twelve_micro_batches_fits_eight_cards_of_80_gb(monkeypatch):
    monkeypatch.setenv("TEACHER", "runs/train/vitg14")
    recipe = read_recipe(PROJECT / "pipelines.yaml", "vits14-distilled", ["accumulate=12"])
    student = new_network(recipe, device="meta")
    load = load_of(recipe, student, 8, torch.device("cuda"))
    assert (load.images, load.masked) == (32, 2 * 32 * 256)
    whole = 2 * 2 * 131_072 * (12 * (64 + load.masked) + 32 * 10 + load.masked)
    assert whole > 104 * 2**30
    memory = memory_of_step(student, load)
    assert memory["logits"] < 4 * 2**30
    giant = 4 * 1.14e9  # the frozen teacher's weights
    assert memory["in all"] + giant < 0.25 * 80e9


def test_the_network_is_left_as_it_was():
    plain = network(masked=True).eval()
    estimate(plain, replace(LOAD, masked=8, checkpointing=True))
    assert not plain.training
    assert all(p.device.type == "meta" and p.grad is None for p in plain.parameters())
    assert not any(module._forward_hooks for module in plain.modules())


def test_the_table_names_every_figure():
    load = replace(LOAD, masked=8)
    found = estimate(network(masked=True, shared=True), load)
    table = found.table()
    for figures in (found.parameters, found.view_tokens, found.flops, found.memory):
        assert all(name in table for name in figures)
    assert table.count("\n") == 4
