"""Sheets of captioned pictures: what is said under them is there to be read."""

import numpy as np
from PIL import Image

from shared.pages import sheets
from shared.pages.sheets import DETAIL, LINE, Strip, Tile, draw_sheet, fitted, with_line_above

SIDE = 180


def drawn(*details, columns=2):
    """Return a sheet of white pictures with these details."""
    tiles = [Tile(Image.new("RGB", (SIDE, SIDE), "white"), "key", each) for each in details]
    return draw_sheet("title", [Strip("", tiles)], side=SIDE, columns=columns)


def test_a_long_reason_has_room_for_all_its_words():
    font = sheets._fonts()["small"]
    for count in (1, 3, 9, 40):
        words = [f"word{number}" for number in range(count)]
        lines = sheets._lines(" ".join(words), font, SIDE)
        assert len(lines) <= DETAIL
        assert " ".join(lines).split() == words
        assert all(font.getlength(line) <= SIDE for line in lines[: DETAIL - 1])
        said = [fitted(line, font, SIDE) for line in lines]
        assert (said == lines) == (count < 40)


def test_a_row_is_as_high_as_its_longest_reason_and_one_word_is_cut():
    assert (
        drawn("short", "short").height + LINE
        == drawn("short", "near-blank: contrast 0.0 is below 2").height
    )
    assert drawn("x" * 100).size == drawn("x").size
    low = np.asarray(drawn("near-blank: contrast 0.0 is below 2"))[-(LINE + 25) :]
    assert (low < 255).any()  # the second line is drawn


def test_a_line_above_a_picture_leaves_it_whole():
    picture = Image.new("RGB", (60, 20), "red")
    made = with_line_above(picture, "a name that is far too long for it", "white")
    assert made.size == (60, 20 + LINE)
    assert made.crop((0, LINE, 60, 20 + LINE)).tobytes() == picture.tobytes()
    assert (np.asarray(made.crop((0, 0, 60, LINE))) < 255).any()
