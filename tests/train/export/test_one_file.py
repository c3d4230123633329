"""A sharded checkpoint in one file is the checkpoint, and training goes on from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from shared.errors import LvdError
from train.distributed.ranks import Ranks
from train.export import one_file
from train.export.formats import write_export
from train.export.one_file import write_one_file
from train.persistence.checkpoints import save
from train.persistence.marks import ONE_FILE
from train.recipe import Recipe
from train.student import new_network
from train.weights.continuation import load_networks
from train.weights.trained import Trained, find_trained


@pytest.fixture(scope="module")
def exported(sharded_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one export of each format that keeps tensors as they are."""
    folder = tmp_path_factory.mktemp("exported")
    for form in ("heads", "single"):
        write_export(sharded_run, folder / form, form)
    return folder


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def by_hand(checkpoint: Path) -> dict[str, Tensor]:
    """The tensors of a sharded checkpoint, put together without torch.distributed."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())["tensors"]
    whole = {name: torch.full(known["shape"], torch.nan) for name, known in manifest.items()}
    for file in checkpoint.glob("*.safetensors"):
        with safe_open(file, "pt") as shard:
            offsets = json.loads(shard.metadata()["DCP_SHARDING_INFO"])
            for name in shard.keys():  # noqa: SIM118
                piece, begin = shard.get_tensor(name), offsets[name]["saved_offsets"]
                ends = zip(begin, piece.shape, strict=True)
                whole[name][tuple(slice(b, b + n) for b, n in ends)] = piece
    return whole


def test_one_file_holds_every_tensor_of_all_processes(sharded_run: Path, exported: Path) -> None:
    checkpoint = sharded_run / "checkpoints" / "step-0000002"
    found, expected = load_file(exported / "single" / ONE_FILE), by_hand(checkpoint)
    assert equal(found, expected)
    assert {name.partition("/")[0] for name in found} == {
        *("student", "teacher", "optimiser", "centerings"),
    }
    heads = load_file(exported / "heads" / ONE_FILE)
    networks = ("student/", "teacher/")
    assert equal(heads, {k: v for k, v in expected.items() if k.startswith(networks)})
    for folder in (exported / "single", exported / "heads"):
        config = json.loads((folder / "config.json").read_text())
        assert (config["step"], config["values"]["progress.images"]) == (2, 16)
        assert config["recipe"] == json.loads((sharded_run / "run.json").read_text())["recipe"]
        with safe_open(folder / ONE_FILE, "pt") as file:
            assert json.loads(file.metadata()["config.json"]) == config


@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("form", ["heads", "single"])
def test_continuing_from_an_export_is_continuing_from_the_checkpoint(
    sharded_run: Path, exported: Path, form: str, size: int
) -> None:
    tree = find_trained(sharded_run).recipe.model_dump()
    recipe = Recipe.model_validate(tree | {"crops": tree["crops"] | {"global_size": size}})
    states = []
    for source in (sharded_run, exported / form):
        networks = {role: new_network(recipe) for role in ("student", "teacher")}
        load_networks(source, networks)
        states.append({role: network.state_dict() for role, network in networks.items()})
    for role in ("student", "teacher"):
        assert equal(states[0][role], states[1][role])
    loaded = find_trained(exported / form).network("student").state_dict()
    assert loaded.keys() == states[0]["student"].keys()
    assert size != 32 or equal(loaded, states[0]["student"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"model.options": {"embed_dim": 24, "depth": 2, "num_heads": 3, "reg_tokens": 2}},
            "heads",
        ),
        (
            {"model.options": {"embed_dim": 24, "depth": 3, "num_heads": 2, "reg_tokens": 2}},
            "depth",
        ),
        ({"heads.dino": {"prototypes": 40, "hidden": 32, "bottleneck": 16}}, "prototypes"),
        ({"heads.ibot": None, "heads.shared": True}, "ibot_head"),
    ],
    ids=["num_heads", "depth", "prototypes", "shared"],
)
def test_continuing_with_other_settings_is_refused_in_one_line(
    sharded_run: Path, exported: Path, settings: dict, said: str
) -> None:
    tree = find_trained(sharded_run).recipe.model_dump()
    for key, value in settings.items():
        section, _, name = key.partition(".")
        tree[section] |= {name: value}
    student = new_network(Recipe.model_validate(tree))
    for source in (sharded_run, exported / "heads"):
        with pytest.raises(LvdError, match=said) as caught:
            load_networks(source, {"student": student})
        assert "\n" not in str(caught.value)
        assert f"continue_from {source}" in str(caught.value)


def test_a_torn_export_is_refused_in_one_line(exported: Path, tmp_path: Path) -> None:
    torn = Path(shutil.copytree(exported / "heads", tmp_path / "torn"))
    data = (torn / ONE_FILE).read_bytes()
    (torn / ONE_FILE).write_bytes(data[: len(data) // 2])
    trained = find_trained(torn)
    for load in (
        lambda: trained.network("teacher"),
        lambda: load_networks(torn, {"student": new_network(trained.recipe)}),
    ):
        with pytest.raises(LvdError, match="no whole checkpoint") as caught:
            load()
        assert "\n" not in str(caught.value)
        assert str(torn) in str(caught.value)


def test_one_file_takes_any_type_and_is_written_in_portions(
    sharded_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {
        "a": torch.arange(7, dtype=torch.uint8),
        "b": torch.randn(5, 3),
        "c": {"d": torch.tensor(4), "e": torch.randn(3).bfloat16(), "f": torch.zeros(0, 4)},
        "g": torch.tensor([True, False, True]),
        "h": torch.randn(3, dtype=torch.float64),
    }
    path = save(tmp_path / "checkpoints", 1, state, 1, Ranks(0, 1, 0, torch.device("cpu")))
    trained = Trained(path, find_trained(sharded_run).recipe, 1)
    for name, limit in (("whole", 2**28), ("portions", 40)):
        monkeypatch.setattr(one_file, "FILE_BYTES", limit)
        (tmp_path / name).mkdir()
        write_one_file(trained, tmp_path / name, ("",))
    whole, portions = (tmp_path / name / ONE_FILE for name in ("whole", "portions"))
    assert whole.read_bytes() == portions.read_bytes()
    inner = state.pop("c")
    expected = state | {f"c/{name}": value for name, value in inner.items()}
    assert equal(load_file(portions), expected)


def test_one_file_holds_few_tensors_in_memory_at_a_time(
    sharded_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []

    def read(path: Path, tensors: dict[str, Tensor], **how: bool) -> None:
        held.append(sum(tensor.nbytes for tensor in tensors.values()))
        read_tensors(path, tensors, **how)

    read_tensors = one_file.read_tensors
    monkeypatch.setattr(one_file, "read_tensors", read)
    monkeypatch.setattr(one_file, "FILE_BYTES", 20_000)
    write_export(sharded_run, tmp_path / "out", "single")
    assert max(held) <= 20_000
    assert len(held) >= sum(held) // 20_000
