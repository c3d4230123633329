import numpy as np
import pytest
import torch
from colour_model import ColourModel, joined
from PIL import Image
from pydantic import ValidationError

from shared.errors import LvdError
from train.evaluation.dense.depth import depth, errors, expected_depth, scale_invariant_loss
from train.evaluation.dense.images import dense_images
from train.evaluation.dense.pairs import find_pairs
from train.evaluation.settings import DenseSettings, DepthSettings

QUICK = {"steps": 75, "points": 64, "learning_rates": (0.03,), "workers": 1}
NAN = float("nan")


def picture(generator):
    """Return pixels that are the redder the farther, and millimetres from 1 to 9 m."""
    hills = generator.uniform(1, 9, (3, 6)).astype(np.float32)
    metres = np.asarray(Image.fromarray(hills).resize((48, 24), Image.Resampling.BILINEAR))
    pixels = np.stack([metres * 25, 255 - metres * 25, metres * 0 + 99], axis=2)
    noise = generator.integers(-5, 5, pixels.shape)
    return (pixels + noise).clip(0, 255).astype(np.uint8), (metres * 1000).astype(np.uint16)


def write_set(root, count, seed, change=lambda n, pixels, depths: (pixels, depths)):
    generator = np.random.default_rng(seed)
    root.mkdir()
    for n in range(count):
        pixels, depths = change(n, *picture(generator))
        Image.fromarray(pixels).save(root / f"rgb_{n:03d}.jpg", quality=95)
        Image.fromarray(depths).save(root / f"sync_depth_{n:03d}.png")
    return str(root)


def scores(tmp_path, train=None, test=None, model=None, **options):
    train = train or write_set(tmp_path / "train", 12, 0)
    test = test or write_set(tmp_path / "test", 5, 1)
    model = model or joined(ColourModel())
    found = depth(model, train, test, DepthSettings(**(QUICK | options)), tmp_path / "cache")
    assert {s.metric: s.higher_is_better for s in found} == {
        "RMSE": False,
        "abs-rel": False,
        "delta1": True,
    }
    return {score.metric: score.value for score in found}


def test_errors_are_over_the_known_pixels_of_an_image():
    predicted = np.array([[1.0, 2.0], [4.0, 9.0]], np.float32)
    true = np.array([[2.0, 2.0], [5.0, NAN]], np.float32)
    found = errors(predicted, true)
    assert found.rmse == pytest.approx(np.sqrt((1 + 0 + 1) / 3))
    assert found.abs_rel == pytest.approx((1 / 2 + 0 + 1 / 5) / 3)
    assert found.delta1 == pytest.approx(1 / 3)  # 5 / 4 is not below 1.25


def test_depth_is_the_mean_of_the_bins_by_linear_normalisation():
    outputs = torch.tensor([[-5.0, 0.9, -1.0], [0.0, 0.0, 0.0], [-9.0, -9.0, 1e6]])
    near, middle, far = 0.001, 5.0005, 10.0
    weighed = (0.1 * near + 1.0 * middle + 0.1 * far) / 1.2
    expected = torch.tensor([weighed, (near + middle + far) / 3, far])
    torch.testing.assert_close(expected_depth(outputs, 10.0), expected)


def test_the_loss_forgives_a_common_factor_in_part():
    true = torch.tensor([1.0, 2.0, 4.0])
    assert scale_invariant_loss(true, true) == pytest.approx(0, abs=1e-3)
    assert scale_invariant_loss(2 * true, true) == pytest.approx(0.15**0.5 * np.log(2), abs=1e-4)
    predicted = torch.tensor([3.0, 1.0, 5.0])
    g = (predicted / true).log()
    expected = float(((g**2).mean() - 0.85 * g.mean() ** 2).sqrt())
    assert scale_invariant_loss(predicted, true) == pytest.approx(expected, abs=1e-4)
    alone = torch.tensor([3.0], requires_grad=True)
    scale_invariant_loss(alone, true[:1]).backward()
    assert alone.grad.isfinite().all()


def test_a_head_learns_depth_that_is_a_colour(tmp_path):
    found = scores(tmp_path, learning_rates=(0.003, 0.03))
    assert found["RMSE"] < 0.6
    assert found["abs-rel"] < 0.1
    assert found["delta1"] > 0.9


