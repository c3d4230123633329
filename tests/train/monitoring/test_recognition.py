"""The score without labels: perfect for features that know pictures apart, chance for those that do not."""

from __future__ import annotations

import pytest
import torch
from small_run import IMAGES, write_shards
from torch import Tensor

from train.data.index import ShardIndex, read_index
from train.data.settings import CropSettings
from train.distributed.parallelise import autocast
from train.monitoring.recognition import recognition

WHOLE = CropSettings(
    global_size=32, local_views=0, global_area=(1, 1), aspect=(1, 1), flip=0,
    jitter_probability=0, grey=0, blur=(0, 0, 0), solarise=0,
)  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    folder = tmp_path_factory.mktemp("recognition")
    return read_index(str(write_shards(folder / "shards", {5: b"broken"})), folder / "index")


def score(index: ShardIndex, features, crops: CropSettings, seed: int = 0) -> float | None:
    return recognition(features, index, crops, seed, CPU, autocast(torch.float32, CPU))


def test_equal_views_are_recognised_by_their_pixels(index: ShardIndex) -> None:
    assert score(index, lambda images: images.flatten(1), WHOLE) == 1.0


def test_features_that_say_nothing_score_chance(index: ShardIndex) -> None:
    found = score(index, lambda images: images.new_ones(len(images), 4), WHOLE)
    assert found == pytest.approx(1 / (IMAGES - 1))


def test_the_views_are_the_same_on_every_call_and_others_with_another_seed(
    index: ShardIndex,
) -> None:
    def seen(seed: int) -> Tensor:
        images: list[Tensor] = []

        def features(views: Tensor) -> Tensor:
            images.append(views)
            return views.flatten(1)

        score(index, features, CropSettings(global_size=32, local_views=0), seed)
        return torch.cat(images)

    assert torch.equal(seen(0), seen(0))
    assert not torch.equal(seen(0), seen(1))
