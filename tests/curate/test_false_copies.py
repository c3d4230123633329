"""How many copies of a run are false is estimated by a second look at them, and said."""

import json
from collections import Counter

import numpy as np
import pytest
from failing_storage import Rule, failing, script
from hypothesis import given
from hypothesis import strategies as st
from pictures import encoded, textured, write_tar
from PIL import ImageOps
from scipy.stats import binomtest

from curate.catalogue.collection import Catalogued
from curate.catalogue.originals import Originals
from curate.dedup import false_copies
from curate.dedup import pictures as pairs_of_pictures
from curate.dedup.bar import Bar
from curate.dedup.false_copies import (
    EstimateSettings,
    better_threshold,
    estimate,
    estimate_false_copies,
    wilson,
)
from curate.dedup.stage import Deduplicated
from curate.embedding.request import EmbedRequest, EmbedSettings
from curate.embedding.stage import catalogued, embed
from curate.execution.session import open_runner
from curate.report.false_copies import advice
from curate.report.false_copies import false_copies as sentence
from curate.stage import EngineSettings
from shared.datasets.dataset import DatasetSettings, list_parts
from shared.embedders.settings import EmbedderSettings
from shared.errors import LvdError
from shared.pictures.images import ImageError

TRUE, FALSE, EXACT = 9, 5, 2


@pytest.fixture
def pool(tmp_path, monkeypatch):
    """Return an embedded pool on `failing://`, and groups of it of which `FALSE` members are wrong."""
    monkeypatch.setenv("FAILING_STORAGE", script(tmp_path / "script")["FAILING_STORAGE"])
    members, stands = {}, {}
    for number in range(TRUE + FALSE + EXACT):
        original, copy = f"{number:02d}a", f"{number:02d}b"
        members[f"{original}.jpg"] = encoded(textured(number))
        edited = ImageOps.mirror(textured(number)) if number < TRUE else textured(500 + number)
        exact = number >= TRUE + FALSE
        members[f"{copy}.jpg"] = members[f"{original}.jpg"] if exact else encoded(edited)
        stands |= {original: original, copy: original}
    path = write_tar(tmp_path / "in" / "p.tar", members)
    parts = list_parts("crawl", DatasetSettings(path=failing(path)))
    work = tmp_path / "work"
    descriptor = EmbedderSettings(kind="descriptor")
    request = EmbedRequest(work, EmbedSettings(), (descriptor,), (), 1)
    with open_runner(work, EngineSettings(), "inline") as runner, runner.at_work("embed"):
        crawl = catalogued(runner, embed(runner, "crawl", "crawl", parts, request), descriptor)
    numbers = {key.rpartition("/")[2]: crawl.collection.find(key) for key in _keys(crawl)}
    representative = np.full(len(crawl.collection), -1)
    for member, original in stands.items():
        representative[numbers[member]] = numbers[original]
    np.save(tmp_path / "representative.npy", representative)
    return crawl, Deduplicated(tmp_path, {}, {}, "0" * 16, Bar(1.0, 1.0)), work, tmp_path


def _keys(crawl: Catalogued):
    return crawl.collection.keys(np.arange(len(crawl.collection)))


def estimated(pool, work=None, **settings):
    crawl, copies, own, _ = pool
    with open_runner(work or own, EngineSettings(), "inline") as runner:
        found = estimate_false_copies(runner, crawl, copies, EstimateSettings(**settings), 10**8)
    return found.found


def test_the_estimate_is_the_truth_where_all_copies_are_looked_at(pool):
    found = estimated(pool)
    assert found["copies"] == found["pairs"] == TRUE + FALSE  # exact ones are not looked at
    assert (found["false"], found["unsure"], found["unreadable"]) == (FALSE, 0, 0)
    assert found["precision"] == pytest.approx(TRUE / (TRUE + FALSE))
    assert found["low"] < found["precision"] < found["high"]
    for key, representative in found["examples"]:
        assert int(key.rpartition("/")[2][:2]) in range(TRUE, TRUE + FALSE)
        assert representative == key[:-1] + "a"
    assert sentence({"dedup_precision": found}).startswith("about 36% of the copies look false, ")


def test_a_sample_is_drawn_by_its_seed_and_is_the_same_after_a_kill(pool, monkeypatch):
    monkeypatch.setattr(false_copies, "_TOGETHER", 3)
    whole = estimated(pool, pairs=7)
    assert whole["pairs"] == 7
    assert whole == estimated(pool, pairs=7)
    assert whole["copies"] == TRUE + FALSE
    other = pool[-1] / "other"
    judged = Counter()

    def fall(*pictures):
        judged["calls"] += 1
        if judged["calls"] == 5:
            raise KeyboardInterrupt
        return judge(*pictures)

    judge = false_copies.judge
    monkeypatch.setattr(false_copies, "judge", fall)
    with pytest.raises(KeyboardInterrupt):
        estimated(pool, other, pairs=7)
    monkeypatch.setattr(false_copies, "judge", judge)
    assert estimated(pool, other, pairs=7) == whole


