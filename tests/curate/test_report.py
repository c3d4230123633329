import json
import re
from html.parser import HTMLParser

import pytest
from finished_run import HOSTILE, RETRIEVE, finished_run, picture
from PIL import Image

from curate.report.charts import similarity_bins
from curate.report.contact_sheets import contact_sheets
from curate.report.pictures import PICTURES, pictures
from curate.report.tables import open_tables, read_funnel
from shared.errors import LvdError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = finished_run(tmp_path_factory.mktemp("run") / "out [1]*")
    pictures(out, picture, {"animals": picture})
    return out


def files(out):
    names = [*(f"{name}.png" for name in PICTURES), "index.html"]
    return {name: (out / "reports" / name).read_bytes() for name in names}


def test_every_picture_is_drawn(run):
    for name in PICTURES:
        with Image.open(run / "reports" / f"{name}.png") as image:
            image.load()
            assert image.width > 1000, name


def test_the_page_holds_its_pictures_and_loads_nothing(run):
    seen = []

    class Page(HTMLParser):
        def handle_starttag(self, tag, attrs):
            seen.append((tag, dict(attrs)))

    text = (run / "reports" / "index.html").read_text(encoding="utf-8")
    Page().feed(text)
    tags = {tag for tag, _ in seen}
    assert not tags & {"script", "a", "link", "iframe", "object", "form", "b>"}
    sources = [attrs["src"] for tag, attrs in seen if tag == "img"]
    assert len(sources) > 50
    assert all(source.startswith("data:image/") for source in sources)
    assert not any(name.startswith("on") for _, attrs in seen for name in attrs)
    [policy] = [attrs["content"] for _, attrs in seen if "http-equiv" in attrs]
    assert policy.startswith("default-src 'none'")


def test_crawled_text_is_escaped(run):
    text = (run / "reports" / "index.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;\\x1b[2J\\u202e&amp;amp" in text


def test_the_same_run_gives_the_same_bytes(run, tmp_path):
    again = finished_run(tmp_path / "another name", folder=True)
    pictures(again, picture, {"animals": picture})
    assert files(again) == files(run)


def test_images_that_are_gone_leave_words(run, tmp_path):
    def gone(key):
        if key.endswith("1"):
            raise OSError("the crawl was moved")

    out = finished_run(tmp_path / "out")
    text = pictures(out, gone).read_text(encoding="utf-8")
    assert "no picture" in text
    assert text.count("data:image/jpeg") > 20  # the kept ones, from the shards
    for shard in (out / "shards").iterdir():
        shard.unlink()
    assert "data:image/jpeg" not in pictures(out, gone).read_text(encoding="utf-8")


def test_unsafe_and_kept_images_are_never_asked_for(tmp_path):
    asked = set()
    out = finished_run(tmp_path / "out")
    pictures(out, lambda key: asked.add(key), {"animals": picture})
    with open_tables(out) as tables:
        rows = tables.execute("SELECT key, decision FROM images").fetchall()
    decisions = {decision for key, decision in rows if key in asked}
    assert {"duplicate", "irrelevant", "low_quality"} <= decisions
    assert not decisions & {"unsafe", "kept", "corrupt"}


def test_the_threshold_is_a_border_of_the_histogram(run):
    with open_tables(run) as tables:
        bins = similarity_bins(tables, RETRIEVE)
        counts = read_funnel(run)["decisions"]
    for decision in ("irrelevant", "over_budget", "kept"):
        mine = [one for one in bins if one.decision == decision]
        assert sum(one.images for one in mine) == counts[decision]
        for one in mine:
            below = one.left + one.width <= RETRIEVE + 1e-9
            assert below == (decision == "irrelevant")


def test_sheets_show_what_is_closest_to_a_threshold(run):
    with open_tables(run) as tables:
        sheets = {sheet.name: sheet for sheet in contact_sheets(tables, None, None)}
        lowest = tables.execute(
            "SELECT key FROM images WHERE decision IN ('kept', 'over_budget')"
            " ORDER BY seed_similarity, key LIMIT 1"
        ).fetchall()
        farthest = tables.execute(
            "SELECT key FROM duplicates WHERE method = 'near' AND NOT representative"
            " ORDER BY similarity LIMIT 1"
        ).fetchall()
    assert [(sheets["threshold"].strips[0].tiles[-1].key,)] == lowest
    tiles = sheets["borderline_copies"].strips[0].tiles
    assert [(tiles[1].key,)] == farthest
    assert [tile.mark for tile in tiles] == ["reference", ""] * (len(tiles) // 2)
    assert HOSTILE in {tile.key for tile in sheets["rejects"].strips[2].tiles}


def test_a_run_without_images_has_a_report(tmp_path):
    out = finished_run(tmp_path / "out", images=0)
    (out / "reports" / "kept.png").write_bytes(b"of an earlier run")
    pictures(out, picture)
    assert {path.name for path in (out / "reports").glob("*.png")} == {"funnel.png"}


def test_an_unfinished_run_is_named(tmp_path):
    with pytest.raises(LvdError, match=re.escape(f"{tmp_path} holds no finished run")):
        pictures(tmp_path, picture)
    out = finished_run(tmp_path / "out")
    (out / "reports" / "images.parquet").unlink()
    with pytest.raises(LvdError, match=r"reports/images\.parquet"):
        pictures(out, picture)


def test_no_retrieve_threshold_is_no_line(tmp_path):
    out = finished_run(tmp_path / "out")
    funnel = read_funnel(out)
    funnel["thresholds"] = {"dedup": funnel["thresholds"]["dedup"]}
    (out / "reports" / "funnel.json").write_text(json.dumps(funnel))
    assert "What just became relevant, and what just did not<" in pictures(out, picture).read_text(
        encoding="utf-8"
    )
