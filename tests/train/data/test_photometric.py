import itertools

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional

from train.data import photometric as module
from train.data.photometric import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    SATURATION,
    gaussian_blur,
    photometric,
    shift_hue_,
)

ADJUST = (
    functional.adjust_brightness,
    functional.adjust_contrast,
    functional.adjust_saturation,
    functional.adjust_hue,
)
ORDERS = np.array(list(itertools.permutations(range(4))))


@pytest.fixture(scope="module")
def pictures():
    """Photographs, noise, and all that has no hue or no range: uint8 [8, 3, 40, 56]."""
    draw = torch.Generator().manual_seed(0)
    cuts = [
        torch.from_numpy(getattr(skimage.data, name)()[y : y + 40, x : x + 56]).permute(2, 0, 1)
        for name, y, x in (("astronaut", 60, 180), ("coffee", 150, 200), ("chelsea", 90, 130))
    ]
    noise = torch.randint(0, 256, (2, 3, 40, 56), generator=draw, dtype=torch.uint8)
    grey = torch.arange(40 * 56).remainder(256).to(torch.uint8).view(1, 40, 56).expand(3, -1, -1)
    flat = torch.tensor([0, 255]).to(torch.uint8).view(2, 1, 1, 1).expand(-1, 3, 40, 56)
    return torch.cat([torch.stack(cuts), noise, grey[None], flat])


def unchanged(count):
    return {
        "jitter": torch.zeros(count, dtype=torch.bool),
        "order": torch.arange(4).repeat(count, 1),
        "factors": torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(count, 1),
        "grey": torch.zeros(count, dtype=torch.bool),
        "sigma": torch.zeros(count),
        "solarise": torch.zeros(count, dtype=torch.bool),
    }


def drawn(count, seed):
    draw = np.random.default_rng(seed)
    factors = draw.uniform([0.4, 0.4, 0.4, -0.5], [1.8, 1.8, 1.8, 0.5], (count, 4))
    blur = draw.uniform(0.1, 2.0, count) * (draw.random(count) < 0.5)
    return {
        "jitter": torch.from_numpy(draw.random(count) < 0.8),
        "order": torch.from_numpy(ORDERS[draw.integers(24, size=count)]),
        "factors": torch.from_numpy(factors.astype(np.float32)),
        "grey": torch.from_numpy(draw.random(count) < 0.2),
        "sigma": torch.from_numpy(blur.astype(np.float32)),
        "solarise": torch.from_numpy(draw.random(count) < 0.2),
    }


def levels_apart(a, b):
    return (a.int() - b.int()).abs().max().item()


def test_an_image_with_nothing_to_do_stays_as_it_is(pictures):
    assert torch.equal(photometric(pictures, unchanged(len(pictures))), pictures)


def test_jitter_that_changes_nothing_changes_nothing(pictures):
    idle = unchanged(len(pictures)) | {"jitter": torch.ones(len(pictures), dtype=torch.bool)}
    assert torch.equal(photometric(pictures, idle), pictures)


@pytest.mark.parametrize(
    ("operation", "factor"),
    [
        *itertools.product((BRIGHTNESS, CONTRAST, SATURATION), (0.6, 0.83, 1.17, 1.4)),
        *itertools.product((HUE,), (-0.5, -0.1, 0.037, 0.1, 0.34)),
    ],
)
def test_each_operation_is_torchvisions_but_for_one_grey_level(pictures, operation, factor):
    one = unchanged(len(pictures))
    one["jitter"][:] = True
    one["factors"][:, operation] = factor
    theirs = ADJUST[operation](pictures, factor)
    assert levels_apart(photometric(pictures, one), theirs) <= 1