def test_nothing_is_looked_at_without_near_copies_or_when_asked_for_none(pool, monkeypatch):
    monkeypatch.setattr(Originals, "read", lambda *_: pytest.fail("an original was read"))
    assert estimated(pool, pairs=0) is None
    representative = np.load(pool[-1] / "representative.npy")
    np.save(
        pool[-1] / "representative.npy",
        np.where(representative >= 0, np.arange(len(representative)), -1),
    )
    assert estimated(pool, seed=1) is None
    assert sentence({"dedup_precision": None}) is None
    assert advice({"dedup_precision": None}) is None


def test_an_image_that_cannot_be_decoded_is_counted_apart(pool, monkeypatch):
    calls = Counter()

    def decode(data, **options):
        calls["n"] += 1
        if calls["n"] in (1, 8):
            raise ImageError("broken")
        return original(data, **options)

    original = pairs_of_pictures.decode
    monkeypatch.setattr(pairs_of_pictures, "decode", decode)
    found = estimated(pool)
    assert found["unreadable"] == 2
    assert found["pairs"] == TRUE + FALSE - 2
    assert "2 pairs could not be read again" in sentence({"dedup_precision": found})


@pytest.mark.parametrize("way", ["forbidden", "missing", "timed out"])
def test_a_failure_of_the_storage_is_no_property_of_an_image(pool, way):
    script(pool[-1] / "script", Rule("read", way))
    with pytest.raises(LvdError):
        estimated(pool)
    assert not list((pool[2] / "estimate").glob("*/look-*/unit.json"))
    script(pool[-1] / "script")
    assert estimated(pool)["false"] == FALSE


@pytest.mark.parametrize(("count", "of"), [(0, 1), (0, 200), (3, 200), (200, 200), (7, 13)])
def test_the_interval_is_wilsons(count, of):
    expected = binomtest(count, of).proportion_ci(method="wilson")
    assert wilson(count, of) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert wilson(0, 0) == (0, 1)


def pairs(**verdicts):
    return [
        {"key": f"{name}{n}", "representative": "r", "cosine": 0.9, "verdict": name}
        for name, count in verdicts.items()
        for n in range(count)
    ]


def test_what_cannot_be_told_counts_as_half_and_widens_the_interval():
    found = estimate(pairs(same=80, other=10, unsure=10, unreadable=7))
    assert found["precision"] == pytest.approx(0.85)
    assert found["low"] == pytest.approx(1 - wilson(20, 100)[1])
    assert found["high"] == pytest.approx(1 - wilson(10, 100)[0])
    assert estimate(pairs(unreadable=3))["precision"] is None


JUDGED = st.lists(
    st.tuples(st.integers(50, 60), st.sampled_from(["same", "same", "other", "unsure"])),
    max_size=120,
)


@given(JUDGED)
def test_the_proposed_threshold_is_the_lowest_that_leaves_few(judged):
    looked = [{"cosine": cosine / 64, "verdict": verdict} for cosine, verdict in judged]
    fits = []
    for threshold in sorted({pair["cosine"] for pair in looked}):
        above = Counter(pair["verdict"] for pair in looked if pair["cosine"] >= threshold)
        if above.total() >= 20 and above["other"] + above["unsure"] / 2 <= 0.01 * above.total():
            fits.append(threshold)
    found = better_threshold(looked)
    if not fits:
        assert found is None
    else:
        assert 0 <= found - fits[0] < 1e-4


def many_false():
    looked = [dict(pair, cosine=0.7) for pair in pairs(other=20)]
    return estimate([*looked, *(dict(pair, cosine=0.8125) for pair in pairs(same=180))])


@pytest.mark.parametrize(
    ("source", "precision", "change"),
    [
        ("calibrated", 0.99, "--set dedup.precision=0.999"),
        ("calibrated", 0.999, "--set dedup.precision=0.9999"),
        ("pipeline", 0.99, "--set dedup.threshold=0.8125"),
        ("embedder", 0.99, "--set dedup.threshold=0.8125"),
    ],
)
def test_the_advice_names_what_the_threshold_comes_from(source, precision, change):
    said = advice(
        {
            "dedup_precision": many_false(),
            "thresholds": {"dedup": {"value": 0.7, "source": source}},
            "settings": {"dedup": {"precision": precision}},
        }
    )
    assert f"({change})" in said
    assert said.count("--set") == 1
    setting, _, value = change.removeprefix("--set ").partition("=")
    assert said.startswith(f"Raise {setting} ")
    assert setting != "dedup.precision" or precision < float(value) < 1


def test_many_false_copies_come_with_what_to_change():
    said = {"dedup_precision": many_false()}
    assert "--set dedup.threshold=0.8125" in advice(said)
    assert "dedup.embedder" in advice(said)
    assert sentence(said) == (
        "about 10% of the copies look false, 7 to 15% (200 pairs compared again by their pixels)"
    )
    worse = {"dedup_precision": estimate(pairs(other=20, same=20))}
    assert advice(worse).startswith("Name another dedup.embedder")
    fine = {"dedup_precision": estimate(pairs(other=1, same=199))}
    assert advice(fine) is None
    assert sentence(fine).startswith("about 0.5% of the copies look false, 0.1 to 3% (200 pairs")
    assert json.loads(json.dumps(fine)) == fine
