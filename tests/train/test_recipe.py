"""Recipes: those we ship, those that extend others, and what is said of wrong ones."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from shared.config import flat, load_yaml
from shared.errors import LvdError
from train.recipe import read_recipe
from train.recipe_tree import describe_origin
from train.student import new_network

SHIPPED = Path(__file__).parents[2] / "pipelines.yaml"
NAMES = sorted(yaml.safe_load(SHIPPED.read_text())["recipes"])
PUBLISHED = ["dino-vits16", "ibot-vits16", "vitg14", "vitl14", "vitl16-short"]
RELEASED = ["vitl14-released", "vitl16-short-released"]


@pytest.fixture(scope="module", autouse=True)
def _read_once() -> Iterator[None]:
    """Parse each file once: the shipped one takes longer than most tests of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.recipe_tree.load_yaml", cache(load_yaml))
        yield


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_recipe_builds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTINUE_FROM", "runs/train/larger")
    monkeypatch.setenv("TEACHER", "runs/train/larger")
    recipe = read_recipe(SHIPPED, name)
    assert recipe.note
    network = new_network(recipe, device="meta")
    assert (network.dino_head is not None) == recipe.objectives.taught
    assert (network.ibot_head is not None) == (
        recipe.objectives.ibot > 0 and not recipe.heads.shared
    )
    recipe.micro_batch(1)
    recipe.schedules(data_epoch=1250)


def test_the_shipped_recipes_are_those_that_were_promised() -> None:
    own = {"tiny", "cifar", "vits16", "vitb14", "vits16-few-gpus", "vitb14-few-gpus"}
    stages = {"tiny-highres", "cifar-highres", "vitl14-highres"}
    students = {"tiny-distilled", "cifar-distilled"}
    students |= {f"vit{size}14-distilled" for size in "sbl"}
    assert own | stages | students | {*PUBLISHED, *RELEASED} <= set(NAMES)


@pytest.mark.parametrize("name", [*PUBLISHED, *RELEASED, "vits14-distilled"])
def test_the_note_of_a_published_recipe_says_what_remains_different(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHER", "runs/train/vitg14")
    note = read_recipe(SHIPPED, name).note
    assert "remains different" in note or "vitl16-short" in note


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith(("vit", "dino", "ibot"))])
def test_the_note_of_a_recipe_for_cards_says_which_it_assumes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHER", "runs/train/vitg14")
    monkeypatch.setenv("CONTINUE_FROM", "runs/train/vitl14")
    note = read_recipe(SHIPPED, name).note
    assert "Assumes" in note or "GPUs" in note