def test_depths_of_other_pictures_teach_nothing(tmp_path):
    generator = np.random.default_rng(2)
    train = write_set(
        tmp_path / "shuffled", 12, 0, lambda n, pixels, _: (pixels, picture(generator)[1])
    )
    found = scores(tmp_path, train=train)
    assert found["RMSE"] > 1.4
    assert found["delta1"] < 0.6


def test_an_error_is_the_mean_over_images_however_few_pixels_of_one_are_known(tmp_path):
    def sparse(n, pixels, depths):
        if n == 0:
            pixels[:] = pixels[0, 0]
            depths[:] = 0
            depths[0, 0] = 1000 if pixels[0, 0, 0] > 128 else 9000  # one pixel, wildly wrong
        return pixels, depths

    train = write_set(tmp_path / "train", 12, 0)
    found = scores(tmp_path, train, write_set(tmp_path / "test", 2, 1, sparse))
    assert found["delta1"] < 0.55  # over all pixels it would be that of the other image
    assert found["RMSE"] > 1.5


def test_pixels_that_are_unknown_or_too_far_count_for_nothing(tmp_path):
    def spoilt(n, pixels, depths):
        pixels[:, :8], pixels[:, 40:] = 0, 255
        depths[:, :8], depths[:, 40:] = 0, 60_000
        if n == 1:
            depths[:] = 0
        return pixels, depths

    train = write_set(tmp_path / "train", 12, 0, spoilt)
    test = write_set(tmp_path / "test", 5, 1, spoilt)
    near = scores(tmp_path, train, test, points=1000, bins=16)  # more points than count
    assert near["RMSE"] < 1
    assert scores(tmp_path, train, test, max_depth=80, bins=16)["RMSE"] > 1
    empty = write_set(tmp_path / "empty", 2, 2, lambda n, pixels, depths: (pixels, depths * 0))
    with pytest.raises(LvdError, match=r"no pixel of the depth maps in .* counts"):
        scores(tmp_path, train, empty)


def test_eigen_crop_counts_only_its_part_of_nyu_maps(tmp_path):
    def wrong_outside(n, pixels, _):
        metres = np.full((480, 640), 9000, np.uint16)
        metres[45:471, 41:601] = 2000
        return np.full((480, 640, 3), 2 * 25, np.uint8), metres

    def right(n, pixels, _):
        metres = (2000, 9000)[n % 2]
        shape = (480, 640)
        return np.full((*shape, 3), metres / 40, np.uint8), np.full(shape, metres, np.uint16)

    train = write_set(tmp_path / "train", 6, 0, right)
    test = write_set(tmp_path / "test", 1, 0, wrong_outside)
    assert scores(tmp_path, train, test, bins=16)["delta1"] < 0.9
    assert scores(tmp_path, train, test, bins=16, eigen_crop=True)["delta1"] == 1
    with pytest.raises(LvdError, match="eigen_crop is for maps of 640x480"):
        scores(tmp_path, train, write_set(tmp_path / "small", 2, 0), eigen_crop=True)


def test_the_cls_token_stands_beside_each_patch(tmp_path):
    class WithCls(ColourModel):
        def tokens(self, pixels):
            found = super().tokens(pixels)
            found.cls = torch.stack([found.pooled * 0, found.pooled], dim=1)  # of two blocks
            return found

    train, test = write_set(tmp_path / "train", 2, 0), write_set(tmp_path / "test", 2, 1)
    pairs = find_pairs(train, "depth", "--train")
    about = {"role": "--train", "cache": tmp_path / "cache"}
    settings = DenseSettings(workers=1)
    alone, beside = (
        dense_images(joined(WithCls()), pairs, None, settings, cls=cls, **about).tokens([0, 1])
        for cls in (False, True)
    )
    assert torch.equal(beside[..., 3:], alone)
    whole = alone.mean(dim=(1, 2), keepdim=True).expand_as(alone)
    torch.testing.assert_close(beside[..., :3], whole, atol=1e-3, rtol=0)
    with pytest.raises(LvdError, match=r"colour4 has no CLS token: leave depth\.cls=true away"):
        scores(tmp_path, train, test, joined(ColourModel(size=16)), cls=True)


def test_settings_that_cannot_be_are_refused():
    for options in ({"max_depth": 0}, {"bins": 1}, {"held_out": 1}, {"steps": 0}, {"other": 1}):
        with pytest.raises(ValidationError):
            DepthSettings(**options)
