import itertools
import math

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from torchvision import transforms
from torchvision.transforms.v2 import InterpolationMode, Normalize, functional

from train.data import crops as module
from train.data.crops import Views, finish_views, normalise, stack_views
from train.data.photometric import HUE
from train.data.settings import CropSettings

SMALL = {"global_size": 24, "local_size": 12, "local_views": 4}
ON_CPU, DEFERRED = CropSettings(**SMALL), CropSettings(**SMALL, device="gpu")


@pytest.fixture(scope="module")
def picture():
    return torch.from_numpy(skimage.data.astronaut()[40:140, 150:300]).permute(2, 0, 1)


@pytest.fixture(scope="module")
def many_parameters():
    """What is drawn for 3000 samples by DINOv2's settings: tensors [3000, views, ...]."""
    drawn = Views(DEFERRED, 0).draw(range(3000), [0] * 3000, np.full((3000, 2), 8))
    return {name: torch.from_numpy(values) for name, values in drawn.parameters.items()}


def finished(settings, seed, image, sample, epoch):
    global_views, local_views, rest = stack_views([Views(settings, seed)(image, sample, epoch)])
    assert rest is None
    return global_views, local_views


def boxes(shape, count=200, seed=0, **changed):
    chosen = CropSettings(**SMALL | {"local_views": count - 2} | changed)
    return module._boxes(module._draw([seed], count), np.array([shape[1:]]), chosen)[0]


def test_views_have_the_sizes_and_numbers_asked_for(picture):
    for views in (0, 1, 7):
        chosen = CropSettings(global_size=32, local_size=16, local_views=views)
        global_views, local_views = finished(chosen, 0, picture, 0, 0)
        assert global_views.shape == (2, 3, 32, 32)
        assert local_views.shape == (views, 3, 16, 16)
        assert global_views.dtype == local_views.dtype == torch.uint8


# pitfall 18
def test_views_differ_between_samples_epochs_seeds_and_views(picture):
    drawn = [
        view
        for seed, sample, epoch in itertools.product(range(2), range(3), range(3))
        for view in finished(ON_CPU, seed, picture, sample, epoch)[0]
    ]
    assert len({view.numpy().tobytes() for view in drawn}) == len(drawn) == 2 * 18


# pitfall 18
def test_views_repeat_with_seed_sample_and_epoch_whatever_else_is_drawn(picture):
    draw = Views(ON_CPU, 7)
    first = stack_views([draw(picture, 5, 1)])
    torch.manual_seed(99)
    np.random.seed(99)
    draw(picture, 6, 1)
    again = stack_views([draw(picture, 5, 1)])
    assert all(torch.equal(a, b) for a, b in zip(first[:2], again[:2], strict=True))


