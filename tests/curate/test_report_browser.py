"""The page of a report in a real browser: what its script counts, how it looks, who can use it."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from browsers import NO_BROWSER, OVERLAPS, SERIOUS, find_browser, listen
from finished_run import DEDUP, RETRIEVE, finished_run, picture

from curate.report.label import SAID, read_said
from curate.report.pictures import pictures
from curate.report.tables import open_tables, read_funnel, rows
from curate.report.timings import write_timings_page


@dataclass
class Shown:
    """A page in a browser, and what it said and asked for."""

    page: object
    out: Path
    said: list[str]
    asked: list[str]

    def look(self, width=1280, scheme="light", media="screen"):
        """Show it on a screen of that width, in that colour scheme."""
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.emulate_media(color_scheme=scheme, media=media)
        return self.page

    def counts(self, section):
        """Return what a slider says."""
        told = self.page.eval_on_selector_all(
            f'[data-slider="{section}"] [data-say]',
            "all => all.map(one => [one.dataset.say, one.textContent])",
        )
        return {name: text.replace(",", "") for name, text in told}

    def move(self, section, place):
        """Move a slider."""
        self.page.eval_on_selector(
            f"#{section}-slider",
            "(range, place) => { range.value = place; range.dispatchEvent(new Event('input')); }",
            place,
        )
        return self.counts(section)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    found = find_browser()
    if found is None:
        pytest.skip(NO_BROWSER)
    from playwright.sync_api import sync_playwright

    out = finished_run(tmp_path_factory.mktemp("browser") / "out")
    funnel, shares = read_funnel(out), {"largest_tenth": 0.4, "effective_clusters": 2.5}
    level = {"clusters": 3, "before": shares, "after": shares}
    funnel["balance"] = {"kept": 10, "drawn": 15, "retrieved": 20, "levels": [level]}
    (out / "reports" / "funnel.json").write_text(json.dumps(funnel))
    index = pictures(out, picture, {"animals": picture})
    write_timings_page(out)
    with sync_playwright() as playwright:
        # Root has no sandbox; the page is ours, and its policy lets nothing else run.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(30_000)
        made = Shown(page, out, *listen(page))
        page.goto(index.as_uri())
        yield made
        browser.close()


def test_nothing_is_complained_of_and_nothing_asked_for(shown):
    assert shown.said == []
    outside = [url for url in shown.asked if not url.startswith("data:")]
    assert outside == [(shown.out / "reports" / "index.html").as_uri()]


def test_all_pictures_load(shown):
    loaded = shown.page.evaluate(
        "() => [...document.querySelectorAll('main img[src]')].map(one => one.naturalWidth)"
    )
    assert len(loaded) > 50
    assert min(loaded) > 0


def test_the_slider_of_relevance_says_what_duckdb_counts(shown):
    most = int(shown.page.get_attribute("#relevance-slider", "max"))
    assert float(shown.counts("relevance")["threshold"]) == RETRIEVE
    with open_tables(shown.out) as tables:
        for place in (0, most // 3, most // 2, 2 * most // 3, most):
            said = shown.move("relevance", place)
            [expected] = rows(
                tables,
                "SELECT count(*) AS reach, count(*) FILTER (decision = 'kept') AS stay,"
                " count(*) FILTER (decision = 'irrelevant') AS enter FROM images"
                f" WHERE seed_similarity >= {said['threshold']}::FLOAT",
            )
            assert {name: int(said[name]) for name in expected} == expected
            assert f"--set retrieve.threshold={said['threshold']}" in said["command"]


def test_the_slider_of_copies_says_what_duckdb_counts(shown):
    most = int(shown.page.get_attribute("#copies-slider", "max"))
    assert float(shown.counts("copies")["threshold"]) == DEDUP
    with open_tables(shown.out) as tables:
        for place in (0, most // 3, most):
            said = shown.move("copies", place)
            [expected] = rows(
                tables,
                "SELECT copies, standing, kept, released, of_kept FROM regrouped"
                f" WHERE threshold = {said['threshold']}",
            )
            assert {name: int(said[name]) for name in expected} == expected


def test_a_command_is_copied_as_it_is_and_breaks_between_its_words_only(shown):
    shown.move("copies", 3)
    shown.look(360)
    [copied, text, lines] = shown.page.eval_on_selector(
        '[data-slider="copies"] .paste',
        """pre => {
          getSelection().selectAllChildren(pre);
          const heights = [...pre.querySelectorAll(".word")].map(word => word.clientHeight);
          return [getSelection().toString(), pre.textContent, pre.clientHeight / Math.min(...heights)];
        }""",
    )
    assert copied == text
    assert lines > 3  # it is broken
    broken = shown.page.eval_on_selector_all(
        '[data-slider="copies"] .word',
        "words => words.filter(word => word.clientHeight > words[0].clientHeight"
        " || word.clientHeight == 0).map(word => word.textContent)",
    )
    assert "--set" in text.split()
    assert [word for word in broken if len(word) < 40] == []
    shown.look()


def test_the_slider_marks_the_bands_and_obeys_keys(shown):
    page = shown.page
    shown.move("relevance", 0)
    assert page.locator('[data-slider="relevance"] .band.below').count() == 0
    before = shown.counts("relevance")["threshold"]
    page.focus("#relevance-slider")
    page.keyboard.press("ArrowRight")
    assert float(shown.counts("relevance")["threshold"]) > float(before)
    shown.move("relevance", int(page.get_attribute("#relevance-slider", "max")))
    assert page.locator('[data-slider="relevance"] .band.below').count() > 3


def test_a_picture_enlarges_and_keys_turn_to_the_next(shown):
    page = shown.look()
    first = page.locator("button.picture").first
    first.focus()
    page.keyboard.press("Enter")
    assert page.locator("dialog[open]").count() == 1
    text = page.locator("dialog p").inner_text()
    page.keyboard.press("ArrowRight")
    assert page.locator("dialog p").inner_text() != text
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    assert page.evaluate("document.activeElement.className") == "picture"


def test_labels_of_pictures_are_saved_as_the_command_takes_them(shown, tmp_path):
    page = shown.look()
    kept = page.locator("#samples ~ div .pairs button[data-bytes]").first
    copy = page.locator("#groups ~ div .pairs figure:not(.framed) button[data-bytes]").first
    stands = copy.locator("xpath=ancestor::div[1]").locator(".framed button")
    expected = [["drop", kept.get_attribute("data-key"), None]]
    expected += [["not_a_copy", *(one.get_attribute("data-key") for one in (copy, stands))]]
    assert not page.locator(".said").is_visible()
    for tile, presses in ((kept, ["keep", "drop"]), (copy, ["not_a_copy"])):
        tile.click()
        for label in presses:
            page.locator(f'[data-label="{label}"]').click()
            assert page.locator('[aria-pressed="true"]').get_attribute("data-label") == label
        page.keyboard.press("Escape")
    assert page.locator(".said b").inner_text() == "2 labels"
    with page.expect_download() as download:
        page.locator(".said button").click()
    download.value.save_as(tmp_path / "labels.csv")
    said = read_said(shown.out, tmp_path / "labels.csv").to_pylist()
    assert [[row["label"], row["key"], row["other"]] for row in said] == [
        [SAID[label], *keys] for label, *keys in expected
    ]
    for tile, label in ((kept, "drop"), (copy, "not_a_copy")):
        tile.click()
        page.locator(f'[data-label="{label}"]').click()
        page.keyboard.press("Escape")
    assert not page.locator(".said").is_visible()
    assert shown.said == []


@pytest.mark.parametrize("width", [360, 768, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overlaps_or_is_cut(shown, width, scheme):
    page = shown.look(width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERLAPS) == []
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, back.removeprefix("rgb(").removesuffix(")").split(","))) > 600
    assert light == (scheme == "light")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_axe_finds_no_serious_fault(shown, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(shown.look(width, scheme)).response["violations"]
    assert [each["id"] for each in found if each["impact"] in SERIOUS] == []


def test_paper_gets_the_pictures_and_no_controls(shown):
    page = shown.look(media="print")
    assert not page.locator("nav").is_visible()
    assert not page.locator(".slider").first.is_visible()
    assert page.locator("figure").first.is_visible()
    shown.look()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_the_page_of_timings_is_reached_and_read(shown, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    page = shown.page.context.browser.new_page()
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.goto(shown.page.url)
    page.locator("nav a", has_text="Timings").click()
    assert page.locator(".timings tbody tr").count() == 2
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERLAPS) == []
    found = Axe().run(page).response["violations"]
    assert [each["id"] for each in found if each["impact"] in SERIOUS] == []
    page.close()
