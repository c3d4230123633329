"""Filters of quality by facts alone: what each excludes and what it says, off unless it is set."""

import numpy as np
import pyarrow as pa
import pytest
from made_collection import Made, made_collection, made_part
from pydantic import ValidationError

from curate.catalogue.part_files import COLUMNS
from curate.filters.decisions import CODE, DECISIONS, OPEN
from curate.filters.judge import judge
from curate.filters.quality import QualitySettings, active
from curate.filters.registry import FILTERS
from shared.errors import LvdError

FINE = {
    "url": "https://img.example.org:8443/a.jpg",
    "width": 400,
    "height": 300,
    "format": "jpeg",
    "bytes": 60_000,
    "problem": "",
    "contrast": 40.0,
}
VECTOR = (1.0, 0.0, 0.0, 0.0)


def judged(settings, resolved=None, **facts):
    row = dict.fromkeys(COLUMNS.names) | FINE | facts
    table = pa.Table.from_pylist([row], COLUMNS)
    quality = QualitySettings(**settings)
    [code], [reason] = judge(table, None, np.array([True]), quality, resolved=resolved)
    return ("open" if code == OPEN else DECISIONS[code]), reason


EXCLUDED = [
    ({"min_side": 301}, {}, "shorter side 300 px is below 301"),
    ({"max_aspect": 1.3}, {}, "aspect ratio 1.3333 is above 1.3"),
    ({"min_pixels": 120_001}, {}, "area 120,000 px is below 120,001"),
    ({"min_bytes_per_pixel": 0.51}, {}, "0.5 bytes a pixel are below 0.51"),
    ({"formats": ["png", "webp"]}, {}, "format jpeg is none of png, webp"),
    ({"domains": ["example.com"]}, {}, "domain img.example.org is none of quality.domains"),
    ({"domains": ["example.org"]}, {"url": None}, "domain unknown is none of quality.domains"),
    ({"domains": ["ample.org"]}, {}, "domain img.example.org is none of quality.domains"),
    ({"domains": ["a.org"]}, {"url": "http://[a.org"}, "domain unknown is none of quality.domains"),
    ({"denied_domains": ["example.org"]}, {}, "domain img.example.org is denied by example.org"),
    ({"min_contrast": 41}, {}, "near-blank: contrast 40.0 is below 41"),
]
PASSED = [
    ({}, {}),
    ({"min_side": 300, "max_aspect": 4 / 3, "min_pixels": 120_000}, {}),
    ({"min_bytes_per_pixel": 0.5, "min_contrast": 40}, {}),
    ({"formats": ["png", "jpeg"]}, {}),
    ({"domains": ["EXAMPLE.org."]}, {}),
    ({"domains": ["img.example.org"]}, {"url": "https://IMG.example.org./x"}),
    ({"denied_domains": ["ample.org", "x.img.example.org", "org.uk"]}, {}),
    ({"denied_domains": ["example.org"]}, {"url": None}),
    ({"min_side": None, "max_aspect": None}, {"width": 9_000, "height": 2}),
    ({"min_contrast": None}, {"contrast": 0.0}),
]


@pytest.mark.parametrize(("settings", "facts", "reason"), EXCLUDED)
def test_a_filter_excludes_and_says_why(settings, facts, reason):
    assert judged(settings, **facts) == ("low_quality", reason)


@pytest.mark.parametrize(("settings", "facts"), PASSED)
def test_bounds_are_inclusive_and_a_filter_can_be_off(settings, facts):
    assert judged(settings, **facts) == ("open", "")


def test_what_is_broken_is_corrupt_whatever_the_filters_say():
    broken = {"problem": "cut", "width": None, "height": None, "format": None, "bytes": 0}
    everything = {"min_pixels": 10, "min_bytes_per_pixel": 1, "formats": ["png"], "odd_size": 3}
    assert judged(everything, {"odd_size": [9, 10]}, **broken) == ("corrupt", "cut")


def test_every_setting_of_quality_is_that_of_one_filter():
    assert sorted(each.setting for each in FILTERS) == sorted(QualitySettings.model_fields)
    on = {each.setting for each in active(QualitySettings())}
    assert on == {"min_side", "max_aspect", "min_contrast"}
    assert active(None) == []


