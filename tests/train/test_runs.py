"""Whole runs of the real command: what they leave, and that being killed changes nothing."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
import timm
import torch
from click.testing import CliRunner
from forked import Forked
from safetensors.torch import load_file
from small_run import (
    IMAGES,
    command,
    lines,
    run_command,
    run_here,
    run_twofold,
    started,
    write_config,
    write_shards,
)

from shared.embedders.embedder import load, settings_for_folder
from train.cli import main
from train.weights.continuation import read_network

STEPS = 12


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_shards(folder / "shards")
    write_config(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> Path:
    said = run_command(command(place / "pipelines.yaml", place / "shards", place / "out"))
    assert "What it learned" in said
    return place / "out"


def wait_for(path: Path, process: Forked) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.log.read_text()
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)


def assert_same_run(out: Path, other: Path) -> None:
    assert lines(out) == lines(other)
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (out, other))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_leaves_what_the_contract_says(undisturbed: Path) -> None:
    steps = [line["step"] for line in lines(undisturbed) if "loss" in line]
    assert steps == list(range(STEPS))
    names = sorted(path.name for path in (undisturbed / "checkpoints").iterdir())
    assert names == ["step-0000008", "step-0000012"]
    assert not any("recognition" in line for line in lines(undisturbed))  # knn.every is null
    assert (undisturbed / "run.json").is_file()
    assert list((undisturbed / "tensorboard").glob("events*"))
    first = lines(undisturbed)[1]
    for name in (
        *("loss", "dino", "ibot", "koleo", "lr", "weight_decay", "momentum", "teacher_temperature"),
        *("gradient_norm/backbone", "gradient_norm/dino_head", "gradient_norm/ibot_head"),
        *("teacher_entropy", "prototype_usage", "kl_to_uniform", "feature_rank"),
    ):
        assert isinstance(first[name], float), name


def test_the_model_folder_is_timms_and_an_embedder(undisturbed: Path) -> None:
    model = timm.create_model(f"local-dir:{undisturbed / 'model'}", pretrained=True)
    assert model.num_features == 24
    assert load(settings_for_folder(undisturbed / "model"), threads=1).dim == 24


def test_a_finished_run_is_left_alone(place: Path, undisturbed: Path) -> None:
    before = (undisturbed / "metrics.jsonl").read_bytes()
    said = run_command(command(place / "pipelines.yaml", place / "shards", undisturbed))
    assert "nothing to do" in said
    assert (undisturbed / "metrics.jsonl").read_bytes() == before


# pitfalls 15 and 21
def test_a_killed_run_goes_on_as_if_nothing_had_been(place: Path, undisturbed: Path) -> None:
    more = ("--set", "data.workers=1")
    asked = command(place / "pipelines.yaml", place / "shards", place / "killed", *more)
    with started(asked, place / "killed.log") as process:
        wait_for(place / "killed" / "checkpoints" / "step-0000004", process)
        process.send_signal(signal.SIGKILL)
        process.said(-signal.SIGKILL)
    assert not (place / "killed" / "done.json").exists()
    run_command(asked)
    assert_same_run(place / "killed", undisturbed)


def test_a_run_that_is_asked_to_stop_saves_and_exits_cleanly(
    place: Path, undisturbed: Path
) -> None:
    out = place / "stopped"
    asked = command(place / "pipelines.yaml", place / "shards", out, "--set", "data.workers=1")
    with started(asked, place / "stopped.log") as process:
        wait_for(out / "checkpoints" / "step-0000004", process)
        process.send_signal(signal.SIGTERM)
        assert "goes on from there" in process.said()
    assert not (out / "done.json").exists()
    run_command(asked)
    assert_same_run(out, undisturbed)


# pitfall 15
def test_a_run_goes_on_with_another_number_of_processes(place: Path, tmp_path: Path) -> None:
    out = place / "grown"
    still = ["--set", "model.drop_path=0", "--set", "checkpoints.every=6"]
    still += ["--set", "group_size=8"]  # so that both processes hold half of each group
    asked = command(place / "pipelines.yaml", place / "shards", out, *still)
    with started(asked, place / "grown.log") as process:
        wait_for(out / "checkpoints" / "step-0000006", process)
        process.send_signal(signal.SIGTERM)
        process.said()
    before = lines(out)
    run_twofold([*asked, "--set", "parallel.strategy=fsdp"], tmp_path)
    alone = place / "alone"
    run_here(command(place / "pipelines.yaml", place / "shards", alone, *still))
    assert lines(out)[: len(before)] == before
    for ours, theirs in zip(lines(out), lines(alone), strict=True):
        if "loss" in ours:
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-3), ours["step"]


def test_broken_samples_are_counted_named_and_do_no_harm(place: Path, tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", {4: b"\xff\xd8\xffno picture", 9: b"", 10: b"text"})
    out = tmp_path / "out"
    more = ("--set", "knn.every=auto", "--set", "steps=5")  # an epoch and a bit
    said = run_here(command(place / "pipelines.yaml", shards, out, *more))
    assert "000000004" in said
    assert "broken images left out" in said
    assert [line["step"] for line in lines(out) if "recognition" in line] == [0, 5]
    last = lines(out)[-1] if "broken" in lines(out)[-1] else lines(out)[-2]
    assert last["broken"] > 0
    named = (out / "broken-0.txt").read_text()
    assert all(f"00000000{n}" in named or f"0000000{n}" in named for n in (4, 9))


def test_knn_is_scored_from_the_start_to_the_end(place: Path, tmp_path: Path) -> None:
    labelled = [f"knn.{name}={place / 'shards'}" for name in ("train", "test")]
    more = [
        text
        for value in ("steps=4", "knn.every=2", "knn.k=3", *labelled)
        for text in ("--set", value)
    ]
    said = run_here(command(place / "pipelines.yaml", place / "shards", tmp_path / "out", *more))
    scores = {line["step"]: line["knn"] for line in lines(tmp_path / "out") if "knn" in line}
    assert sorted(scores) == [0, 2, 4]
    assert all(0 <= score <= 1 for score in scores.values())
    assert "k-NN" in said


def test_what_is_learned_can_start_another_run(
    place: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    more = [
        "--init",
        str(undisturbed / "model"),
        "--set",
        "steps=1",
        "--set",
        "optimiser.clip=null",
    ]
    still = ["--set", "teacher.momentum=[1,1]"]
    run_here(command(place / "pipelines.yaml", place / "shards", out, *more, *still))
    ours, theirs = (load_file(f / "model" / "model.safetensors") for f in (out, undisturbed))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_stage_goes_on_from_student_teacher_and_heads_at_another_size(
    place: Path, undisturbed: Path, tmp_path: Path
) -> None:
    said = []
    for size, out in ((32, tmp_path / "same"), (48, tmp_path / "larger")):
        stage = ["steps=1", f"continue_from={undisturbed}", f"crops.global_size={size}"]
        still = ["teacher.momentum=[1,1]", "optimiser.base_lr=1.0e-12", "optimiser.min_lr=0"]
        more = [text for value in (*stage, *still) for text in ("--set", value)]
        run_here(command(place / "pipelines.yaml", place / "shards", out, *more))
        said.append(load_file(out / "model" / "model.safetensors"))
    before = load_file(undisturbed / "model" / "model.safetensors")
    same, larger = said
    assert all(torch.equal(same[name], before[name]) for name in before)
    assert larger["pos_embed"].shape[1] == 37
    assert torch.equal(larger["blocks.0.attn.qkv.weight"], before["blocks.0.attn.qkv.weight"])
    checkpoints = [out / "checkpoints" / "step-0000001" for out in (tmp_path / "same",)]
    ours = read_network(checkpoints[0], "student")["dino_head.prototypes"]
    theirs = read_network(undisturbed / "checkpoints" / "step-0000012", "student")
    torch.testing.assert_close(ours, theirs["dino_head.prototypes"], rtol=0, atol=1e-7)


def test_a_stage_with_nothing_to_go_on_from_is_refused_by_a_dry_run_too(
    place: Path, undisturbed: Path, tmp_path: Path
) -> None:
    for source, said in ((tmp_path, "no whole checkpoint"), (undisturbed / "model", "")):
        stage = ["--set", f"continue_from={source}", "--dry-run"]
        asked = command(place / "pipelines.yaml", place / "shards", tmp_path / "out", *stage)
        result = CliRunner().invoke(main, asked)
        assert result.exit_code == 2, result.output
        assert said in result.output


def test_a_run_that_went_further_is_not_taken_for_a_shorter_one(
    place: Path, undisturbed: Path
) -> None:
    before = (undisturbed / "done.json").read_bytes(), (undisturbed / "run.json").read_bytes()
    asked = command(place / "pipelines.yaml", place / "shards", undisturbed, "--set", "steps=5")
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 2, result.output
    assert "has taken 12 steps, more than these 5" in result.output.splitlines()[-1]
    assert before == (
        (undisturbed / "done.json").read_bytes(),
        (undisturbed / "run.json").read_bytes(),
    )


# pitfall 16
def test_a_run_stops_after_several_steps_that_are_not_finite_and_names_the_images(
    place: Path, tmp_path: Path
) -> None:
    wild = ["optimiser.base_lr=1.0e+30", "optimiser.warmup_epochs=0", "optimiser.clip=null"]
    more = [text for value in wild for text in ("--set", value)]
    out = tmp_path / "out"
    asked = command(place / "pipelines.yaml", place / "shards", out, *more)
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 2, result.output
    assert "in a row" in result.output
    assert "base_lr" in result.output.splitlines()[-1]
    noted = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert [line["step"] for line in noted[-5:]] == list(
        range(noted[-5]["step"], noted[-5]["step"] + 5)
    )
    assert all(len(line["keys"]) == 8 and line["not_finite"] for line in noted)


def test_beginning_anew_keeps_what_was_there(place: Path, tmp_path: Path) -> None:
    asked = command(
        place / "pipelines.yaml", place / "shards", tmp_path / "out", "--set", "steps=1"
    )
    run_here(asked)
    run_here([*asked, "--set", "seed=1", "--resume", "never"])
    assert (tmp_path / "out" / "earlier-1" / "model" / "model.safetensors").is_file()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["recipe"]["seed"] == 1


def test_a_dry_run_tells_and_touches_nothing(place: Path, tmp_path: Path) -> None:
    asked = command(place / "pipelines.yaml", place / "shards", tmp_path / "out", "--dry-run")
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 0, result.output
    for word in ("prototypes: 32", "parameters", "tokens", "FLOP", "memory"):
        assert word in result.output, word
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--recipe", "smal"], "small"),
        (["--set", "batchsize=8"], "batch_size"),
        (["--set", f"batch_size={4 * IMAGES}"], f"{IMAGES} images"),
        (["--set", "crops.global_size=30"], "multiple of"),
        (["--shards", "nowhere"], "nowhere"),
        (["--init", "nowhere"], "nowhere"),
        (["--set", "model.name=resnet50"], "resnet50"),
        (["--set", "optimiser.warmup_epochs=99"], "warmup_epochs"),
        (["--set", "knn.every=5"], "knn"),
        (["--config", "none.yaml"], "none.yaml"),
    ],
)
def test_a_wrong_setting_fails_at_once_in_one_line(
    place: Path, tmp_path: Path, changes: list[str], said: str
) -> None:
    asked = command(place / "pipelines.yaml", place / "shards", tmp_path / "out", *changes)
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 2, result.output
    (line,) = result.output.strip().splitlines()
    assert line.startswith("lvd-train: ")
    assert said in line


def test_an_out_with_other_settings_is_refused(place: Path, undisturbed: Path) -> None:
    asked = command(place / "pipelines.yaml", place / "shards", undisturbed, "--set", "seed=3")
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 2
    assert "seed=0" in result.output
    assert "--resume never" in result.output


# "DINO (2021), iBOT and DINOv2 by recipe"
@pytest.mark.parametrize(
    "changes",
    [
        ["masks=null", "heads.ibot=null", "objectives.ibot=0", "objectives.koleo=0",
         "objectives.centering.kind=ema"],
        ["heads.ibot=null", "heads.shared=true", "objectives.koleo=0",
         "objectives.centering.kind=ema"],
        ["objectives.dino=0", "objectives.koleo_estimator=squared_cosine", "accumulate=2"],
        ["crops.local_views=0", "crops.device=gpu", "data.workers=0"],
        ["objectives.dino=0", "objectives.ibot=0", "objectives.infonce=1", "masks=null",
         "heads=null", "crops.local_views=0", "crops.edits={}"],
        ["objectives.dino=0", "objectives.ibot=0", "objectives.infonce=1", "masks=null",
         "heads=null", "projector={hidden: 16, width: 8}"],
        ["objectives.infonce=0.5"],
    ],
    ids=["dino", "ibot", "patches-only", "no-locals", "infonce-alone", "infonce-projected",
         "infonce-beside"],
)  # fmt: skip
def test_every_objective_can_be_switched(place: Path, tmp_path: Path, changes: list[str]) -> None:
    more = [text for value in ("steps=2", *changes) for text in ("--set", value)]
    run_here(command(place / "pipelines.yaml", place / "shards", tmp_path / "out", *more))
    losses = [line for line in lines(tmp_path / "out") if "loss" in line]
    assert len(losses) == 2
    assert all(line["loss"] == line["loss"] for line in losses)
