"""Decoding: every encoding comes out upright in the right colours, everything else is a reason."""

import contextlib
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shared.pictures.images import Header, ImageError, decode, read_header


def photograph(width=96, height=64):
    """Return a picture whose four corners differ in colour, smooth enough to survive JPEG."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 255 * x / (width - 1), 255 * y / (height - 1)
    return Image.fromarray(np.stack([red, green, 255 - red], axis=-1).astype(np.uint8))


def encoded(image, file_format, **options):
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def difference(a, b):
    assert a.size == b.size
    assert a.mode == b.mode == "RGB"
    return np.abs(np.asarray(a, int) - np.asarray(b, int)).mean()


@pytest.mark.parametrize(
    ("file_format", "options", "most"),
    [
        ("JPEG", {"quality": 95}, 3),
        ("JPEG", {"quality": 95, "progressive": True}, 3),
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 90}, 6),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("GIF", {}, 12),
    ],
)
def test_every_format_gives_the_picture(file_format, options, most):
    data = encoded(photograph(), file_format, **options)
    assert difference(decode(data), photograph()) <= most
    assert read_header(data) == Header(96, 64, file_format.lower())


@pytest.mark.parametrize("file_format", ["MPO", "GIF", "WEBP", "TIFF"])
def test_animations_give_their_first_frame(file_format):
    other = photograph().transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    data = encoded(photograph(), file_format, save_all=True, append_images=[other])
    assert difference(decode(data), photograph()) < 12
    expected = "jpeg" if file_format == "MPO" else file_format.lower()
    assert read_header(data) == Header(96, 64, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_undone_once(orientation, file_format):
    stored_from_upright = [
        None,
        None,
        Image.Transpose.FLIP_LEFT_RIGHT,
        Image.Transpose.ROTATE_180,
        Image.Transpose.FLIP_TOP_BOTTOM,
        Image.Transpose.TRANSPOSE,
        Image.Transpose.ROTATE_90,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_270,
    ][orientation]
    upright = photograph()
    stored = upright if stored_from_upright is None else upright.transpose(stored_from_upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, file_format, exif=exif.tobytes())
    assert difference(decode(data), upright) < 6
    header = read_header(data)
    assert (header.width, header.height) == stored.size


def test_a_broken_exif_block_does_not_cost_the_picture():
    data = encoded(photograph(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage", quality=95)
    assert difference(decode(data), photograph()) < 3


def test_cmyk_comes_out_in_the_right_colours():
    for file_format in ("JPEG", "TIFF"):
        data = encoded(photograph().convert("CMYK"), file_format)
        assert difference(decode(data), photograph()) < 5


def test_alpha_lies_over_white():
    clear = photograph().convert("RGBA")
    clear.putalpha(0)
    white = Image.new("RGB", clear.size, "white")
    assert difference(decode(encoded(clear, "PNG")), white) == 0
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert decode(encoded(half, "PNG")).getpixel((0, 0)) == (127, 127, 127)
    grey = Image.new("LA", (4, 4), (0, 0))
    assert decode(encoded(grey, "PNG")).getpixel((0, 0)) == (255, 255, 255)
    key = Image.new("RGB", (4, 4), (1, 2, 3))
    assert decode(encoded(key, "PNG", transparency=(1, 2, 3))).getpixel((0, 0)) == (255,) * 3


def test_palettes_keep_their_colours_and_their_transparency():
    palette = photograph().quantize(16)
    assert difference(decode(encoded(palette, "PNG")), palette.convert("RGB")) == 0
    index = palette.getpixel((0, 0))
    for file_format in ("PNG", "GIF"):
        image = decode(encoded(palette, file_format, transparency=index))
        assert image.getpixel((0, 0)) == (255, 255, 255)
        assert image.getpixel((95, 63)) == palette.convert("RGB").getpixel((95, 63))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("scale", [257, 1])
def test_sixteen_bits_are_scaled_to_the_range_they_were_written_in(file_format, scale):
    grey = np.asarray(photograph().convert("L"))
    data = encoded(Image.fromarray(grey.astype(np.uint16) * scale), file_format)
    assert difference(decode(data), Image.fromarray(grey).convert("RGB")) == 0


@pytest.mark.parametrize("values", [np.float32(1 / 255), np.float32(1), np.int32(1), np.int32(257)])
def test_wide_tiffs_are_scaled(values):
    grey = np.asarray(photograph().convert("L"))
    data = encoded(Image.fromarray(grey * values), "TIFF")
    assert difference(decode(data), Image.fromarray(grey).convert("RGB")) < 0.01


def test_one_bit_and_one_pixel():
    assert decode(encoded(Image.new("1", (1, 1), 1), "PNG")).getpixel((0, 0)) == (255, 255, 255)
    assert decode(encoded(Image.new("1", (8, 8), 1), "TIFF")).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_data_is_a_reason_and_never_half_a_picture(file_format):
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    data = encoded(Image.fromarray(noise), file_format)
    for share in (0.0, 0.001, 0.01, 0.1, 0.5, 0.9):
        with pytest.raises(ImageError):
            decode(data[: int(len(data) * share)])


def chunk(kind, content, checksum=None):
    checksum = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


@pytest.mark.parametrize(
    "kind", [b"pHYs", b"tEXt", b"zTXt", b"iCCP", b"gAMA", b"eXIf", b"tRNS", b"acTL"]
)
@pytest.mark.parametrize("behind_the_pixels", [False, True])
def test_a_png_is_read_whatever_its_ancillary_chunks_are(kind, behind_the_pixels):
    data = encoded(photograph(), "PNG")
    at = len(data) - 12 if behind_the_pixels else 33
    huge = b"x\0\0" + zlib.compress(bytes(3_000_000))
    for damage in (chunk(kind, b"\0\0\x1e\xc2", 1), chunk(kind, b""), chunk(kind, huge)):
        mended = data[:at] + damage + data[at:]
        assert difference(decode(mended), photograph()) == 0
        assert read_header(mended) == Header(96, 64, "png")


def test_a_damaged_chunk_costs_a_png_neither_its_transparency_nor_its_turn():
    key = Image.new("RGB", (4, 2), (1, 2, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(key, "PNG", transparency=(1, 2, 3), exif=exif.tobytes())
    image = decode(data[:33] + chunk(b"tEXt", b"x", 1) + data[33:])
    assert (image.size, image.getpixel((0, 0))) == ((2, 4), (255, 255, 255))


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE"])
def test_a_wrong_checksum_of_what_a_png_needs_is_a_reason(kind):
    data = bytearray(encoded(photograph().quantize(16), "PNG"))
    at = data.index(kind)
    (length,) = struct.unpack_from(">I", data, at - 4)
    data[at + 4 + length] ^= 1
    with pytest.raises(ImageError):
        decode(bytes(data))


@pytest.mark.parametrize("marker", [0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xEF, 0xFE])
@pytest.mark.parametrize(
    "content",
    [b"", b"J", b"JFIF\0", b"Exif\0\0", b"ICC_PROFILE\0", b"Adobe", b"Photoshop 3.0\x008BIM"],
)
def test_a_jpeg_is_read_whatever_its_application_segments_are(marker, content):
    data = encoded(photograph(), "JPEG", quality=95)
    segments = [struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content]
    if not content:
        segments += [struct.pack(">BBH", 0xFF, marker, length) for length in (0, 1)]
    for segment in segments:
        assert difference(decode(data[:2] + segment + data[2:]), photograph()) < 3
        assert read_header(data[:2] + segment + data[2:]) == Header(96, 64, "jpeg")


def test_a_short_segment_costs_a_jpeg_neither_its_colours_nor_its_turn():
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = photograph().transpose(Image.Transpose.ROTATE_180).convert("CMYK")
    data = encoded(turned, "JPEG", quality=95, exif=exif.tobytes())
    assert b"Adobe" in data
    assert difference(decode(data[:2] + b"\xff\xee\0\x07Adobe" + data[2:]), photograph()) < 5


SAMSUNG_TRAILER = (
    b"\0\0\x01\x0a\x0e\0\0\0Image_UTC_Data1500000000000\xff\xff\xffSEFH" + bytes(20) + b"SEFT"
)


def half_flat(width=56, height=40):
    """Return noise above grey: a decoder fills what is missing with the same grey."""
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    noise[height // 2 :] = 128
    return Image.fromarray(noise)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([half_flat(), photograph(56, 40), photograph(56, 40).convert("CMYK")]),
    st.sampled_from([Image.new("L", (9, 9), 128), Image.new("RGB", (40, 40), "white"), None]),
    st.sampled_from(
        [
            {"quality": 90},
            {"quality": 100, "subsampling": 0},
            {"optimize": True},
            {"progressive": True},
            {"restart_marker_blocks": 1},
            {"restart_marker_rows": 1, "progressive": True},
        ]
    ),
    st.one_of(st.integers(0, 90), st.integers(0, 10_000)),
    st.sampled_from([b"", SAMSUNG_TRAILER]),
)
def test_a_jpeg_cut_anywhere_is_whole_or_a_reason(image, flat, options, lost, trailer):
    data = encoded(flat or image, "JPEG", **options)
    try:
        image = decode(data[: max(0, len(data) - lost)] + trailer)
    except ImageError:
        assert lost > 2 or flat  # a hole of zeros can look like the code of a flat picture
    else:
        assert difference(image, decode(data)) == 0


@pytest.mark.parametrize("size", [(9, 9), (9, 8), (17, 9), (8, 8)])
@pytest.mark.parametrize("grey", [0, 100, 128, 255])
def test_a_jpeg_whose_last_block_shows_one_pixel_is_whole_or_a_reason(size, grey):
    data = encoded(Image.new("L", size, grey), "JPEG", restart_marker_blocks=1)
    for lost in range(3, 20):
        with contextlib.suppress(ImageError):
            assert difference(decode(data[:-lost]), decode(data)) == 0


def test_a_jpeg_that_lacks_scans_is_a_reason():
    data = encoded(photograph(), "JPEG", progressive=True)
    scans = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    assert len(scans) > 5
    for at in scans[1:]:
        at = data.rindex(b"\xff\xc4", 0, at) if b"\xff\xc4" in data[scans[0] : at] else at
        with pytest.raises(ImageError):
            decode(data[:at])


def test_a_jpeg_that_ends_in_zeros_is_a_reason():
    data = encoded(half_flat(), "JPEG", quality=95)
    with pytest.raises(ImageError):
        decode(data[: len(data) // 2] + bytes(len(data)))


def test_a_gif_without_a_screen_is_as_large_as_its_first_frame():
    data = encoded(photograph(), "GIF")
    for screen in ((0, 0), (0, 64), (96, 0), (5, 5)):
        without = data[:6] + struct.pack("<HH", *screen) + data[10:]
        assert difference(decode(without), decode(data)) == 0
        assert read_header(without) == Header(96, 64, "gif")
    frame = data.index(b",\0\0\0\0\x60\0\x40\0")
    huge = without[: frame + 5] + b"\xff\xff\xff\xff" + without[frame + 9 :]
    with pytest.raises(ImageError, match="too large: 65535x65535"):
        decode(huge)


def bombs():
    size = struct.pack(">II", 30000, 30001)
    chunk = b"IHDR" + size + b"\x08\x02\0\0\0"
    png = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\r" + chunk + struct.pack(">I", zlib.crc32(chunk))
    png += b"\0\0\0\4IDAT" + b"\0" * 8
    small = encoded(photograph(), "GIF")
    gif = small[:6] + struct.pack("<HH", 30000, 30001) + small[10:]
    canvas = (29999).to_bytes(3, "little") + (30000).to_bytes(3, "little")
    webp = b"RIFF\x64\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0" + canvas + b"\0" * 64
    jpeg = bytearray(encoded(photograph(), "JPEG"))
    start = jpeg.index(b"\xff\xc0") + 5
    jpeg[start : start + 4] = struct.pack(">HH", 30001, 30000)
    return {"png": png, "gif": gif, "webp": webp, "jpeg": bytes(jpeg)}


@pytest.mark.parametrize("name", ["png", "gif", "webp", "jpeg"])
def test_a_bomb_has_a_header_and_a_reason_that_names_its_size(name):
    data = bombs()[name]
    assert read_header(data) == Header(30000, 30001, name)
    with pytest.raises(ImageError, match="too large: 30000x30001"):
        decode(data)


def test_the_pixel_limit_is_inclusive_and_counts_before_reduction():
    data = encoded(photograph(), "JPEG")
    assert decode(data, max_pixels=96 * 64).size == (96, 64)
    with pytest.raises(ImageError, match="too large: 96x64"):
        decode(data, max_pixels=96 * 64 - 1, reduce_to=8)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><p>404", "an HTML page"),
        (b"\n <svg/>", "an SVG drawing"),
        (b"\0\0\0 ftypavif" + b"\0" * 50, "an AVIF picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (b"\0" * 5000, "zeros"),
        (b"some text", "not an image"),
    ],
)
def test_what_is_no_image_is_named(data, reason):
    for read in (read_header, decode):
        with pytest.raises(ImageError, match=reason):
            read(data)


@pytest.mark.parametrize("side", [8, 30, 32, 33, 64, 100])
def test_a_reduced_jpeg_keeps_its_shorter_side(side):
    data = encoded(photograph(384, 256), "JPEG", quality=95)
    reduced = decode(data, reduce_to=side)
    assert min(reduced.size) >= side
    assert min(reduced.size) < 2 * side or min(reduced.size) in (32, 256)
    full = photograph(384, 256).resize((48, 32), Image.Resampling.BOX)
    assert difference(reduced.resize((48, 32), Image.Resampling.BOX), full) < 2


def test_only_jpegs_are_reduced():
    assert decode(encoded(photograph(), "PNG"), reduce_to=8).size == (96, 64)


def test_pillow_is_kept_from_warning():
    broken_exif = encoded(photograph(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode(broken_exif)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]),
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=8),
)
def test_damaged_bytes_give_a_picture_or_a_reason(file_format, edits):
    data = bytearray(encoded(photograph(), file_format))
    for place, value in edits:
        data[place % len(data)] = value
    for reads in (read_header, lambda data: decode(data, max_pixels=10_000_000)):
        with contextlib.suppress(ImageError):
            reads(bytes(data))
