"""The hook that blurs faces, on photographs with a face and without one."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import skimage.data
from PIL import Image

from curate.export.faces import blur_faces, find_faces


def photograph(name):
    return Image.fromarray(getattr(skimage.data, name)()).convert("RGB")


def detail(image, box):
    """Return how much neighbouring pixels of a part differ."""
    grey = np.asarray(image.crop(box).convert("L"), np.float64)
    return np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()


@pytest.mark.parametrize(
    ("name", "middle", "scale"),
    [("astronaut", (225, 118), 1), ("astronaut", (225, 118), 3), ("camera", (228, 158), 1)],
)
def test_a_face_is_blurred_and_the_rest_stays(name, middle, scale):
    image = photograph(name)
    image = image.resize([scale * side for side in image.size], Image.Resampling.BICUBIC)
    [(left, top, right, bottom)] = find_faces(image)
    x, y = (scale * place for place in middle)
    assert left < x < right
    assert top < y < bottom
    blurred = blur_faces(image)
    width, height = right - left, bottom - top
    inner = (left + width // 4, top + height // 4, right - width // 4, bottom - height // 4)
    assert detail(blurred, inner) < 0.4 * detail(image, inner)
    changed = (np.asarray(blurred) != np.asarray(image)).any(2)
    rows, columns = np.nonzero(changed)
    assert left <= columns.min() <= columns.max() < right
    assert top <= rows.min() <= rows.max() < bottom


@pytest.mark.parametrize("name", ["coffee", "chelsea", "rocket"])
def test_a_picture_without_a_face_is_the_one_that_was_given(name):
    image = photograph(name)
    assert blur_faces(image) is image
    assert blur_faces(Image.new("RGB", (1, 1))).size == (1, 1)


def test_threads_find_what_one_does():
    images = [photograph("astronaut"), photograph("camera")] * 2
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(find_faces, images)) == [find_faces(image) for image in images]