def test_drawing_leaves_the_global_generators_alone(picture):
    torch.manual_seed(3)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    finished(ON_CPU, 0, picture, 0, 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()


def test_more_local_views_change_no_other_view(picture):
    few, many = (
        finished(ON_CPU.model_copy(update={"local_views": views}), 0, picture, 3, 2)
        for views in (2, 6)
    )
    assert torch.equal(few[0], many[0])
    assert torch.equal(few[1], many[1][:2])


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_crops_are_torchvisions(picture, interpolation):
    chosen = DEFERRED.model_copy(update={"interpolation": interpolation})
    made = Views(chosen, 1)(picture, 2, 3)
    draws = Views(chosen, 1).draw([2], [3], np.array([picture.shape[1:]]))
    places, flips = draws.boxes[0], draws.flips[0]
    assert flips.any()
    assert not flips.all()
    views = [*made.global_views, *made.local_views]
    for view, place, flip in zip(views, places.tolist(), flips, strict=True):
        mode = InterpolationMode(interpolation)
        size = list(view.shape[1:])
        expected = functional.resized_crop(picture, *place, size, mode, antialias=True)
        assert torch.equal(view, expected.flip(-1) if flip else expected)


def test_a_pillow_image_gives_what_its_pixels_give(picture):
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    for a, b in zip(
        finished(ON_CPU, 0, image, 1, 1), finished(ON_CPU, 0, picture, 1, 1), strict=True
    ):
        assert torch.equal(a, b)


@given(st.integers(1, 600), st.integers(1, 600), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_boxes_lie_in_the_image(height, width, seed):
    top, left, high, wide = boxes((3, height, width), count=20, seed=seed).T
    assert (high >= 1).all()
    assert (wide >= 1).all()
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + high <= height).all()
    assert (left + wide <= width).all()


def test_boxes_are_distributed_as_torchvisions():
    shape, count = (3, 375, 500), 4000
    image, area = torch.empty(shape), (0.3, 1.0)
    torch.manual_seed(0)
    theirs = np.array(
        [transforms.RandomResizedCrop.get_params(image, area, (3 / 4, 4 / 3)) for _ in range(count)]
    )
    ours = boxes(shape, count=count, local_area=area, global_area=area)
    for statistic in (
        lambda b: b[:, 2] * b[:, 3] / (375 * 500),
        lambda b: np.log(b[:, 3] / b[:, 2]),
        lambda b: b[:, 0] / 375,
        lambda b: b[:, 1] / 500,
    ):
        quantiles = np.linspace(0.05, 0.95, 10)
        apart = np.quantile(statistic(ours), quantiles) - np.quantile(statistic(theirs), quantiles)
        assert np.abs(apart).max() < 0.03


def test_areas_and_aspects_are_the_settings():
    places = boxes((3, 700, 700), count=2000)
    share, aspect = places[:, 2] * places[:, 3] / 700**2, places[:, 3] / places[:, 2]
    assert share[:2].min() > 0.31
    assert 0.049 < share[2:].min() < 0.052
    assert 0.315 < share[2:].max() < 0.322
    assert 0.74 < aspect.min() < 0.76
    assert 1.32 < aspect.max() < 1.35


@pytest.mark.parametrize(
    ("shape", "box"), [((3, 20, 400), (0, 186, 20, 27)), ((3, 400, 20), (186, 0, 27, 20))]
)
def test_where_no_draw_fits_the_largest_box_at_the_centre_is_taken_as_by_torchvision(shape, box):
    ours = boxes(shape, global_area=(1.0, 1.0), local_area=(1.0, 1.0))
    theirs = transforms.RandomResizedCrop.get_params(torch.empty(shape), (1.0, 1.0), (3 / 4, 4 / 3))
    assert (ours == box).all()
    assert theirs == box


def test_probabilities_are_the_published_ones(many_parameters):
    blurred = (many_parameters["sigma"] > 0).float().mean(0)
    expected = torch.tensor([1.0, 0.1, 0.5, 0.5, 0.5, 0.5])
    torch.testing.assert_close(blurred, expected, atol=0.03, rtol=0)
    assert many_parameters["solarise"].sum(0)[[0, 2, 3, 4, 5]].sum() == 0
    assert abs(many_parameters["solarise"][:, 1].float().mean() - 0.2) < 0.03
    assert abs(many_parameters["jitter"].float().mean() - 0.8) < 0.01
    assert abs(many_parameters["grey"].float().mean() - 0.2) < 0.01


def test_strengths_are_the_published_ones(many_parameters):
    factors = many_parameters["factors"].flatten(0, 1)
    for column, (least, largest) in enumerate(((0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1))):
        values = factors[:, column]
        assert least <= values.min() < least + 0.01
        assert largest - 0.01 < values.max() <= largest + 1e-6
        assert abs(values.mean() - (0 if column == HUE else 1)) < 0.01
    sigma = many_parameters["sigma"][many_parameters["sigma"] > 0]
    assert 0.1 <= sigma.min() < 0.11
    assert 1.99 < sigma.max() <= 2.0
    assert abs(sigma.mean() - 1.05) < 0.02


def test_jitter_comes_in_every_order_alike(many_parameters):
    orders = many_parameters["order"].flatten(0, 1)
    _, counts = orders.unique(dim=0, return_counts=True)
    assert len(counts) == 24
    assert (counts / len(orders) - 1 / 24).abs().max() < 0.01


def test_strong_jitter_never_turns_a_factor_negative(picture):
    strong = CropSettings(**SMALL, jitter=(2.0, 2.0, 2.0, 0.5), device="gpu")
    factors = torch.cat([Views(strong, 0)(picture, n, 0).parameters["factors"] for n in range(50)])
    assert 0 <= factors[:, :HUE].min() < 0.1
    assert 2.9 < factors[:, :HUE].max() <= 3


def test_views_are_stacked_crop_major(picture):
    samples = [Views(ON_CPU, 0)(picture, number, 0) for number in range(3)]
    alone = [stack_views([sample]) for sample in samples]
    global_views, local_views, _ = stack_views(samples)
    for view, sample in np.ndindex(2, 3):
        assert torch.equal(global_views[view * 3 + sample], alone[sample][0][view])
    for view, sample in np.ndindex(4, 3):
        assert torch.equal(local_views[view * 3 + sample], alone[sample][1][view])


def test_the_training_process_finishes_what_workers_deferred(picture):
    draw, defer = Views(ON_CPU, 0), Views(DEFERRED, 0)
    by_workers = stack_views([draw(picture, number, 0) for number in range(5)])
    deferred = stack_views([defer(picture, number, 0) for number in range(5)])
    assert by_workers[2] is None
    assert not torch.equal(deferred[0], by_workers[0])
    by_process = finish_views(*deferred)
    assert torch.equal(by_process[0], by_workers[0])
    assert torch.equal(by_process[1], by_workers[1])
    assert finish_views(*by_workers)[0] is by_workers[0]


@pytest.mark.parametrize(
    "chosen", [CropSettings(), ON_CPU, CropSettings(local_views=0, aspect=(1.0, 2.0))]
)
def test_no_crop_of_a_reduced_square_image_is_magnified(chosen):
    side = Views(chosen, 0).reduce_to
    views = [(chosen.global_size, chosen.global_area)]
    if chosen.local_views:
        views.append((chosen.local_size, chosen.local_area))
    shortest = [
        side * math.sqrt(area[0] * shape) / size
        for size, area in views
        for shape in (chosen.aspect[0], 1 / chosen.aspect[1])
    ]
    assert 1 <= min(shortest) < 1.02


def test_normalised_views_are_torchvisions(picture):
    expected = Normalize(module.IMAGENET_MEAN, module.IMAGENET_STD)(picture[None].double() / 255)
    ours = normalise(picture[None])
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(normalise(picture[None], torch.bfloat16), ours.bfloat16())


@pytest.mark.parametrize(
    "wrong",
    [
        {"global_area": (1.0, 0.3)},
        {"local_area": (0.0, 0.3)},
        {"aspect": (2.0, 1.0)},
        {"blur_sigma": (0.0, 1.0)},
        {"jitter": (0.4, 0.4, 0.2, 0.6)},
        {"local_size": 4},
        {"grey": 1.5},
        {"interpolation": "nearest"},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        CropSettings(**wrong)
