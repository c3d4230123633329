"""Drawn pictures are told from photographs, and no two of them are called copies."""

import pytest
from pictures import textured
from PIL import Image, ImageDraw, ImageOps

from curate.pixels.same import is_clear_copy, is_drawn, similarity


def chart(heights):
    """Return bars on a white ground."""
    picture = Image.new("RGB", (128, 96), "white")
    draw = ImageDraw.Draw(picture)
    for place, height in enumerate(heights):
        draw.rectangle([10 + 20 * place, 90 - height, 24 + 20 * place, 90], fill="navy")
    return picture


def test_two_charts_are_no_copies_however_alike():
    one, other = chart([60, 30, 75, 20]), chart([60, 30, 75, 24])
    assert similarity(one, other) > 0.75
    assert is_drawn(one)
    assert is_drawn(other)
    assert not is_clear_copy(one, other)


@pytest.mark.parametrize("number", range(4))
def test_a_photograph_and_its_framed_copy_are(number):
    one = textured(number)
    framed = ImageOps.expand(one, border=(30, 24), fill="black")
    assert not is_drawn(one)
    assert is_drawn(framed)
    assert is_clear_copy(one, framed)
    assert not is_clear_copy(one, textured(50 + number))
