"""Networks that no process builds whole begin with the values of those that one does."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from forked import run_ranks
from safetensors.torch import load_file
from small_run import RECIPE
from torch import nn
from torch.distributed.tensor import DTensor

from train.distributed.ranks import Ranks, process_group
from train.model.deferred import DeferredInit
from train.model.model_folder import write_model_folder
from train.model.network import build_network
from train.model.settings import HeadSettings, HeadsSettings, ModelSettings
from train.persistence.checkpoints import save
from train.recipe import Recipe
from train.snapshot import restore, snapshot, write_model
from train.student import new_network
from train.system import System, build_system
from train.weights.continuation import read_network

ALONE = Ranks(0, 1, 0, torch.device("cpu"))
SHARED_OUT = {"strategy": "hsdp", "shard_group": 2, "device": "cpu", "precision": "float32"}


def recipe(seed: int = 0, **changes: object) -> Recipe:
    model = RECIPE["model"] | {"options": RECIPE["model"]["options"] | {"depth": 1}}
    own = {"model": model, "parallel": SHARED_OUT, "seed": seed}
    return Recipe.model_validate(RECIPE | own | changes)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_small_patch16_224", {"qk_norm": True}),
        ("vit_small_patch14_reg4_dinov2", {}),
        ("vit_giant_patch14_dinov2", {"num_heads": 3, "mlp_ratio": 4.0}),
    ],
)
def test_a_deferred_network_has_the_values_of_one_that_is_built_whole(name, options):
    heads = HeadsSettings(dino=HeadSettings(prototypes=20, hidden=8, bottleneck=4))
    shape = {"embed_dim": 24, "depth": 2, "num_heads": 2}
    settings = ModelSettings(name=name, patch_size=8, options=shape | options, layer_scale=0.1)

    def new(deferred: DeferredInit | None = None) -> nn.Module:
        return build_network(settings, heads, masked=True, sizes=[32], seed=5, deferred=deferred)

    before = torch.get_rng_state()
    deferred, whole = DeferredInit(), new()
    network = new(deferred)
    assert all(p.is_meta for p in network.backbone.parameters())
    values = deferred.values(network)
    network.to("meta")
    for parameter, expected in reversed(list(whole.named_parameters())):
        assert torch.equal(values[parameter](), expected), parameter
    assert torch.equal(torch.get_rng_state(), before)


def same(network: nn.Module, whole: nn.Module) -> bool:
    theirs = whole.state_dict()
    ours = {
        name: p.full_tensor() if isinstance(p, DTensor) else p
        for name, p in network.state_dict().items()
    }
    return ours.keys() == theirs.keys() and all(
        torch.equal(value, theirs[name]) for name, value in ours.items()
    )


def both_same(system: System, alone: System) -> bool:
    return same(system.student, alone.student) and same(system.teacher, alone.teacher)


def whole_system(start_from: str | None = None, **changes: object) -> System:
    """What one process builds by itself."""
    settings = recipe(**changes, parallel=SHARED_OUT | {"strategy": "ddp"})
    return build_system(settings, ALONE, start_from)


def held(system: System) -> float:
    """The share of the student's numbers that this process holds."""
    parameters = list(system.student.parameters())
    return sum(p.to_local().numel() for p in parameters) / sum(p.numel() for p in parameters)


def in_each_process(folder: Path) -> None:
    model, out = str(folder / "given"), folder / "checkpoints"
    with process_group("cpu") as ranks:
        fresh = build_system(recipe(), ranks)
        found = {
            "fresh": both_same(fresh, whole_system()),
            "held": held(fresh),
            "given": both_same(
                build_system(recipe(), ranks, model), whole_system(start_from=model)
            ),
        }
        with torch.no_grad():
            for parameter in fresh.teacher.parameters():
                parameter.mul_(2)
        saved = save(out, 3, snapshot(fresh, 3, Counter()), 1, ranks)
        resumed = build_system(recipe(seed=9), ranks, fresh=False)
        found["step"] = restore(resumed, Counter(), saved)
        alone = whole_system(seed=9)
        restore(alone, Counter(), saved)
        found["resumed"] = both_same(resumed, alone)
        going_on = {"continue_from": str(saved), "crops": {"global_size": 48, "local_views": 0}}
        found["continued"] = both_same(
            build_system(recipe(**going_on), ranks), whole_system(**going_on)
        )
        write_model(resumed, folder / "model")
    (folder / f"{ranks.rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four processes found, two shares of each of two copies, and the model they wrote."""
    folder = tmp_path_factory.mktemp("shares")
    given = new_network(recipe(seed=4))
    write_model_folder(given.backbone.state_dict(), recipe().model, 32, folder / "given")
    run_ranks(in_each_process, folder, folder=folder, ranks=4)
    return folder


@pytest.fixture(scope="module")
def found(place: Path) -> list[dict]:
    return [json.loads((place / f"{rank}.json").read_text()) for rank in range(4)]


@pytest.mark.parametrize("begun", ["fresh", "given", "resumed", "continued"])
def test_shares_begin_with_the_values_of_a_network_that_is_built_whole(
    found: list[dict], begun: str
) -> None:
    assert all(each[begun] for each in found)


def test_each_process_holds_its_share(found: list[dict]) -> None:
    assert all(each["held"] < 0.6 for each in found)
    assert all(each["step"] == 3 for each in found)


def test_the_model_is_the_saved_teacher(place: Path) -> None:
    written = load_file(place / "model" / "model.safetensors")
    teacher = read_network(place / "checkpoints" / "step-0000003", "teacher")
    for name, value in written.items():
        assert torch.equal(value, teacher[f"backbone.vit.{name}"])