@pytest.mark.parametrize(
    ("name", "key"),
    [("tiny-highres", "continue_from"), ("tiny-distilled", "distillation.teacher")],
)
def test_what_a_recipe_leaves_to_the_user_is_asked_for_in_one_line(
    name: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("CONTINUE_FROM", "TEACHER"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(LvdError, match=f"--set {key}=") as raised:
        read_recipe(SHIPPED, name)
    assert "\n" not in str(raised.value)
    assert read_recipe(SHIPPED, name, [f"{key}=somewhere"])


def test_the_high_resolution_stage_is_the_published_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTINUE_FROM", "runs/train/vitl14")
    before, recipe = (read_recipe(SHIPPED, name) for name in ("vitl14", "vitl14-highres"))
    assert (recipe.steps, recipe.crops.global_size, recipe.model.image_size) == (10_000, 518, 518)
    assert recipe.optimiser.base_lr < before.optimiser.base_lr
    steps, epoch_steps = recipe.length(data_epoch=1250)
    assert epoch_steps * recipe.optimiser.warmup_epochs == pytest.approx(steps * 80 / 500)
    assert recipe.teacher == before.teacher


def test_a_distilled_student_sees_everything_and_drops_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TEACHER", "runs/train/vitg14")
    recipe = read_recipe(SHIPPED, "vits14-distilled")
    assert recipe.masks is None
    assert recipe.model.drop_path == 0
    assert recipe.objectives.ibot > 0
    assert recipe.heads == read_recipe(SHIPPED, "vitg14").heads


@pytest.mark.parametrize("size", "sbl")
def test_a_distilled_student_has_the_published_rate(
    size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1e-3 for 2048 images (arXiv 2304.07193, table 16)."""
    monkeypatch.setenv("TEACHER", "runs/train/vitg14")
    recipe = read_recipe(SHIPPED, f"vit{size}14-distilled", ["batch_size=2048"])
    schedules = recipe.schedules(data_epoch=1250)
    assert schedules.at(100_000).lr == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "epochs", "prototypes"), [("dino-vits16", 300, 65536), ("ibot-vits16", 800, 8192)]
)
def test_recipes_of_earlier_papers_have_what_their_code_does(
    name: str, epochs: int, prototypes: int
) -> None:
    recipe = read_recipe(SHIPPED, name)
    assert (recipe.epochs, recipe.batch_size, recipe.heads.dino.prototypes) == (
        epochs,
        1024,
        prototypes,
    )
    assert recipe.heads.dino.train_gain
    assert recipe.optimiser.decay_tokens
    assert (recipe.optimiser.base_lr, recipe.optimiser.min_lr) == (5e-4, 1e-6)
    assert (recipe.model.position_offset, recipe.model.position_antialias) == (0.1, False)
    assert recipe.crops.local_views == 10


def test_vitl14_has_the_published_values() -> None:
    recipe = read_recipe(SHIPPED, "vitl14")
    assert (recipe.batch_size, recipe.epochs, recipe.epoch_steps) == (3072, 500, 1250)
    assert recipe.optimiser.base_lr == 2e-4
    assert recipe.optimiser.warmup_epochs == 80
    assert recipe.optimiser.weight_decay == (0.04, 0.2)
    assert recipe.optimiser.layer_decay == 1.0
    assert recipe.optimiser.patch_embed_lr == 0.2
    assert recipe.teacher.momentum == (0.994, 1.0)
    assert recipe.teacher.temperature == (0.04, 0.07)
    assert recipe.model.drop_path == 0.4
    assert recipe.model.layer_scale == 1e-5
    assert recipe.heads.dino.bottleneck == 384
    assert recipe.heads.ibot is not None
    assert recipe.heads.ibot.bottleneck == 256
    assert recipe.heads.dino.prototypes == recipe.heads.ibot.prototypes == 131072
    assert not recipe.heads.shared
    assert recipe.objectives.centering.kind == "sinkhorn"
    assert (recipe.crops.global_size, recipe.crops.local_size) == (224, 98)
    assert "MLP" in recipe.note


def test_vitl16_short_has_the_published_values() -> None:
    recipe = read_recipe(SHIPPED, "vitl16-short")
    assert (recipe.batch_size, recipe.epochs, recipe.optimiser.base_lr) == (2048, 100, 4e-3)
    assert recipe.heads.shared
    assert recipe.heads.dino.prototypes == 65536
    assert recipe.objectives.centering.kind == "ema"
    assert recipe.optimiser.layer_decay == 0.9
    assert recipe.optimiser.weight_decay == (0.04, 0.4)
    assert recipe.teacher.momentum[0] == 0.992


@pytest.mark.parametrize("name", ["vitl14", "vitl16-short"])
def test_a_released_recipe_is_the_published_one_with_the_choices_of_the_released_code(
    name: str,
) -> None:
    ours = flat(read_recipe(SHIPPED, name).model_dump())
    theirs = flat(read_recipe(SHIPPED, f"{name}-released").model_dump())
    changed = {key: value for key, value in theirs.items() if value != ours.get(key)}
    assert "SwiGLU" in changed.pop("note") or name != "vitl14"
    gains = {"heads.dino.train_gain": True} | (
        {"heads.ibot.train_gain": True} if name == "vitl14" else {}
    )
    assert changed == gains | {
        "crops.blur": (0.0, 0.9, 0.5),
        "masks.exact": False,
        "model.position_offset": 0.1,
        "model.position_antialias": False,
        "optimiser.decay_tokens": True,
    }


def test_vitg14_has_a_gated_feed_forward() -> None:
    network = new_network(read_recipe(SHIPPED, "vitg14"), device="meta")
    assert type(network.backbone.vit.blocks[0].mlp).__name__ in ("GluMlp", "SwiGLU", "SwiGLUPacked")


def written(tmp_path: Path, recipes: dict) -> Path:
    path = tmp_path / "pipelines.yaml"
    path.write_text(yaml.safe_dump({"recipes": recipes, "datasets": {"anything": 1}}))
    return path


BASE = {
    "batch_size": 8,
    "group_size": 4,
    "masks": {},
    "model": {"name": "vit_tiny_patch16_224"},
    "heads": {"dino": {"prototypes": 16}, "ibot": {"prototypes": 8}},
    "optimiser": {"base_lr": 1e-3},
}


UNTAUGHT = {"dino": 0, "ibot": 0, "infonce": 1}


def test_a_recipe_that_is_like_another_changes_only_what_it_holds(tmp_path: Path) -> None:
    path = written(tmp_path, {"a": BASE, "b": {"like": "a", "heads": {"ibot": {"prototypes": 4}}}})
    a, b = read_recipe(path, "a"), read_recipe(path, "b")
    assert b.heads.ibot.prototypes == 4
    assert b.model_copy(update={"heads": a.heads}) == a


def test_what_a_recipe_changes_of_its_parent_is_told(tmp_path: Path) -> None:
    child = {"like": "a", "note": "other", "heads": {"ibot": {"prototypes": 4}}, "steps": 9}
    path = written(tmp_path, {"a": BASE, "b": child})
    told = describe_origin(path, "b", ["batch_size=16"])
    changes = {"heads.ibot.prototypes": [8, 4], "steps": [None, 9], "batch_size": [8, 16]}
    assert told == {"name": "b", "parent": "a", "changes": changes}
    own = describe_origin(path, "a", ["steps=9"])
    assert own == {"name": "a", "parent": "a", "changes": {"steps": [None, 9]}}


def test_overrides_reach_into_what_is_inherited(tmp_path: Path) -> None:
    path = written(tmp_path, {"a": BASE, "b": {"like": "a"}})
    assert read_recipe(path, "b", ["heads.dino.prototypes=32"]).heads.dino.prototypes == 32


def test_steps_compress_what_is_given_in_epochs(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, {"a": {**BASE, "epochs": 100, "steps": 50}}), "a")
    assert recipe.length(data_epoch=7) == (50, 0.5)


@pytest.mark.parametrize(
    ("changes", "overrides", "said"),
    [
        ({"colour": 1}, [], "colour"),
        ({}, ["optimiser.base_rl=1"], "base_lr"),
        ({}, ["batch_size=many"], "batch_size"),
        ({"group_size": 3}, [], "group_size 3 does not divide batch_size 8"),
        ({"masks": None}, [], "masks"),
        ({"objectives": {"ibot": 0}}, [], "iBOT"),
        ({"heads": None}, [], "need heads"),
        ({"objectives": UNTAUGHT}, [], "heads belong to"),
        ({"projector": {}}, [], "a projector belongs to InfoNCE"),
        ({"objectives": {"dino": 0, "ibot": 0}, "heads": None}, [], "learns nothing"),
        ({"crops": {"edits": {}}, "data": {"resident": True}}, [], "data.resident=false"),
        ({"crops": {"edits": {"flip": 1}}}, [], "crops.edits.flip"),
        ({"like": "nobody"}, [], "nobody"),
        ({"like": "a"}, [], "leads back"),
    ],
)
def test_a_wrong_recipe_is_one_line_that_names_the_key(
    tmp_path: Path, changes: dict, overrides: list[str], said: str
) -> None:
    with pytest.raises(LvdError) as caught:
        read_recipe(written(tmp_path, {"a": {**BASE, **changes}}), "a", overrides)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(LvdError, match="cifar"):
        read_recipe(SHIPPED, "cifra")


@pytest.mark.parametrize(
    ("processes", "accumulate", "said"),
    [
        (3, 1, "8 cannot be cut into 3 processes x 1 micro-batches: start 2 or 4 processes, or set "
               "batch_size to 12"),
        (16, 1, "start 8 processes, or set batch_size to 16"),
        (1, 4, "8 cannot be cut into 4 micro-batches of whole groups of 4: accumulate may be 2"),
    ],
)  # fmt: skip
def test_a_batch_that_cannot_be_cut_is_refused_with_what_would_work(
    tmp_path: Path, processes: int, accumulate: int, said: str
) -> None:
    recipe = read_recipe(written(tmp_path, {"a": {**BASE, "accumulate": accumulate}}), "a")
    with pytest.raises(LvdError) as caught:
        recipe.micro_batch(processes)
    assert str(caught.value).endswith(said)


def test_every_recipe_runs_on_each_number_of_cards_that_divides_its_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TEACHER", "a-teacher")
    monkeypatch.setenv("CONTINUE_FROM", "a-run")
    for name in NAMES:
        recipe = read_recipe(SHIPPED, name)
        for cards in (1, 8, 16, 32, 64, 96):
            together = recipe.batch_size // recipe.accumulate
            if together % cards:
                with pytest.raises(LvdError, match=r"start \d+( or \d+)? processes"):
                    recipe.micro_batch(cards)
            else:
                assert recipe.micro_batch(cards) * cards * recipe.accumulate == recipe.batch_size
