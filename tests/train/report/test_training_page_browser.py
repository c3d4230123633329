"""The page of a training in a real browser: how it looks, and who can use it."""

import pytest
from browsers import NO_BROWSER, OVERLAPS, SERIOUS, find_browser, listen
from training_out import whole_run, write_out

from train.report.page import write_page


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page, and what the browser said of it and asked for."""
    found = find_browser()
    if found is None:
        pytest.skip(NO_BROWSER)
    from playwright.sync_api import sync_playwright

    lines = whole_run()
    lines[20]["collapse"] = ["peaked"]
    origin = {"name": "mine", "parent": "small", "changes": {"model.options.embed_dim": [96, 24]}}
    index = write_page(write_out(tmp_path_factory.mktemp("page") / "out", lines, origin=origin))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(30_000)
        page.said, page.asked = listen(page)
        page.goto(index.as_uri())
        yield page
        browser.close()


def test_nothing_is_complained_of_nothing_asked_for_and_all_pictures_load(page):
    assert page.said == []
    assert len([url for url in page.asked if not url.startswith("data:")]) == 1
    widths = page.evaluate("() => [...document.images].map(one => one.naturalWidth)")
    assert len(widths) == 6
    assert min(widths) > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_overlaps_or_is_cut_and_axe_finds_no_serious_fault(page, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme, media="screen")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERLAPS) == []
    found = Axe().run(page).response["violations"]
    assert [each["id"] for each in found if each["impact"] in SERIOUS] == []


def test_keys_reach_the_contents_and_open_the_tables(page):
    page.emulate_media(media="screen")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('nav') !== null")
    summary = page.locator("summary").first
    summary.focus()
    page.keyboard.press("Enter")
    assert page.locator("details[open] table").count() == 1
    page.keyboard.press("Enter")


def test_paper_gets_the_curves_and_no_navigation(page):
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert page.locator(".charts svg").first.is_visible()
