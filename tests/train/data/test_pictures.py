"""Decoding samples: the quick way gives what shared.pictures.images gives, and refuses what it refuses."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import train.data.pictures
from shared.pictures.images import ImageError, decode
from train.data.pictures import picture


def photograph(width=90, height=60):
    """Return smooth waves with some noise: what JPEG is made for."""
    y, x = np.mgrid[:height, :width]
    waves = [127 + 120 * np.sin(x / (5 + c) + y / 11) * np.cos(y / (9 - c)) for c in range(3)]
    noise = np.random.default_rng(0).normal(0, 4, (height, width, 3))
    return Image.fromarray(np.clip(np.stack(waves, -1) + noise, 0, 255).astype(np.uint8))


def encode(image, form="JPEG", **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


FILES = {
    "plain": encode(photograph()),
    "grey": encode(photograph().convert("L")),
    "progressive, 4:4:4": encode(photograph(), progressive=True, subsampling=0),
    "odd size": encode(photograph(17, 33)),
    "one pixel": encode(photograph(1, 1)),
    "CMYK": encode(photograph().convert("CMYK")),
    **{f"EXIF {n}": encode(photograph(), exif=turned(n)) for n in range(1, 9)},
    "broken EXIF": encode(photograph(), exif=b"Exif\0\0II*\0\xff\xff"),
    "bytes behind the end": encode(photograph()) + b"more",
    "PNG, palette, transparent": encode(photograph().quantize(9), "PNG", transparency=0),
    "WebP": encode(photograph(), "WEBP"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("reduce_to", [None, 16, 60])
def test_every_encoding_gives_the_pixels_of_shared_images(name, reduce_to):
    expected = np.array(decode(FILES[name], reduce_to=reduce_to))
    found = picture(FILES[name], reduce_to).permute(1, 2, 0).numpy()
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_a_plain_jpeg_is_not_decoded_by_pillow(monkeypatch):
    monkeypatch.setattr(train.data.pictures, "decode", None)
    for name in ("plain", "grey", "progressive, 4:4:4", "odd size"):
        picture(FILES[name])


def test_a_picture_is_reduced_no_further_than_asked():
    data = encode(photograph(400, 240))
    for reduce_to, side in ((240, 240), (121, 240), (120, 120), (61, 120), (31, 60), (1, 30)):
        assert min(picture(data, reduce_to).shape[1:]) == side


@settings(deadline=None)
@given(
    st.integers(0, len(FILES["plain"])), st.lists(st.tuples(st.integers(2), st.binary(max_size=2)))
)
def test_damage_is_refused_by_both_ways_or_gives_the_same_picture(cut, changes):
    data = bytearray(FILES["plain"][:cut] if cut % 3 == 0 else FILES["plain"])
    for place, new in changes:
        at = 2 + place % max(1, len(data) - 2)
        data[at : at + len(new)] = new

    def outcome(decoded):
        try:
            return np.array(decoded(bytes(data))).tolist()
        except ImageError as error:
            return str(error)

    assert outcome(lambda d: picture(d).permute(1, 2, 0)) == outcome(decode)


def test_damage_that_is_passed_over_leaves_the_terminal_alone(capfd):
    data = bytearray(FILES["plain"])
    data[-200:-100] = bytes(100)
    assert picture(bytes(data)).shape == (3, 60, 90)
    assert capfd.readouterr() == ("", "")


def test_a_bomb_is_refused_before_its_pixels_are_made():
    data = bytearray(FILES["plain"])
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = b"\xff\xff\xff\xff"
    with pytest.raises(ImageError, match="too large: 65535x65535"):
        picture(bytes(data))