def test_grey_blur_and_solarisation_are_torchvisions(pictures):
    count = len(pictures)
    grey = photometric(pictures, unchanged(count) | {"grey": torch.ones(count, dtype=torch.bool)})
    assert levels_apart(grey, functional.rgb_to_grayscale(pictures, 3)) <= 1
    for sigma in (0.1, 0.7, 2.0):
        blurred = photometric(pictures, unchanged(count) | {"sigma": torch.full((count,), sigma)})
        assert levels_apart(blurred, functional.gaussian_blur(pictures, 9, sigma)) <= 1
    solarised = photometric(
        pictures, unchanged(count) | {"solarise": torch.ones(count, dtype=torch.bool)}
    )
    assert torch.equal(solarised, functional.solarize(pictures, 128))


@pytest.mark.parametrize("turns", [-0.5, -0.31, -0.1, 0.0, 0.02, 0.1, 0.4, 0.5])
def test_hue_of_every_kind_of_colour_turns_as_in_hsv(turns):
    steps = torch.arange(0, 256, 15, dtype=torch.float64)
    colours = torch.cartesian_prod(steps, steps, steps).T.reshape(1, 3, 18, -1)
    expected = functional.adjust_hue(colours / 255, turns) * 255
    pixels = colours.float()
    shift_hue_(pixels, torch.tensor([turns]))
    torch.testing.assert_close(pixels.double(), expected, atol=2e-3, rtol=0)


def test_each_image_is_blurred_by_its_own_kernel_up_to_the_edges(pictures):
    sigma = torch.linspace(0.1, 2.0, len(pictures))
    expected = [
        functional.gaussian_blur(picture.double(), 9, width.item())
        for picture, width in zip(pictures, sigma, strict=True)
    ]
    blurred = gaussian_blur(pictures.float(), sigma)
    torch.testing.assert_close(blurred.double(), torch.stack(expected), atol=1e-3, rtol=0)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_the_chain_is_torchvisions_in_float64_rounded_once(pictures, seed):
    chosen = drawn(len(pictures), seed)
    finished = photometric(pictures, chosen | {"solarise": torch.zeros(len(pictures)).bool()})
    for number, picture in enumerate(pictures):
        expected = picture.double() / 255
        if chosen["jitter"][number]:
            for operation in chosen["order"][number].tolist():
                factor = chosen["factors"][number, operation].item()
                expected = ADJUST[operation](expected, factor)
        if chosen["grey"][number]:
            expected = functional.rgb_to_grayscale(expected, 3)
        if sigma := chosen["sigma"][number].item():
            expected = functional.gaussian_blur(expected, 9, sigma)
        assert (finished[number] - 255 * expected).abs().max() < 0.51


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_an_image_comes_out_the_same_in_any_batch(pictures, seed):
    chosen = drawn(len(pictures), seed)
    together = photometric(pictures, chosen)
    alone = [
        photometric(pictures[n : n + 1], {name: of[n : n + 1] for name, of in chosen.items()})
        for n in range(len(pictures))
    ]
    assert torch.equal(together, torch.cat(alone))


def test_what_is_done_at_once_does_not_show(pictures, monkeypatch):
    chosen = drawn(len(pictures), 3)
    whole = photometric(pictures, chosen)
    monkeypatch.setattr(module, "_VALUES_AT_ONCE", 3 * pictures[0].numel())
    assert torch.equal(photometric(pictures, chosen), whole)


def test_contrast_does_not_depend_on_the_number_of_threads():
    """Before rounding, which hides most of it: torch splits the sum of one image among threads."""
    pixels = 255 * torch.rand(10, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    shares = torch.tensor([0.7, 0.3, 0.0]).view(3, 1, 1, 1, 1)
    threads, results = torch.get_num_threads(), []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        results.append(pixels.clone())
        for image in results[-1].split(1):
            module._blend_(image, *shares)
    torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_no_images_give_no_images(pictures):
    assert photometric(pictures[:0], unchanged(0)).shape == (0, 3, 40, 56)


def test_the_images_given_are_left_alone(pictures):
    before = pictures.clone()
    photometric(pictures, drawn(len(pictures), 5))
    assert torch.equal(pictures, before)
