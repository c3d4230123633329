"""How much luminance varies: by hand, at one size, and of drawn pictures less than of photographs."""

import random

import numpy as np
import pytest
from PIL import Image
from skimage import data

from curate.catalogue.drawn import LEAST
from curate.filters.luminance import BITS, SIDE, take
from curate.sample.charts import chart
from curate.sample.pages import document, screenshot


def test_it_is_the_entropy_of_the_luminance_reduced_to_one_size():
    values = np.random.default_rng(0).integers(0, 7, (3 * SIDE, 2 * SIDE), np.uint8) * 40
    picture = Image.fromarray(values).convert("RGB")
    small = np.asarray(
        picture.resize((round(2 * SIDE / 3), SIDE), Image.Resampling.BOX).convert("L")
    )
    share = np.unique(small, return_counts=True)[1] / small.size
    found = take(picture)[BITS]
    assert found == pytest.approx(float(-(share * np.log2(share)).sum()))
    assert take(Image.new("RGB", (9, 9), "red")) == {BITS: 0.0}


def test_drawn_pictures_have_less_of_it_than_photographs():
    drawn = [make(random.Random(n)) for make in (chart, document, screenshot) for n in range(6)]
    assert np.mean([take(each)[BITS] < LEAST for each in drawn]) > 0.8
    photographs = (data.astronaut(), data.chelsea(), data.coffee(), data.rocket())
    assert all(take(Image.fromarray(each))[BITS] >= LEAST for each in photographs)
