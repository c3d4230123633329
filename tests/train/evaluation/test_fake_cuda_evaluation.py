"""Evaluation as on a card: towers, features, heads and maps on fake CUDA tensors."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_card import CUDA, FakeCard, fake_card, on_card
from PIL import Image
from small_models import WITH_TOKENS, write_models
from small_run import RECIPE, write_shards

from train.data.index import read_index
from train.distributed.parallelise import autocast
from train.distributed.ranks import Ranks
from train.evaluation.classification.knn import knn
from train.evaluation.classification.linear import linear_probe
from train.evaluation.classification.logistic import logistic
from train.evaluation.dense.attention import attention
from train.evaluation.dense.depth import depth
from train.evaluation.dense.segmentation import segment
from train.evaluation.features import Bank, bank
from train.evaluation.neighbours import neighbours, weighted_vote
from train.evaluation.retrieval.ranking import retrieval
from train.evaluation.settings import (
    AttentionSettings,
    DepthSettings,
    KnnEvalSettings,
    LinearSettings,
    LogregSettings,
    RetrievalSettings,
    SegmentSettings,
)
from train.frozen.attention_maps import cls_attention, most_attended
from train.frozen.loading import load_models
from train.frozen.model import FrozenModel, JoinedModel
from train.monitoring.knn import Knn
from train.monitoring.recognition import recognition
from train.monitoring.settings import KnnSettings
from train.recipe import Recipe
from train.system import build_system
from train.visualise.figures import attention_figure, patch_figure
from train.visualise.overview import overview
from train.visualise.seen import see

THERE = Ranks(0, 1, 0, CUDA)
WITHOUT_CLS = ("vit without CLS", "convolutional", "clip, convolutional", "pixels")
DENSE = {"steps": 2, "points": 16, "learning_rates": (0.003, 0.03), "workers": 1}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def same_card(models: dict[str, str]) -> Iterator[FakeCard]:
    """The card of all tests, on which each model is loaded once."""
    with fake_card() as card:
        yield card
    load.cache_clear()


@pytest.fixture
def card(same_card: FakeCard) -> FakeCard:
    same_card.reads.clear()
    return same_card


@cache
def load(name: str) -> JoinedModel:
    (model,) = load_models([name], precision="float16", device="cuda")
    assert all(on_card(part.module) for part in model.parts)
    return model


def part(name: str) -> FrozenModel:
    return load(name).parts[0]


def pixels(model: FrozenModel, count: int = 2) -> torch.Tensor:
    return torch.zeros(count, 3, *[model.needs.size] * 2, dtype=torch.uint8)


def picture(number: int) -> Image.Image:
    drawn = np.random.default_rng(number).integers(0, 256, (24, 36, 3), dtype=np.uint8)
    return Image.fromarray(drawn)


def write_pairs(root: Path, kind: str, count: int = 4) -> str:
    """Images with masks of two classes, or with depth maps, as evaluation finds them."""
    for number in range(count):
        values = np.random.default_rng(number).integers(0, 2, (24, 36))
        mask = values.astype(np.uint8) if kind == "masks" else (values + 1).astype(np.uint16) * 1000
        for folder, content in (("images", picture(number)), (kind, Image.fromarray(mask))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            content.save(root / folder / f"{root.name}-{number}.png")
    return str(root)


@pytest.mark.parametrize("kind", [*WITH_TOKENS, *WITHOUT_CLS])
def test_tokens_are_made_on_the_card(card: FakeCard, models: dict[str, str], kind: str) -> None:
    model = part(models[kind])
    found = model.tokens(pixels(model), blocks=4)
    assert (found.cls is not None) == (kind in WITH_TOKENS)
    assert {some.device for some in found if some is not None} == {CUDA}
    assert {some.dtype for some in found if some is not None} == {torch.float32}
    assert set(card.reads) <= {"tokens", "<genexpr>"}


@pytest.mark.parametrize("kind", ["vit", "clip", "clip of timm", "eva", "run"])
def test_images_of_another_size_are_seen_on_the_card(
    card: FakeCard, models: dict[str, str], kind: str
) -> None:
    model = part(models[kind])
    side = model.needs.size + model.needs.patch
    found = model.tokens(torch.zeros(2, 3, side, side, dtype=torch.uint8))
    assert found.patches.shape[1] == side // model.needs.patch


@pytest.mark.parametrize("kind", WITH_TOKENS)
def test_attention_maps_are_made_on_the_card(
    card: FakeCard, models: dict[str, str], kind: str
) -> None:
    model = part(models[kind])
    maps = cls_attention(model, pixels(model))
    assert (maps.device, maps.dtype) == (CUDA, torch.float32)
    assert most_attended(maps, 0.6).device == CUDA


def test_a_fingerprint_reads_weights_from_the_card(card: FakeCard, models: dict[str, str]) -> None:
    assert len(load(models["vit"]).fingerprint) == 64


@pytest.fixture
def banks(card: FakeCard, models: dict[str, str], tmp_path: Path) -> list[Bank]:
    """Training and test images of three classes through two models on the card, side by side."""
    shards, model = write_shards(tmp_path / "shards"), load(f"{models['vit']}+{models['clip']}")
    told = {"cache": tmp_path / "cache", "batch_size": 20, "workers": 1}
    return [bank(model, str(shards), role=role, **told) for role in ("--train", "--test")]


def test_features_are_kept_and_scored_from_the_card(card: FakeCard, banks: list[Bank]) -> None:
    train, test = banks
    assert train.pooled.shape == (36, 44)
    assert train.pooled.device.type == "cpu"
    assert train.cls.shape == (36, 2, 24 + 64)
    quick = LinearSettings(learning_rates=(0.01, 0.1), epochs=1, least_steps=3, batch_size=20)
    assert linear_probe(train, test, quick, CUDA)
    assert knn(train, test, KnnEvalSettings(k=(3, 50)), CUDA)
    assert logistic(train, test, LogregSettings(c=(1.0,), max_iter=2))


def test_neighbours_and_their_vote_stay_on_the_card(card: FakeCard) -> None:
    queries, rows = torch.zeros(3, 8, device=CUDA), torch.zeros(9_000, 8, device=CUDA)
    cosines, found = neighbours(queries, rows, 3)
    assert found.shape == (3, 3)
    votes = weighted_vote(cosines, torch.zeros_like(found), 4, 0.07)
    assert votes.device == CUDA


@pytest.mark.parametrize("kind", ["vit", "clip", "convolutional"])
def test_dense_heads_train_on_the_card(
    card: FakeCard, models: dict[str, str], tmp_path: Path, kind: str
) -> None:
    model, cache = load(models[kind]), tmp_path / "cache"
    train, test = (write_pairs(tmp_path / name, "masks") for name in ("train", "test"))
    assert segment(model, train, test, SegmentSettings(**DENSE), cache)
    train, test = (write_pairs(tmp_path / f"deep-{name}", "depth") for name in ("train", "test"))
    assert depth(model, train, test, DepthSettings(**DENSE, bins=8), cache)


def test_attention_is_scored_from_the_card(
    card: FakeCard, models: dict[str, str], tmp_path: Path
) -> None:
    data = write_pairs(tmp_path / "data", "masks")
    assert attention(load(models["vit"]), data, AttentionSettings(workers=1, batch_size=3))


def test_retrieval_ranks_on_the_card(
    card: FakeCard, models: dict[str, str], tmp_path: Path
) -> None:
    for number, place in enumerate(("queries/a/0", "queries/a/1", "gallery/a/0", "gallery/a/1")):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(tmp_path / f"{place}.jpg")
    cache = tmp_path / "cache"
    model = load(f"{models['vit']}+{models['clip']}")
    assert retrieval(model, str(tmp_path), RetrievalSettings(workers=1), cache)


def test_a_run_scores_its_teacher_on_the_card(card: FakeCard, tmp_path: Path) -> None:
    options = RECIPE["model"]["options"] | {"depth": 1}
    recipe = RECIPE | {"model": RECIPE["model"] | {"options": options}}
    system = build_system(Recipe.model_validate(recipe), THERE)
    shards = write_shards(tmp_path / "shards")
    told = KnnSettings(train=str(shards), test=str(shards), batch_size=20)

    def features(images: torch.Tensor) -> tuple[torch.Tensor, None]:
        assert images.device == CUDA
        return system.teacher_called(images).cls, None

    monitor = Knn(told, size=32, scratch=tmp_path, ranks=THERE)
    assert monitor.score(features, autocast(torch.bfloat16, CUDA)) == 1.0
    index = read_index(str(shards), tmp_path / "index")
    crops, context = system.recipe.crops, autocast(torch.bfloat16, CUDA)
    known = recognition(lambda images: features(images)[0], index, crops, 0, CUDA, context)
    assert known == 1.0


@pytest.mark.parametrize("kind", ["vit", "clip", "convolutional"])
def test_figures_are_drawn_from_the_card(card: FakeCard, models: dict[str, str], kind: str) -> None:
    model, pictures = part(models[kind]), {str(n): picture(n) for n in range(2)}
    seen = [see(model, pictures)]
    assert patch_figure(seen, pictures, 0.0)
    assert overview(seen, pictures)
    assert (attention_figure(seen, pictures, 0.6) is None) == (kind == "convolutional")
