import numpy as np
import pytest
import torch
from attentive_model import frozen, seer
from PIL import Image
from torch.nn.functional import interpolate

from shared.errors import LvdError
from train.evaluation.dense.attention import attention, jaccard
from train.evaluation.settings import AttentionSettings
from train.frozen.model import JoinedModel


def test_jaccard_is_that_of_the_map_enlarged_to_the_mask():
    generator = np.random.default_rng(0)
    kept = torch.from_numpy(generator.random((3, 4, 4)) < 0.4)
    for shape in ((30, 50), (4, 4), (3, 7)):
        thing, counted = generator.random((2, *shape)) < 0.7
        large = interpolate(kept[None].float(), shape, mode="nearest-exact")[0].bool().numpy()
        thing[0, 0] = counted[0, 0] = True
        both = (large & thing & counted).sum(axis=(1, 2))
        either = ((large | thing) & counted).sum(axis=(1, 2))
        assert jaccard(kept, thing, counted).tolist() == pytest.approx(both / either)


def scene(root, name, box, value=1, size=(64, 32), void=None):
    """A black picture with a white box of patches, and its mask; boxes are in quarters."""
    width, height = size
    left, top, right, bottom = (
        round(share * side / 4) for share, side in zip(box, size * 2, strict=True)
    )
    image, mask = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
    image[top:bottom, left:right] = 255
    mask[top:bottom, left:right] = value
    if void is not None:
        mask[void] = 255
    for folder, content in (("images", image), ("masks", mask)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(content).save(root / folder / f"{name}.png")


def scores(data, *models, **options):
    models = models or (frozen(seer(), size=16),)
    found = attention(JoinedModel("model", models), str(data), AttentionSettings(**options))
    return {score.metric: score.value for score in found}


def test_the_best_head_is_the_one_that_looks_at_the_object_wherever_it_is(tmp_path):
    # Of a box of 4 patches 60 % of the mass are 3; of 2 patches, both.
    scene(tmp_path, "left", (0, 1, 2, 3))
    scene(tmp_path, "right", (2, 0, 4, 2), value=7, size=(36, 92))
    scene(tmp_path, "narrow", (1, 3, 3, 4))
    found = scores(tmp_path)
    assert found["Jaccard, best head"] == pytest.approx((0.75 + 0.75 + 1) / 3)
    # The head that looks at dark patches keeps 8 of 12 or 9 of 14, and none of the object.
    assert found["Jaccard, all heads"] == pytest.approx((0.75 + 0.75 + 1) / 6)
    assert scores(tmp_path, mass=1.0)["Jaccard, best head"] < 0.3


def test_void_pixels_count_for_nothing_and_can_be_the_object(tmp_path):
    scene(tmp_path, "one", (0, 0, 2, 1), void=np.s_[16:, :])
    assert scores(tmp_path)["Jaccard, best head"] == pytest.approx(1)
    bright = frozen(seer((3.0,)), size=16)
    assert scores(tmp_path, bright, void=-1)["Jaccard, best head"] == pytest.approx(2 / 10)


def test_the_heads_of_joined_models_stand_side_by_side(tmp_path):
    scene(tmp_path, "one", (0, 0, 2, 1))
    bright, dark = frozen(seer((3.0,)), 16), frozen(seer((-3.0,), patch=2, size=8), 8)
    assert scores(tmp_path, dark)["Jaccard, best head"] == 0
    assert scores(tmp_path, dark, bright) == scores(tmp_path, frozen(seer(), 16))


def test_pairs_that_cannot_be_used_are_left_out_and_said(tmp_path, capsys):
    scene(tmp_path, "a", (0, 0, 2, 1))
    whole = scores(tmp_path)
    for name in ("broken", "empty", "turned"):
        scene(tmp_path, name, (0, 0, 2, 1), value=0 if name == "empty" else 1)
    (tmp_path / "images" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    Image.new("L", (32, 64), 1).save(tmp_path / "masks" / "turned.png")
    capsys.readouterr()
    assert scores(tmp_path) == whole
    said = capsys.readouterr().err
    assert "3 pairs are left out, as broken.png" in said


def test_masks_without_an_object_are_an_error_that_names_the_setting(tmp_path):
    scene(tmp_path, "binary", (0, 0, 2, 1), value=255)
    with pytest.raises(LvdError, match="void=255"):
        scores(tmp_path)
    assert scores(tmp_path, void=-1)["Jaccard, best head"] == pytest.approx(1)
