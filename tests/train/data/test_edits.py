"""Edits belong to their sample, change the picture, and leave it what a copy of it still is."""

from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from shared.embedders.embedder import load
from shared.embedders.settings import bundled_settings
from train.data import edits
from train.data.crops import Views
from train.data.edits import edited
from train.data.layouts import page
from train.data.settings import CropSettings, EditSettings
from train.data.tones import light

NAMES = [name for name in EditSettings.model_fields if name != "mild"]
NOTHING = dict.fromkeys(NAMES, 0.0)
SIDE = 64


@cache
def pictures():
    """Squares of 64 px of the photographs that ship with scikit-image."""
    squares = []
    for name in ("astronaut", "chelsea", "coffee", "rocket", "immunohistochemistry"):
        image = getattr(data, name)()
        half = min(image.shape[:2]) // 2
        for top, left in ((0, 0), (0, half), (half // 2, half // 2)):
            crop = Image.fromarray(image[top : top + half, left : left + half])
            squares.append(np.array(crop.resize((SIDE, SIDE), Image.Resampling.BOX)))
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", NAMES)
def test_an_edit_is_seeded_and_changes_its_view_alone(name):
    always = EditSettings(**NOTHING | {name: 1.0}, mild=0.0)
    views = pictures()[:2]
    made = edited(views, always, seed=7)
    assert made.dtype == torch.uint8
    assert made.shape == views.shape
    assert not torch.equal(made[0], views[0])
    assert torch.equal(made[1], views[1])
    assert torch.equal(edited(views, always, seed=7), made)
    assert not torch.equal(edited(views, always, seed=8), made)


def test_an_edit_comes_out_the_same_whether_others_happen_or_not():
    views = pictures()[:1]
    seeds = range(40)
    last = EditSettings(**NOTHING | {"compress": 1.0})
    both = EditSettings(**NOTHING | {"compress": 1.0, "turn": 0.5})
    pairs = [(edited(views, last, seed), edited(views, both, seed)) for seed in seeds]
    equal = sum(torch.equal(one, other) for one, other in pairs)
    assert 8 <= equal <= 32


def test_draws_of_earlier_edits_come_first():
    earlier = ("turn", "frame", "caption", "cover", "shrink", "compress")
    assert edits._DRAWN[: len(earlier)] == earlier
    assert set(edits._DRAWN) == set(NAMES)


def test_edits_that_settings_do_not_name_are_the_first_six():
    named = {name: getattr(EditSettings(), name) for name in NAMES}
    assert [name for name, share in named.items() if share] == list(edits._DRAWN[:6])


def test_a_quarter_turn_is_a_quarter_or_a_half():
    view = pictures()[:1]
    always = EditSettings(**NOTHING | {"quarter": 1.0})
    turned = [edited(view, always, seed)[0] for seed in range(30)]
    quarters = [torch.rot90(view[0], times, (1, 2)) for times in (1, 2, 3)]
    counts = [sum(torch.equal(each, quarter) for each in turned) for quarter in quarters]
    assert sum(counts) == len(turned)
    assert min(counts) > 0


def test_a_slant_takes_corners_to_where_they_are_moved():
    corners = np.array([[0, 0], [48, 0], [48, 48], [0, 48]], np.float64)
    moved = corners + np.random.default_rng(0).uniform(-7, 7, (4, 2))
    a, b, c, d, e, f, g, h = edits._homography(corners, moved)
    for (x, y), place in zip(corners, moved, strict=True):
        depth = g * x + h * y + 1
        assert np.allclose([(a * x + b * y + c) / depth, (d * x + e * y + f) / depth], place)


@pytest.mark.parametrize("seed", range(12))
def test_a_page_shows_the_whole_picture_at_two_to_four_fifths_of_its_sides(seed):
    green = (1, 254, 3)
    made = np.array(page(Image.new("RGB", (SIDE, SIDE), green), np.random.default_rng(seed)))
    rows, columns = np.nonzero((made == green).all(-1))
    high, wide = (np.ptp(of) + 1 for of in (rows, columns))
    assert len(rows) == high * wide
    assert min(high, wide) > 0.35 * SIDE
    assert max(high, wide) < 0.95 * SIDE
    assert 0.38 * SIDE < np.sqrt(high * wide) < 0.82 * SIDE


@pytest.mark.parametrize("seed", range(12))
def test_light_keeps_what_is_brighter_brighter(seed):
    dark = pictures()[seed].permute(1, 2, 0).numpy()
    bright = dark + (255 - dark) // 3
    first, second = (
        np.array(light(Image.fromarray(of), np.random.default_rng(seed))) for of in (dark, bright)
    )
    assert (first <= second).all()
    assert not np.array_equal(first, dark)


def test_nothing_is_done_where_nothing_is_asked():
    views = pictures()[:2]
    assert torch.equal(edited(views, EditSettings(**NOTHING), seed=0), views)


@pytest.fixture(scope="module")
def embed():
    """The bundled model for copies, as a function of views."""
    embedder = load(bundled_settings("bundled-copies"), threads=1)

    def vectors(views):
        images = [Image.fromarray(view.permute(1, 2, 0).numpy()) for view in views]
        return embedder.embed([embedder.prepare(image) for image in images])

    return vectors


@pytest.fixture(scope="module")
def originals(embed):
    return embed(pictures())


@pytest.mark.parametrize("name", NAMES)
def test_the_bundled_model_finds_a_picture_behind_each_edit(name, embed, originals):
    views = pictures()
    always = EditSettings(**NOTHING | {name: 1.0})
    copies = torch.cat([edited(view[None], always, seed) for seed, view in enumerate(views)])
    nearest = (embed(copies) @ originals.T).argmax(1)
    assert (nearest == np.arange(len(views))).mean() >= 0.6  # by chance 1/15


def test_samples_have_edits_of_their_own_and_keep_their_crops():
    plain = CropSettings(global_size=32, local_views=0, local_size=16)
    with_edits = plain.model_copy(update={"edits": EditSettings()})
    image = pictures()[0]
    before, after = (Views(settings, seed=3) for settings in (plain, with_edits))
    assert torch.equal(after(image, 5, 1).global_views, after(image, 5, 1).global_views)
    boxes = [views.draw([5], [1], np.array([[SIDE, SIDE]])).boxes for views in (before, after)]
    assert np.array_equal(*boxes)
    changed = [
        not torch.equal(before(image, n, 0).global_views, after(image, n, 0).global_views)
        for n in range(20)
    ]
    assert sum(changed) > 15
