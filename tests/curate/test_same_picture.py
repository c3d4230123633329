"""A second look at the pixels knows an edited copy again, and tells look-alikes apart."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps
from skimage import data

from curate.calibration.same_picture import judge_thumbnails, thumbnail
from curate.pixels.align import without_border
from curate.pixels.same import ALONE, DRAWN, OTHER, SAME, TWO, is_clear_copy, judge, similarity

PHOTOGRAPHS = {
    name: Image.fromarray(getattr(data, name)()) for name in ("astronaut", "chelsea", "coffee")
}


def reencoded(image, quality):
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def cropped(image, share):
    width, height = image.size
    left, top = round(0.7 * width * (1 - share)), round(0.2 * height * (1 - share))
    return image.crop((left, top, left + round(width * share), top + round(height * share)))


def bordered(image):
    return ImageOps.expand(image, round(0.15 * min(image.size)), "navy")


def captioned(image):
    width, height = image.size
    result = Image.new("RGB", (width, round(height * 1.2)), "white")
    result.paste(image)
    ImageDraw.Draw(result).text((5, height + 5), "words that somebody put there", "black")
    return result


def in_window(image):
    """Return the picture in a window of 1.4 times its side, with some lines of text beside it."""
    width, height = image.size
    window = Image.new("RGB", (round(1.4 * width), round(1.4 * height)), "gainsboro")
    pen = ImageDraw.Draw(window)
    pen.rectangle((0, 0, window.width, height // 8), "steelblue")
    for top in range(height // 4, window.height, height // 5):
        pen.line((5, top, width // 3, top), "dimgrey", 3)
    window.paste(image, (width // 3, height // 4))
    return window


def recoloured(image):
    pixels = np.asarray(image.convert("HSV")).copy()
    pixels[..., 0] += 30
    return Image.fromarray(pixels, "HSV").convert("RGB")


EDITS = {
    "mirror": ImageOps.mirror,
    "crop": lambda image: cropped(image, 0.8),
    "border": bordered,
    "caption": captioned,
    "rotation": lambda image: image.rotate(5, Image.Resampling.BICUBIC),
    "recoloured": recoloured,
    "grey": lambda image: ImageOps.grayscale(image).convert("RGB"),
    "blur": lambda image: image.filter(ImageFilter.GaussianBlur(0.01 * min(image.size))),
    "third": lambda image: image.reduce(3),
    "dark": lambda image: ImageEnhance.Brightness(image).enhance(0.6),
    "quarter turn": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "upside down": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "mirrored and turned": lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    "turned and squashed": lambda image: image.resize((320, 200)).rotate(270, expand=True),
    "window": in_window,
    "wide": lambda image: image.resize((round(1.8 * image.width), image.height)),
    "squeezed": lambda image: image.resize((200, 200)),
    "several": lambda image: reencoded(ImageOps.mirror(cropped(image, 0.85)).reduce(2), 40),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_an_edited_copy_is_known_again_from_either_side(name, edit):
    image = PHOTOGRAPHS[name]
    edited = EDITS[edit](image)
    assert similarity(image, edited) >= SAME
    assert similarity(edited, image) >= SAME


def lit_ball(number):
    """Return a shaded disc on a shaded ground: of one composition, with a texture of its own."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[-1:1:160j, -1:1:160j]
    inside = x**2 + y**2 < 0.5
    coarse = Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8))
    grain = np.asarray(coarse.resize((160, 160), Image.Resampling.BICUBIC), np.float32) - 128
    shade = np.where(inside, 170 + 60 * x, 70 - 30 * y)
    return Image.fromarray((shade[..., None] + 0.35 * grain).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("number", range(8))
def test_pictures_of_one_composition_are_no_copies(number):
    assert judge(lit_ball(number), lit_ball(number + 100)) != "same"  # one outline, another grain
    assert judge(lit_ball(number), ImageOps.mirror(lit_ball(number))) == "same"


def test_different_photographs_are_others():
    pictures = list(PHOTOGRAPHS.values())
    for one, other in zip(pictures, pictures[1:] + pictures[:1], strict=True):
        assert similarity(one, other) < OTHER


def wall(number):
    """Return 600 px of bricks or tiles of one size, each of a shade of its own."""
    rng = np.random.default_rng(number)
    height, width = rng.integers(30, 44), rng.integers(60, 100)
    y, x = np.mgrid[:600, :600]
    row = y // height
    column = (x + row % 2 * (number % 2) * width // 2) // width
    mortar = (y % height < 5) | ((x + row % 2 * (number % 2) * width // 2) % width < 5)
    shades = 110 + 25 * rng.normal(size=(row.max() + 1, column.max() + 1))[row, column]
    grey = np.where(mortar, 215, shades) + 3 * rng.normal(size=y.shape)
    return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")


PIECES = (0, 0, 290, 270), (300, 300, 590, 570)
BRICK = Image.fromarray(data.brick()).convert("RGB")
WALLS = [*map(wall, range(4)), BRICK.resize((600, 600))]


@pytest.mark.parametrize("number", range(len(WALLS)))
def test_two_pieces_of_one_wall_are_no_copies(number):
    one, other = (WALLS[number].crop(piece) for piece in PIECES)
    for first, second in ((one, other), (other, one), (one, ImageOps.mirror(other))):
        assert judge(first, second) != "same"
        assert judge_thumbnails(thumbnail(first), thumbnail(second)) != "same"


@pytest.mark.parametrize("edit", ["mirror", "border", "third", "blur", "dark", "squeezed"])
def test_an_edited_copy_of_a_whole_piece_of_wall_is_known_again(edit):
    for whole in (WALLS[0], WALLS[1], WALLS[4]):
        piece = whole.crop(PIECES[0])
        assert similarity(piece, EDITS[edit](piece), ALONE) >= ALONE


def test_flat_pictures_equal_flat_ones_of_their_colour_only():
    grey, also_grey, red = (
        Image.new("RGB", size, colour)
        for size, colour in (((9, 9), "grey"), ((70, 20), (130, 127, 128)), ((9, 9), "red"))
    )
    assert judge(grey, also_grey) == "same"
    assert judge(grey, red) == "other"
    assert judge(grey, PHOTOGRAPHS["coffee"]) == "other"


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (300, 2), (13, 11), (3000, 40)])
def test_pictures_of_any_shape_are_judged(size):
    noise = Image.effect_noise(size, 80).convert("RGB")
    assert -1 <= similarity(noise, PHOTOGRAPHS["chelsea"]) < SAME
    assert -1 <= similarity(PHOTOGRAPHS["chelsea"], noise) < SAME
    assert similarity(noise, noise) > SAME


def test_a_border_is_cut_off_and_a_picture_without_one_is_left_whole():
    image = PHOTOGRAPHS["coffee"]
    inside = without_border(ImageOps.expand(image, 60, "white"))
    assert np.abs(np.subtract(inside.size, image.size)).max() <= 10
    assert without_border(image).size == image.size
    blank = Image.new("RGB", (50, 40), "white")
    assert without_border(blank).size == blank.size


def test_pictures_of_two_greys_are_drawn_and_nothing_is_told_of_two_of_them_by_a_look():
    chats = []
    for ink in ((123, 40, 130), (190, 80, 140)):
        chat = Image.new("RGB", (120, 200), "white")
        for top in range(6, 120, 24):
            ImageDraw.Draw(chat).rectangle((0, top, 119, top + 11), fill=ink)
        noise = np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8)
        chat.paste(Image.fromarray(noise), (0, 120))
        chats.append(chat)
    shares = [np.sort(chat.convert("L").histogram())[-2:] / 24_000 for chat in chats]
    assert all(share.max() < DRAWN < TWO <= share.sum() for share in shares)
    assert similarity(*chats) >= ALONE
    assert not is_clear_copy(*chats)
