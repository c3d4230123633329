import pytest
import torch
from clusters import dataset, relabelled

from shared.errors import LvdError
from train.evaluation.classification.holdout import held_out, known_classes
from train.evaluation.classification.linear import ProbeFeatures, linear_probe, train_heads
from train.evaluation.settings import LinearSettings

QUICK = {"batch_size": 32, "epochs": 4, "least_steps": 60, "learning_rates": (0.001, 0.01, 0.1)}


@pytest.fixture(autouse=True)
def one_thread():
    """Thousands of small steps on several threads that other processes hold up would take minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def probe(train, test, **options):
    (score,) = linear_probe(train, test, LinearSettings(**(QUICK | options)))
    assert (score.task, score.metric, score.higher_is_better) == ("linear", "top-1", True)
    return score


def test_separable_features_are_told_apart():
    assert probe(dataset(300, 1, spread=0.1), dataset(100, 2, spread=0.1)).value >= 0.98


@pytest.mark.parametrize(("scale", "offset"), [(20, 1000), (0.002, 0)])
def test_features_of_any_scale_and_offset_are_told_apart(scale, offset):
    train, test = (dataset(300, seed, spread=0.1, blocks=0, mean=False) for seed in (1, 2))
    for bank in (train, test):
        bank.pooled.mul_(scale).add_(offset)
    assert probe(train, test).value >= 0.98


def test_random_labels_stay_near_chance():
    labels = torch.randint(4, (900,), generator=torch.Generator().manual_seed(0)).tolist()
    train = relabelled(dataset(500, 1), [str(n) for n in labels[:500]])
    test = relabelled(dataset(400, 2), [str(n) for n in labels[500:]])
    assert abs(probe(train, test).value - 1 / 4) < 0.1


def test_what_is_chosen_does_not_depend_on_what_is_reported():
    train, test = dataset(300, 1, spread=2), dataset(100, 2, spread=2)
    chosen = probe(train, test)
    others = relabelled(test, test.labels[::-1]), relabelled(test, ["elsewhere"] * 100)
    shuffled, foreign = (probe(train, other) for other in others)
    assert chosen.setting == shuffled.setting == foreign.setting
    assert chosen.value > shuffled.value > foreign.value == 0


@pytest.mark.parametrize(
    ("blocks", "mean", "expected"),
    [
        (4, True, {"cls": 6, "cls x4": 24, "cls + mean": 12, "cls x4 + mean": 30}),
        (2, False, {"cls": 6, "cls x2": 12}),
        (1, True, {"cls": 6, "cls + mean": 12}),
        (0, True, {"pooled": 6, "pooled + mean": 12}),
        (0, False, {"pooled": 6}),
    ],
)
def test_each_model_is_probed_with_the_features_that_it_has(blocks, mean, expected):
    train, test = (dataset(200, seed, spread=0.1, blocks=blocks, mean=mean) for seed in (1, 2))
    variants = ProbeFeatures(train).variants
    assert {name: some.stop - some.start for name, some in variants.items()} == expected
    score = probe(train, test)
    assert score.value >= 0.98
    assert score.setting.split(", lr ")[0] in expected


def test_a_variant_is_the_last_block_or_all_then_the_mean():
    bank = dataset(10, 1)
    features, rows = ProbeFeatures(bank), torch.tensor([7, 2])
    cls, mean = bank.cls[rows].float(), bank.mean[rows].float()
    expected = {
        "cls": cls[:, -1],
        "cls x4": cls.flatten(1),
        "cls + mean": torch.cat([cls[:, -1], mean], dim=1),
        "cls x4 + mean": torch.cat([cls.flatten(1), mean], dim=1),
    }
    for name, columns in features.variants.items():
        assert torch.equal(features[rows][:, columns], expected[name])


def test_many_heads_at_once_are_what_each_is_alone():
    bank, settings = dataset(200, 1, spread=1), LinearSettings(**QUICK)
    classes, labels, _ = known_classes(bank.labels, [])
    features, rows = ProbeFeatures(bank), torch.arange(0, 200, 2)
    rates = settings.learning_rates
    together = train_heads(features, rows, labels, classes, features.variants, rates, settings)
    for name, columns in features.variants.items():
        for n, rate in enumerate(rates):
            only = {name: columns}
            alone = train_heads(features, rows, labels, classes, only, [rate], settings)
            for parameter in ("weight", "bias"):
                many = getattr(together.heads[name], parameter)
                one = getattr(alone.heads[name], parameter)
                torch.testing.assert_close(many.select(-2, n), one.select(-2, 0))


def test_a_head_is_what_torchs_sgd_makes_of_it():
    bank, steps, rate = dataset(64, 1, spread=1), 40, 0.05
    settings = LinearSettings(batch_size=64, epochs=1, least_steps=steps)
    classes, labels, _ = known_classes(bank.labels, [])
    features, rows = ProbeFeatures(bank), torch.arange(64)
    variants = {"cls": features.variants["cls"]}
    probe = train_heads(features, rows, labels, classes, variants, [rate], settings)
    linear = torch.nn.Linear(6, classes)
    torch.nn.init.zeros_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    # In proportion to the batch: the whole set of 64 is one.
    optimiser = torch.optim.SGD(linear.parameters(), lr=rate * 64 / 256, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    inputs = bank.cls[:, -1].float()
    inputs = (inputs - inputs.mean(dim=0)) / inputs.std(dim=0, correction=0)
    for _ in range(steps):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(linear(inputs), labels).backward()
        optimiser.step()
        scheduler.step()
    close = {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(probe.heads["cls"].weight[:, 0], linear.weight.T, **close)
    torch.testing.assert_close(probe.heads["cls"].bias[0], linear.bias, **close)


def test_the_same_seed_gives_the_same_bytes():
    bank, settings = dataset(200, 1, spread=2), LinearSettings(**QUICK)
    classes, labels, _ = known_classes(bank.labels, [])
    features, rows = ProbeFeatures(bank), torch.arange(200)

    def weights(seed):
        seeded = settings.model_copy(update={"seed": seed})
        probe = train_heads(features, rows, labels, classes, features.variants, [0.1], seeded)
        return probe.heads["cls x4"].weight

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_a_rate_that_diverges_loses_its_own_heads_alone():
    train, test = dataset(200, 1, spread=1), dataset(100, 2, spread=1)
    alone, beside = (probe(train, test, learning_rates=rates) for rates in ((0.01,), (0.01, 1e38)))
    assert (beside.setting, beside.value) == (alone.setting, alone.value)
    with pytest.raises(LvdError, match="every head diverged: lower"):
        probe(train, test, learning_rates=(1e38,))


def test_images_of_a_class_that_only_the_test_set_has_count_as_wrong():
    train, test = dataset(300, 1, spread=0.1), dataset(100, 2, spread=0.1)
    labels = ["class 9" if label == "class 1" else label for label in test.labels]
    score = probe(train, relabelled(test, labels))
    assert score.value == pytest.approx(1 - labels.count("class 9") / 100, abs=0.02)
    assert f"{labels.count('class 9')} of 100 test images" in score.note


def test_one_class_alone_is_refused():
    bank = relabelled(dataset(20, 1), ["cat"] * 20)
    with pytest.raises(LvdError, match="one class only"):
        probe(bank, bank)


def test_each_class_is_held_out_in_proportion_and_never_all_of_it():
    labels = torch.tensor([0] * 100 + [1] * 20 + [2] * 2 + [3])
    fitted, held = held_out(labels, 0.1, 0)
    assert torch.cat([fitted, held]).sort().values.tolist() == list(range(len(labels)))
    assert labels[held].bincount(minlength=4).tolist() == [10, 2, 1, 0]
    again, other = held_out(labels, 0.1, 0)[1], held_out(labels, 0.1, 1)[1]
    assert torch.equal(held, again)
    assert not torch.equal(held, other)


def test_one_image_of_each_class_is_refused():
    with pytest.raises(LvdError, match="none can be held out"):
        held_out(torch.arange(5), 0.1, 0)
