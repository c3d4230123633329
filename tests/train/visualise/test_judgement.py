"""Masks that mean nothing are told from those that do, and what is good or bad is read from the maps."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from train.visualise.figures import attention_figure, patch_figure
from train.visualise.judgement import judge, patch_cosines
from train.visualise.patch_colours import lies_inside
from train.visualise.seen import Seen, is_even

MODEL = SimpleNamespace(name="m")
PICTURES, SIDE, WIDTH = 3, 8, 16


def attention(shares):
    """Maps of one head that give each patch its share."""
    maps = np.asarray(shares, np.float32).reshape(1, 1, SIDE, SIDE)
    return np.repeat(maps / maps.sum(), PICTURES, axis=0)


EVERYWHERE = attention(np.ones(SIDE * SIDE))
GATHERED = attention(np.arange(SIDE * SIDE) < 6)


def patches(kind):
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, (PICTURES, SIDE, SIDE, WIDTH))
    if kind == "noise":
        return noise.astype(np.float32)
    if kind == "place":
        return np.repeat(noise[:1], PICTURES, axis=0).astype(np.float32)
    halves = rng.normal(0, 1, (PICTURES, 1, 2, WIDTH)).repeat(SIDE, 1).repeat(SIDE // 2, 2)
    return (halves + 0.1 * noise).astype(np.float32)


def test_even_attention_has_no_mask_and_gathered_attention_has_one():
    for maps, even in ((EVERYWHERE, True), (GATHERED, False)):
        seen = Seen(MODEL, maps, None)
        kept = seen.most_attended(0.6)
        assert is_even(kept[0, 0], 0.6) == even
        shown = {str(n): Image.new("RGB", (20, 20)) for n in range(PICTURES)}
        tile = attention_figure([seen], shown, 0.6).strips[0].tiles[2]
        assert ("no mask" in tile.detail) == even
        assert (tile.image.height > tile.image.width) == (not even)
        assert patch_figure([seen], shown, 0.0) is None


def test_a_foreground_that_the_border_has_as_much_of_is_none():
    inside = np.zeros((1, 6, 6), bool)
    inside[:, 2:4, 2:4] = True
    assert lies_inside(inside)
    assert not lies_inside(~inside)
    assert not lies_inside(np.ones((1, 6, 6), bool))
    assert not lies_inside(np.ones((1, 2, 2), bool))


@pytest.mark.parametrize("kind", ["noise", "place", "halves"])
def test_cosines_of_patches_are_those_of_all_pairs(kind):
    tokens = patches(kind)
    own = tokens.astype(np.float64) - tokens.mean(axis=(0, 1, 2), dtype=np.float64)
    own /= np.linalg.norm(own, axis=3, keepdims=True)
    beside = [
        own[n, y, x] @ own[n, y + down, x + 1 - down]
        for n in range(PICTURES)
        for down in (0, 1)
        for y in range(SIDE - down)
        for x in range(SIDE - 1 + down)
    ]
    across = [
        own[a, y, x] @ own[b, y, x]
        for a in range(PICTURES)
        for b in range(a)
        for y in range(SIDE)
        for x in range(SIDE)
    ]
    near, placed = patch_cosines(tokens)
    assert near == pytest.approx(np.mean(beside), abs=1e-5)
    assert placed == pytest.approx(np.mean(across), abs=1e-5)
    assert patch_cosines(tokens[:1])[1] is None


@pytest.mark.parametrize(
    ("maps", "kind", "said"),
    [
        (GATHERED, "halves", ["Good: it looks at something", "; like patches lie together"]),
        (
            EVERYWHERE,
            "noise",
            ["Bad: it looks almost everywhere", "; patches hardly hang together"],
        ),
        (GATHERED, "place", ["Bad: patches tell where they are"]),
        (None, None, ["There is nothing to judge by."]),
    ],
)
def test_what_is_good_and_bad_is_said_in_a_line(maps, kind, said):
    line = judge(Seen(MODEL, maps, kind and patches(kind)), 0.6)
    assert line.startswith("m. ")
    for words in said:
        assert words in line
    assert ("Good" in line) == (maps is GATHERED)
