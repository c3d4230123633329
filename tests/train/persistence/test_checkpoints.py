"""Checkpoints are whole or passed over, and any number of processes reads what another wrote."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from forked import run_ranks
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.tensor import DTensor

from shared.errors import LvdError
from train.distributed.parallelise import parallelise
from train.distributed.ranks import Ranks, any_rank, process_group
from train.distributed.settings import ParallelSettings
from train.model.network import build_network, make_teacher
from train.model.settings import HeadSettings, HeadsSettings, ModelSettings
from train.optimisation.groups import make_optimiser, parameter_groups
from train.optimisation.settings import OptimiserSettings
from train.persistence.checkpoints import PARTIAL, load, newest, save, training_state
from train.persistence.marks import MANIFEST

PROCESSES = 2
ALONE = Ranks(0, 1, 0, torch.device("cpu"))
DAMAGE = {
    "truncated": lambda path: os.truncate(weights(path), weights(path).stat().st_size - 1),
    "missing": lambda path: weights(path).unlink(),
    "altered": lambda path: alter(weights(path)),
    "without manifest": lambda path: (path / MANIFEST).unlink(),
    "with half a manifest": lambda path: os.truncate(path / MANIFEST, 20),
    "unfinished": lambda path: path.rename(path.with_name(path.name + PARTIAL)),
}


def weights(path: Path) -> Path:
    return next(path.glob("*.safetensors"))


def alter(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def new_run(strategy: str, ranks: Ranks, seed: int) -> dict:
    """The state of a run whose every tensor is drawn from `seed`, the same on every process."""
    head = HeadSettings(prototypes=49, hidden=33, bottleneck=16)
    model = ModelSettings(
        name="vit_tiny_patch16_224",
        patch_size=8,
        options={"embed_dim": 24, "depth": 1, "num_heads": 2},
        layer_scale=0.1,
    )
    heads = HeadsSettings(dino=head, ibot=head)
    student = build_network(model, heads, masked=True, sizes=[32], seed=seed)
    teacher = make_teacher(student)
    generator = torch.Generator().manual_seed(seed)
    for parameter in (*student.parameters(), *teacher.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=generator)
    drawn = {
        name: {k: torch.randn(p.shape, generator=generator) for k in ("exp_avg", "exp_avg_sq")}
        for name, p in student.named_parameters()
    }
    parallelise(student, teacher, ParallelSettings(strategy=strategy), ranks)
    settings = OptimiserSettings(base_lr=1e-3, layer_decay=0.9)
    optimiser = make_optimiser(parameter_groups(student, settings), settings)
    state = training_state(student, teacher, optimiser)
    for number, (name, moments) in enumerate(state["optimiser"].items()):
        moments["step"].fill_(seed + number)
        for key, values in drawn[name].items():
            put(values, moments[key])
    centre = nn.BatchNorm1d(5)
    centre.running_mean.copy_(torch.randn(5, generator=generator))
    state["centerings"] = {"0": centre.state_dict(), "1": {}}
    state["progress"] = {"images": 10 * seed, f"broken {seed}": 2}
    return state


def put(values: Tensor, into: Tensor) -> None:
    if isinstance(into, DTensor):
        from torch.distributed.tensor import distribute_tensor

        values = distribute_tensor(values, into.device_mesh, into.placements)
    into.copy_(values)


def flat(state: dict, prefix: str = "") -> dict[str, object]:
    """Every tensor and value of a state, gathered, by its path."""
    found: dict[str, object] = {}
    for key, value in state.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}/")
        else:
            found[prefix + key] = value.full_tensor() if isinstance(value, DTensor) else value
    return found


def equal(ours: dict, theirs: dict) -> bool:
    ours, theirs = flat(ours), flat(theirs)
    return ours.keys() == theirs.keys() and all(
        torch.equal(value, theirs[name]) if isinstance(value, Tensor) else value == theirs[name]
        for name, value in ours.items()
    )


def in_each_process(folder: Path) -> None:
    with process_group("cpu") as ranks:
        expected = new_run("ddp", ALONE, seed=1)
        found = {}
        for strategy in ("ddp", "fsdp"):
            state = load(folder / "by one" / "step-0000007", new_run(strategy, ranks, seed=2))
            found[f"{strategy} reads one"] = equal(state, expected)
            path = save(folder / f"by {strategy}", 8, state, 3, ranks)
            found[f"{strategy} files"] = len(list(path.glob("*.safetensors")))
        for strategy, other in (("ddp", "fsdp"), ("fsdp", "ddp")):
            state = new_run(strategy, ranks, seed=3)
            state = load(folder / f"by {other}" / "step-0000008", state)
            found[f"{strategy} reads {other}"] = equal(state, expected)
        if ranks.first:
            alter(weights(save_again(folder)))
        any_rank(False)
        found["newest"] = str(newest(folder / "by one again"))
        other = {"weights": torch.zeros(3, 3 + ranks.rank)}
        try:
            save(folder / "by one" / "step-0000007" / MANIFEST, 1, other, 3, ranks)
        except LvdError as error:
            found["error"] = str(error)
        everywhere = [not any_rank(not value) for value in found.values()]
    if ranks.first:
        (folder / "found.json").write_text(
            json.dumps(dict(zip(found, zip(found.values(), everywhere, strict=True), strict=True)))
        )


def save_again(folder: Path) -> Path:
    """Leave two checkpoints of one process; return the newer."""
    again = folder / "by one again"
    shutil.copytree(folder / "by one" / "step-0000007", again / "step-0000007")
    return Path(shutil.copytree(again / "step-0000007", again / "step-0000008"))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """What two processes found in the checkpoint of one, and the folder with theirs."""
    folder = tmp_path_factory.mktemp("checkpoints")
    save(folder / "by one", 7, new_run("ddp", ALONE, seed=1), 3, ALONE)
    run_ranks(in_each_process, folder, folder=folder)
    return json.loads((folder / "found.json").read_text()), folder


# pitfall 15
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_read_what_one_wrote(two_processes: tuple, strategy: str) -> None:
    assert two_processes[0][f"{strategy} reads one"] == [True, True]


# pitfall 15
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_one_process_reads_what_two_wrote(two_processes: tuple, strategy: str) -> None:
    path = two_processes[1] / f"by {strategy}" / "step-0000008"
    state = load(path, new_run("ddp", ALONE, seed=4))
    assert equal(state, new_run("ddp", ALONE, seed=1))


# pitfall 15
def test_ddp_and_fsdp_read_each_other(two_processes: tuple) -> None:
    assert two_processes[0]["ddp reads fsdp"] == [True, True]
    assert two_processes[0]["fsdp reads ddp"] == [True, True]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_every_process_writes_its_part(two_processes: tuple, strategy: str) -> None:
    assert two_processes[0][f"{strategy} files"][0] == PROCESSES
    path = two_processes[1] / f"by {strategy}" / "step-0000008"
    sizes = [file.stat().st_size for file in path.glob("*.safetensors")]
    assert max(sizes) < 0.7 * sum(sizes)


def test_all_processes_agree_on_the_newest_whole_one(two_processes: tuple) -> None:
    path, everywhere = two_processes[0]["newest"]
    assert path.endswith("step-0000007")
    assert everywhere


def test_a_failed_save_is_said_by_every_process(two_processes: tuple) -> None:
    said, everywhere = two_processes[0]["error"]
    assert "no checkpoint" in said
    assert everywhere


def test_nothing_in_a_checkpoint_is_a_pickle(two_processes: tuple) -> None:
    for path in two_processes[1].glob("by */step-*"):
        ends = {file.suffix for file in path.iterdir()}
        assert ends == {".json", ".safetensors"}


def tiny(step: int) -> dict:
    return {"weights": torch.full((4,), float(step)), "progress": {"images": step}}


def saved(folder: Path, *steps: int, keep: int = 3) -> list[Path]:
    return [save(folder, step, tiny(step), keep, ALONE) for step in steps]


def test_what_is_saved_comes_back_in_place(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 5)
    ours = tiny(0)
    state = load(path, ours)
    assert state["weights"] is ours["weights"]
    assert state["weights"].tolist() == [5.0] * 4
    assert state["progress"] == {"images": 5}


def test_large_states_are_cut_into_several_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.persistence.checkpoints.FILE_BYTES", 100)
    state = {str(number): torch.full((10,), float(number)) for number in range(9)}
    path = save(tmp_path, 1, state, 3, ALONE)
    assert len(list(path.glob("*.safetensors"))) > 2
    state = load(path, {name: torch.zeros(10) for name in state})
    assert all((tensor == float(name)).all() for name, tensor in state.items())


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_torn_checkpoint_is_passed_over_with_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    _, older, torn = saved(tmp_path, 1, 2, 3)
    DAMAGE[damage](torn)
    assert newest(tmp_path) == older
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ")
    assert "step-0000003" in line
    assert "step 2" in line


@pytest.mark.parametrize("damage", DAMAGE)
def test_without_a_whole_checkpoint_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    DAMAGE[damage](saved(tmp_path, 3)[0])
    assert newest(tmp_path) is None
    assert "step-0000003" in capsys.readouterr().err


def test_a_run_that_has_not_saved_says_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert newest(tmp_path / "checkpoints") is None
    assert not capsys.readouterr().err


def test_the_newest_is_by_number_not_by_name(tmp_path: Path) -> None:
    *_, last = saved(tmp_path, 9_999_999, 10_000_000)
    assert newest(tmp_path) == last


def test_only_the_newest_stay(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, 4, 5, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000004", "step-0000005"]


def test_a_torn_one_takes_no_whole_ones_place(tmp_path: Path) -> None:
    first, second = saved(tmp_path, 1, 2)
    os.truncate(weights(second), 10)
    saved(tmp_path, 3, keep=2)
    assert first.exists()
    assert not second.exists()


def test_what_was_just_written_stays_even_beside_later_steps(tmp_path: Path) -> None:
    saved(tmp_path, 7, 8, 9)
    (written,) = saved(tmp_path, 5, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == [written.name]


def test_a_step_can_be_written_again(tmp_path: Path) -> None:
    (torn,) = saved(tmp_path, 4)
    DAMAGE["truncated"](torn)
    state = {"weights": torch.full((4,), 44.0), "progress": {"images": 44}}
    path = save(tmp_path, 4, state, 3, ALONE)
    assert load(path, tiny(0))["progress"] == {"images": 44}
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000004"]


def test_a_save_that_was_killed_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (older,) = saved(tmp_path, 1)

    class KilledError(BaseException):
        pass

    def killed(*_: object) -> None:
        raise KilledError

    (tmp_path / ".step-0000000").mkdir()  # of a removal that was killed
    monkeypatch.setattr("train.persistence.checkpoints._commit", killed)
    with pytest.raises(KilledError):
        saved(tmp_path, 2)
    monkeypatch.undo()
    assert newest(tmp_path) == older
    saved(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000001", "step-0000003"]


def test_a_full_disk_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (older,) = saved(tmp_path, 1)

    @contextmanager
    def on_a_full_disk(self: FileSystem, path: Path, mode: str):
        with Path("/dev/full").open(mode) as stream:
            yield stream

    monkeypatch.setattr(FileSystem, "create_stream", on_a_full_disk)
    with pytest.raises(LvdError, match="no space left") as caught:
        saved(tmp_path, 2)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert newest(tmp_path) == older


@pytest.mark.parametrize(
    "other",
    [{"weights": torch.zeros(5)}, {}, {**tiny(0), "more": torch.zeros(1)}],
    ids=["shape", "fewer", "more"],
)
def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path, other: dict) -> None:
    (path,) = saved(tmp_path, 1)
    with pytest.raises(LvdError, match="other settings") as caught:
        load(path, other)
    assert "\n" not in str(caught.value)
