import io

import numpy as np
import pytest
import torch
from colour_model import ColourModel, joined
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from torch.nn.functional import interpolate

from shared.pictures.images import decode, upright_size
from train.evaluation.dense.images import Sliding, dense_images, pixel_centres
from train.evaluation.dense.pairs import Pair
from train.evaluation.dense.segmentation import segment
from train.evaluation.dense.windows import LONGEST, Windows, as_shares, blend, slide
from train.evaluation.settings import DenseSettings, SegmentSettings

SIDES = st.integers(1, 300)


def encoded(height, width, orientation=1, form="JPEG"):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, form, exif=exif)
    return stream.getvalue()


def test_windows_are_those_of_sliding_inference():
    assert slide(512, 683, 512, 341) == [(0, 0, 512, 512), (171, 0, 683, 512)]
    assert slide(512, 512, 512, 341) == [(0, 0, 512, 512)]
    assert slide(1024, 256, 512, 341) == [  # twice as large: 2048 x 512
        (0, top, 256, top + 256) for top in (0, 171, 341, 512, 682, 768)
    ]


@given(SIDES, SIDES, st.integers(1, 64), st.integers(1, 64))
def test_windows_hold_every_pixel_and_are_few(height, width, side, stride):
    stride = min(stride, side)
    held = np.zeros((height, width), bool)
    boxes = slide(height, width, side, stride)
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        held[top:bottom, left:right] = True
    assert held.all()
    assert len(boxes) <= -(-(LONGEST - 1) * side // stride) + 1


def test_what_windows_say_is_averaged_as_sliding_inference_does():
    generator = torch.Generator().manual_seed(0)
    sizes, head = [(12, 20), (12, 12)], torch.randn(5, 4, generator=generator)
    boxes = [slide(*size, 12, 7) for size in sizes]
    counts = [len(some) for some in boxes]
    assert counts == [3, 1]
    shares = [
        as_shares(box, *size) for size, some in zip(sizes, boxes, strict=True) for box in some
    ]
    windows = Windows(counts, torch.tensor(shares))
    grids = torch.randn(4, 3, 3, 5, generator=generator)
    logits = (grids @ head).permute(0, 3, 1, 2)
    upsampled = iter(interpolate(logits, (12, 12), mode="bilinear"))
    for number, (height, width) in enumerate(sizes):
        canvas, count = torch.zeros(4, height, width), torch.zeros(height, width)
        for left, top, right, bottom in boxes[number]:
            canvas[:, top:bottom, left:right] += next(upsampled)
            count[top:bottom, left:right] += 1
        points = pixel_centres(range(height), height, width).expand(2, -1, -1)
        found = blend(grids, windows, points)[number] @ head
        expected = (canvas / count).flatten(1).T
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["JPEG", "TIFF", "PNG"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_upright_size_is_that_of_the_decoded_picture(form, orientation):
    data = encoded(10, 24, orientation, form)
    assert upright_size(data) == (decode(data).height, decode(data).width)


def test_windows_of_turned_and_broken_pictures_lie_where_their_pixels_do(tmp_path):
    pixels = np.zeros((16, 40, 3), np.uint8)
    pixels[:, 20:] = 255  # the right half is bright; below, once it is turned
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, more in (("plain", {}), ("turned", {"exif": exif})):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png", **more)
    (tmp_path / "broken.png").write_bytes(b"no")
    pairs = [Pair(n, tmp_path / f"{n}.png", None) for n in ("plain", "broken", "turned")]
    found = dense_images(
        joined(ColourModel(patch=8)),
        pairs,
        lambda _: None,
        DenseSettings(workers=1),
        role="--test",
        cache=tmp_path / "cache",
        sliding=Sliding(16, 12),
    )
    assert found.windows.counts == [3, 1, 3]
    assert found.sizes.tolist() == [[16, 40], [0, 0], [40, 16]]
    corners = torch.tensor([[[0.05, 0.05], [0.05, 0.95], [0.95, 0.05]]]).expand(2, -1, -1)
    told = blend(found.tokens([0, 2]), found.windows_of([0, 2]), corners)[..., 0]
    torch.testing.assert_close(told, torch.tensor([[0.0, 1, 0], [0, 0, 1]]), atol=0.01, rtol=0)


def test_segmentation_by_windows_sees_shapes_that_squares_squeeze(tmp_path):
    """Stripes a patch wide that a square makes narrower than any patch."""
    generator = np.random.default_rng(0)
    for folder, count in (("train", 4), ("test", 2)):
        for n in range(count):
            labels = generator.integers(0, 2, (4, 16)).repeat(4, axis=0).repeat(4, axis=1)
            for kind, content in (("images", np.stack([labels * 200] * 3, 2)), ("masks", labels)):
                (tmp_path / folder / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(content.astype(np.uint8)).save(
                    tmp_path / folder / kind / f"{folder}{n}.png"
                )
    quick = {"steps": 80, "points": 256, "learning_rates": (0.03,), "workers": 1}
    found = {}
    for options in ({"window": 16, "stride": 8}, {"size": 16}):
        model = ColourModel()
        score, _ = segment(
            joined(model),
            str(tmp_path / "train"),
            str(tmp_path / "test"),
            SegmentSettings(**(quick | options)),
            tmp_path / "cache",
        )
        assert model.shapes == {(3, 16, 16)}
        found["window" in options] = score
    assert found[True].value > 0.8 > found[False].value + 0.1
    assert "windows of 16 px every 8 px are resized to 16 px" in found[True].note
    assert "squeezed to a square of 16 px, where DINOv2 slides windows of 512" in found[False].note


def test_windows_that_leave_gaps_are_refused():
    for options in ({"window": 300}, {"window": 512, "size": 224}):
        with pytest.raises(ValidationError):
            SegmentSettings(**options)