def test_a_filter_reads_no_column_but_those_that_it_declares():
    values = {
        "min_side": 9, "max_aspect": 2, "min_pixels": 9, "min_bytes_per_pixel": 0.1,
        "odd_size": [1, 900], "formats": ["png"], "domains": ["a.org"],
        "denied_domains": ["a.org"], "min_contrast": 3,
    }  # fmt: skip
    table = pa.Table.from_pylist([dict.fromkeys(COLUMNS.names) | FINE], COLUMNS)
    for each in FILTERS:
        if set(each.columns) <= set(COLUMNS.names):
            failing, _ = each.find(table.select(list(each.columns)), values[each.setting])
            assert failing.dtype == bool
            assert failing.shape == (1,)


SIDES = [(40, 90), (60, 60), (64, 64), (70, 60), (80, 45), (66, 66), (900, 900), (33, 33)]


def odd_by_hand(sides, ranges):
    """Return which roots of areas lie beyond the quartiles, by sorting and interpolating."""
    roots = sorted((width * height) ** 0.5 for width, height in sides)

    def quantile(share):
        at = share * (len(roots) - 1)
        low = roots[int(at)]
        return low + (at - int(at)) * (roots[min(int(at) + 1, len(roots) - 1)] - low)

    low, high = quantile(0.25), quantile(0.75)
    least, most = low - ranges * (high - low), high + ranges * (high - low)
    return [not least <= (width * height) ** 0.5 <= most for width, height in sides]


@pytest.mark.parametrize("ranges", [0, 1, 3, 500])
def test_sizes_are_odd_by_the_quartiles_of_the_whole_crawl_whatever_its_parts(tmp_path, ranges):
    images = [
        Made(f"part-{number % 3}/{number}", VECTOR, size) for number, size in enumerate(SIDES)
    ]
    broken = Made("part-0/z", None, (5_000, 5_000), problem="cut")
    quality = QualitySettings(odd_size=ranges)
    made = made_collection(tmp_path, [*images, broken], quality=quality)
    odd = {key: code for key, code in zip(made.keys(np.arange(9)), made.decision, strict=True)}
    expected = odd_by_hand(SIDES, ranges)
    assert [odd[image.key] == CODE["low_quality"] for image in images] == expected
    assert expected.count(True) == {0: 3, 1: 2, 3: 2, 500: 0}[ranges]
    facts = made.facts(np.arange(9))
    _, reasons = judge(facts, None, facts["valid"].to_numpy(), quality, resolved=made.resolved)
    assert [reason.startswith("odd size: the root") for reason in reasons].count(True) == sum(
        expected
    )


def test_a_crawl_of_broken_images_has_no_usual_size(tmp_path):
    made = made_collection(
        tmp_path, [Made("a/0", None, problem="cut")], quality=QualitySettings(odd_size=3)
    )
    assert made.decision.tolist() == [CODE["corrupt"]]
    everything = QualitySettings(odd_size=3, domains=["example.org"])
    empty = made_collection(tmp_path, [], parts=[made_part("a")], quality=everything)
    assert len(empty) == 0


@pytest.mark.parametrize("setting", ["domains", "denied_domains"])
def test_a_crawl_without_urls_has_no_domains(tmp_path, setting):
    quality = QualitySettings(**{setting: ["example.org"]})
    images = [Made("a/0", VECTOR, url=None), Made("b/0", VECTOR, url=None)]
    with pytest.raises(LvdError, match=rf"^quality.{setting}: no image of the crawl has a url"):
        made_collection(tmp_path / "none", images, quality=quality)
    with_one = [*images, Made("b/1", VECTOR, url="https://example.org/x")]
    made = made_collection(tmp_path / "one", with_one, quality=quality)
    low = (made.decision[:] == CODE["low_quality"]).tolist()
    assert low == ([True, True, False] if setting == "domains" else [False, False, True])


@pytest.mark.parametrize(
    "domain", ["https://example.org", "example.org/x", "example.org:80", "", "me@example.org", "."]
)
def test_a_domain_is_a_plain_one(domain):
    with pytest.raises(ValidationError, match=r"like example\.org"):
        QualitySettings(domains=[domain])
