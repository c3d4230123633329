"""Bytes stay where nothing is to change; else a picture is what Pillow makes of it by hand."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from curate.export.encode import PictureSettings, encode
from shared.pictures.images import ImageError, read_header
from train.data.pictures import picture as decode_for_training

LIMIT = 300_000


def encoded(image_format, size=(40, 30), **options):
    """Return the file of a smooth picture with a corner of its own."""
    across = np.linspace(0, 255, size[0])[None, :, None]
    down = np.linspace(255, 0, size[1])[:, None, None]
    pixels = np.broadcast_to((across + down) / 2 * [1.0, 0.7, 0.4], (size[1], size[0], 3)).copy()
    pixels[: size[1] // 4, : size[0] // 4] = (250, 20, 20)
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(stream, image_format, **options)
    return stream.getvalue()


def written(data, max_pixels=LIMIT, **asked):
    return encode(data, PictureSettings(**asked), max_pixels=max_pixels)


def opened(data):
    return Image.open(io.BytesIO(data))


def difference(data, expected):
    """Return the mean distance of two pictures of one size, of 255."""
    here, there = (np.asarray(x.convert("RGB"), np.float64) for x in (opened(data), expected))
    assert here.shape == there.shape
    return np.abs(here - there).mean()


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"quality": 20},
        {"encode": "never"},
        {"resize": {"smaller_side": 30}},
        {"resize": {"smaller_side": 512}},
    ],
)
def test_jpeg_bytes_are_untouched_where_nothing_is_to_change(asked):
    data = encoded("JPEG", quality=31) + b"trailing"
    assert written(data, **asked) == (data, "jpg")


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_other_formats_become_jpeg_or_keep_their_bytes(image_format):
    data = encoded(image_format, size=(31, 17))
    made, extension = written(data)
    assert (read_header(made).format, extension) == ("jpeg", "jpg")
    assert difference(made, opened(data)) < 3
    assert written(data, encode="never") == (data, image_format.lower())


@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("asked", "extension"), [("jpeg", "jpg"), ("webp", "webp")])
def test_a_format_that_is_asked_for_is_that_of_all_at_its_quality(source, asked, extension):
    data = encoded(source, size=(200, 120))
    sizes = []
    for quality in (95, 30):
        made, end = written(data, encode=asked, quality=quality)
        assert (read_header(made).format, end) == (asked, extension)
        assert difference(made, opened(data)) < (3, 6)[quality == 30]
        sizes.append(len(made))
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(640, 400), (400, 640), (403, 400), (100, 80)])
def test_a_resized_picture_is_that_of_lanczos_by_hand(image_format, size):
    data = encoded(image_format, size=size)
    for resize, limit in (({"smaller_side": 64}, 2), ({"smaller_side": 100}, 2)):
        made, _ = written(data, resize=resize)
        side = min(resize["smaller_side"], min(size))
        target = tuple(round(x * side / min(size)) for x in size)
        by_hand = opened(data).convert("RGB").resize(target, Image.Resampling.LANCZOS)
        assert opened(made).size == target
        assert difference(made, by_hand) < limit


def test_a_smaller_picture_is_made_larger_only_where_asked_for():
    data = encoded("PNG", size=(40, 30))
    assert opened(written(data, resize={"smaller_side": 60})[0]).size == (40, 30)
    asked = {"smaller_side": 60, "only_larger": False}
    assert opened(written(data, resize=asked)[0]).size == (80, 60)


@pytest.mark.parametrize("size", [(640, 400), (403, 400), (400, 400)])
@pytest.mark.parametrize("turn", [1, 6])
def test_a_picture_that_lies_on_its_side_is_resized_upright(size, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    made, _ = written(encoded("JPEG", size=size, exif=exif), resize={"smaller_side": 48})
    target = tuple(round(x * 48 / min(size)) for x in size)
    assert opened(made).size == (target if turn == 1 else target[::-1])
    assert 0x0112 not in opened(made).getexif()
    red = np.asarray(opened(made).convert("RGB"), int)[2, 2 if turn == 1 else -3]
    assert red[0] > 200 > 100 > red[1]


@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    side=st.integers(1, 400),
    only_larger=st.booleans(),
    form=st.sampled_from(["jpeg", "webp"]),
)
@settings(max_examples=60, deadline=None)
def test_the_smaller_side_is_the_asked_one_within_the_limits(size, side, only_larger, form):
    resize = {"smaller_side": side, "only_larger": only_larger}
    made, _ = written(encoded("BMP", size=size), encode=form, resize=resize)
    width, height = opened(made).size
    assert width * height <= LIMIT + width + height
    if only_larger and side >= min(size):
        assert (width, height) == size
    elif side * side * max(size) / min(size) < LIMIT:
        assert min(width, height) == side
    assert max(width, height) / min(width, height) == pytest.approx(
        max(size) / min(size), rel=1 / min(width, height)
    )


def test_the_pixel_limit_is_the_caller_s():
    data = encoded("PNG", size=(20, 10))
    assert written(data, max_pixels=200)[1] == "jpg"
    with pytest.raises(ImageError, match="too large: 20x10 is over the limit of 199"):
        written(data, max_pixels=199)


@pytest.mark.parametrize(("form", "longest"), [("auto", 65_500), ("webp", 16_383)])
def test_a_side_too_long_for_its_format_is_shrunk(form, longest):
    made, _ = written(encoded("PNG", size=(70_000, 4)), encode=form)
    assert opened(made).width == longest


def test_the_trainer_reads_what_is_written_as_webp():
    data = encoded("PNG", size=(200, 120))
    made, _ = written(data, encode="webp")
    seen = decode_for_training(made).permute(1, 2, 0).numpy()
    assert np.abs(seen.astype(int) - np.asarray(opened(data), int)).mean() < 3


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"encode": "never", "resize": {"smaller_side": 8}}, "drop resize, or say encode=auto"),
        ({"encode": "png"}, "'auto', 'never', 'jpeg' or 'webp'"),
        ({"quality": 0}, "quality"),
        ({"resize": {"smaller_side": 0}}, "smaller_side"),
        ({"resize": {"smaller_side": 20_000}}, "16383"),
    ],
)
def test_what_cannot_be_is_refused(asked, said):
    with pytest.raises(ValidationError, match=said):
        PictureSettings(**asked)
