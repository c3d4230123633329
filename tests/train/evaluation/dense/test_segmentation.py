import json

import numpy as np
import pytest
import timm
import torch
from colour_model import ColourModel, joined
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file
from torch.nn.functional import interpolate

import train.evaluation.dense.head
from shared.errors import LvdError
from train.evaluation.dense.head import rate_at
from train.evaluation.dense.images import DenseImages, draw, pixel_centres
from train.evaluation.dense.pairs import Pair
from train.evaluation.dense.segmentation import Overlap, segment
from train.evaluation.dense.windows import at_points, whole_images
from train.evaluation.settings import DenseSettings, SegmentSettings
from train.frozen.loading import load_models

COLOURS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])
QUICK = {"steps": 60, "points": 64, "learning_rates": (0.03,), "workers": 1}


def picture(generator, rows=3, columns=6, cell=8):
    """Return noisy pixels and labels of a picture of cells, wider than high, of random classes."""
    labels = generator.integers(0, len(COLOURS), (rows, columns))
    labels = labels.repeat(cell, axis=0).repeat(cell, axis=1)
    noise = generator.integers(-30, 30, (*labels.shape, 3))
    return np.clip(COLOURS[labels] + noise, 0, 255).astype(np.uint8), labels.astype(np.uint8)


def save(root, name, pixels, labels):
    for folder, content in (("images", pixels), ("masks", labels)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(content).save(root / folder / f"{name}.png")


def write_set(root, count, seed, change=lambda n, pixels, labels: (pixels, labels)):
    generator = np.random.default_rng(seed)
    for n in range(count):
        save(root, f"{n:02d}", *change(n, *picture(generator)))
    return str(root)


def scores(tmp_path, model=None, train=None, test=None, **options):
    train = train or write_set(tmp_path / "train", 12, 0)
    test = test or write_set(tmp_path / "test", 5, 1)
    settings = SegmentSettings(**(QUICK | options))
    found = segment(model or joined(ColourModel()), train, test, settings, tmp_path / "cache")
    assert all(score.task == "segment" and score.higher_is_better for score in found)
    return {score.metric: score.value for score in found}


def test_mean_iou_is_over_all_pixels_and_the_classes_in_either():
    overlap = Overlap()
    overlap.add(np.array([[0.0, 0.0], [1.0, 5.0]]), np.array([[0.0, 1.0], [1.0, np.nan]]))
    overlap.add(np.array([0.0, 0.0, 7.0]), np.array([0.0, 0.0, 9.0]))
    # class 0: 3 of 4, class 1: 1 of 2; 7 is only predicted, 9 only true; 5 stands where none counts
    assert overlap.mean_iou() == pytest.approx((3 / 4 + 1 / 2 + 0 + 0) / 4)
    assert overlap.accuracy() == pytest.approx(4 / 6)


def test_mean_iou_is_that_of_a_confusion_matrix():
    generator = np.random.default_rng(0)
    true, predicted = generator.integers(0, 6, (2, 10, 7, 9))
    overlap = Overlap()
    for image in range(10):
        overlap.add(predicted[image].astype(np.float32), true[image].astype(np.float32))
    matrix = np.array(
        [[((true == a) & (predicted == b)).sum() for b in range(6)] for a in range(6)]
    )
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - np.diag(matrix)
    assert overlap.mean_iou() == pytest.approx((np.diag(matrix) / union).mean())
    assert overlap.accuracy() == pytest.approx((true == predicted).mean())


def test_points_at_pixel_centres_are_the_upsampled_grid():
    grids = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    expected = interpolate(grids.permute(0, 3, 1, 2), (7, 20), mode="bilinear")
    for rows in (range(7), range(2, 5)):
        found = at_points(grids, pixel_centres(rows, 7, 20).expand(2, -1, -1))
        strip = expected[:, :, rows.start : rows.stop].flatten(2).transpose(1, 2)
        torch.testing.assert_close(found, strip)


def test_only_pixels_that_count_are_drawn_each_once():
    target = np.full((6, 10), np.nan, np.float32)
    target[1, 3], target[5, 9], target[0, 0] = 4, 5, 6
    nothing = np.full((6, 10), np.nan, np.float32)
    targets = {"few": target, "none": nothing, "all": np.ones((3, 5), np.float32)}
    pairs = [Pair(key, None, None) for key in targets]
    sizes = np.array([[6, 10], [6, 10], [3, 5]])
    images = DenseImages(pairs, [], sizes, lambda pair: targets[pair.key], whole_images(len(pairs)))
    samples = draw(images, DenseSettings(points=8, workers=1), "--train")
    assert samples.rows == [0, 2]
    few = ~samples.targets[0].isnan()
    places = (samples.points[0][few] * torch.tensor([6, 10])).tolist()
    assert sorted(zip(samples.targets[0][few].tolist(), places, strict=True)) == [
        (4, [1.5, 3.5]),
        (5, [5.5, 9.5]),
        (6, [0.5, 0.5]),
    ]
    assert len({tuple(place) for place in samples.points[1].tolist()}) == 8


def test_the_learning_rate_climbs_to_1_and_falls_to_0():
    rates = [rate_at(step, 100) for step in range(101)]
    assert rates[0] == 0.25
    assert max(rates) == rates[3] == 1
    assert rates[100] == 0
    assert rates[52] == 0.5
    assert rate_at(0, 1) == 1


def test_a_head_learns_classes_that_are_colours_and_hits_the_pixels_they_stand_at(tmp_path):
    model = ColourModel()
    found = scores(tmp_path, joined(model))
    assert found["mIoU"] > 0.8
    assert found["pixel accuracy"] > 0.9
    assert model.shapes == {(3, 32, 32)}  # squares, of pictures of 48x24


def test_the_patches_of_a_real_vit_are_where_the_mask_is_behind_cls_and_registers(tmp_path):
    name = "vit_small_patch14_reg4_dinov2"
    size = {"embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": 4, "img_size": 32}
    torch.manual_seed(1)
    vit = timm.create_model(name, **size, num_classes=0)
    (tmp_path / "vit").mkdir()
    save_file(vit.state_dict(), tmp_path / "vit/model.safetensors")
    config = {"architecture": name, "num_classes": 0, "model_args": size}
    config["pretrained_cfg"] = {"input_size": [3, 32, 32], "interpolation": "bicubic"}
    (tmp_path / "vit/config.json").write_text(json.dumps(config))
    (model,) = load_models([str(tmp_path / "vit")], precision="float32", device="cpu")
    assert scores(tmp_path, model)["mIoU"] > 0.75


def test_masks_of_other_pictures_teach_nothing(tmp_path):
    generator = np.random.default_rng(2)
    train = write_set(
        tmp_path / "shuffled", 12, 0, lambda n, pixels, _: (pixels, picture(generator)[1])
    )
    assert scores(tmp_path, train=train)["mIoU"] < 0.4


def test_strips_of_a_large_mask_are_predicted_as_the_whole(tmp_path, monkeypatch):
    whole = scores(tmp_path)
    monkeypatch.setattr(train.evaluation.dense.head, "_MOST_OUTPUTS", 48 * 3 * 5)
    assert scores(tmp_path, train=str(tmp_path / "train"), test=str(tmp_path / "test")) == whole


def test_ignored_pixels_count_neither_in_training_nor_in_the_score(tmp_path):
    def spoilt(n, pixels, labels):
        pixels[:, :20], labels[:, :20] = pixels[:, -20:], 255
        return pixels, labels

    def missing(n, pixels, labels):
        pixels[:, :20], labels[:, :20] = pixels[:, -20:], 1
        return pixels, labels

    train = write_set(tmp_path / "ignored", 12, 0, spoilt)
    test = write_set(tmp_path / "unknown", 5, 1, spoilt)
    assert scores(tmp_path, train=train, test=test)["mIoU"] > 0.8
    test = write_set(tmp_path / "wrong", 5, 1, missing)
    assert scores(tmp_path, train=train, test=test)["mIoU"] < 0.7
    test = write_set(tmp_path / "own", 5, 1, spoilt)
    # as a class of its own, whose pixels look like those of the others
    assert scores(tmp_path, train=train, test=test, ignored=-1)["mIoU"] < 0.7


def test_tokens_are_made_once_for_a_model_its_size_and_its_images(tmp_path):
    model = ColourModel()
    first = scores(tmp_path, joined(model))
    data = {"train": str(tmp_path / "train"), "test": str(tmp_path / "test")}
    assert model.seen == 17
    assert scores(tmp_path, joined(model), **data) == first
    assert model.seen == 17
    assert scores(tmp_path, joined(model), **data, size=15) != first
    assert model.seen == 34
    assert (3, 16, 16) in model.shapes  # the nearest multiple of the patch
    write_set(tmp_path / "test", 5, 2)  # other pictures of the same names
    scores(tmp_path, joined(model), **data)
    assert model.seen == 39


def test_joined_models_give_one_grid_of_the_finest_patches(tmp_path):
    coarse, fine = ColourModel(patch=16), ColourModel(patch=4, scale=0.5)
    assert scores(tmp_path, joined(coarse, fine))["mIoU"] > 0.8
    grids = [torch.rand(3, side, side, side).numpy().astype(np.float16) for side in (2, 8)]
    images = DenseImages([], grids, np.zeros((3, 2)), None, whole_images(3))
    tokens = images.tokens([2, 0])
    assert tokens.shape == (2, 8, 8, 10)
    assert torch.equal(tokens[..., 2:], torch.from_numpy(grids[1][[2, 0]]).float())
    assert torch.equal(tokens[:, 0, 0, :2], torch.from_numpy(grids[0][[2, 0]])[:, 0, 0].float())


def test_the_rate_that_is_best_on_held_out_images_is_taken(tmp_path):
    train, test = (write_set(tmp_path / name, 12, n) for n, name in enumerate(("train", "test")))
    for rates, end in (((1e-7, 0.03, 1e-8), True), ((1e-7, 0.03, 100.0), False), ((0.03,), False)):
        settings = SegmentSettings(**(QUICK | {"learning_rates": rates}))
        model = joined(ColourModel())
        mean_iou, accuracy = segment(model, train, test, settings, tmp_path / "cache")
        assert mean_iou.setting == accuracy.setting == "lr 0.03"
        assert ("at the end of its range" in mean_iou.note) == end
        assert mean_iou.value > 0.8


def test_broken_images_and_masks_are_counted_and_left_out(tmp_path, capsys):
    train = write_set(tmp_path / "train", 12, 0)
    (tmp_path / "train/images/03.png").write_bytes(b"nothing")
    (tmp_path / "train/masks/04.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Image.new("L", (24, 48)).save(tmp_path / "train/masks/05.png")  # of an image that was turned
    (tmp_path / "train/masks/06.png").unlink()
    (tmp_path / "train/masks/06.png").symlink_to("nowhere")
    assert scores(tmp_path, train=train)["mIoU"] > 0.8
    said = capsys.readouterr().err
    assert "--train: 1 images cannot be decoded and are left out" in said
    assert "--train: 3 pairs are left out" in said


def test_what_cannot_be_scored_is_an_error_of_one_line(tmp_path):
    data = write_set(tmp_path / "train", 12, 0)
    with pytest.raises(LvdError, match=r"12 images are in --train and in --test, 00\.png"):
        scores(tmp_path, train=data, test=data)
    one = write_set(tmp_path / "one", 4, 3, lambda n, pixels, labels: (pixels, labels // 3 + 255))
    with pytest.raises(LvdError, match="0 images have pixels that count"):
        scores(tmp_path, train=one)
    one = write_set(tmp_path / "same", 4, 3, lambda n, pixels, labels: (pixels, labels // 3))
    with pytest.raises(LvdError, match="hold 1 classes"):
        scores(tmp_path, train=one)
    with pytest.raises(LvdError, match="no mask or depth map can be used"):
        scores(tmp_path, train=write_set(tmp_path / "rgb", 3, 0, lambda n, p, labels: (p, p)))
    blind = ColourModel()
    blind.tokens = lambda pixels: type("Tokens", (), {"patches": None})
    with pytest.raises(LvdError, match="colour4 has no patch tokens"):
        scores(tmp_path, joined(blind), train=data)
    with pytest.raises(ValidationError):
        SegmentSettings(learning_rates=())
