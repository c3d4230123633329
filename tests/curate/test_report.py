import json
import re
from html.parser import HTMLParser

import duckdb
import numpy as np
import pytest
from finished_run import DEDUP, HOSTILE, RETRIEVE, finished_run, picture

from curate.report.bands import copy_bands, relevance_bands
from curate.report.charts import pair_bins, similarity_bins
from curate.report.contact_sheets import member_tile
from curate.report.copy_sheets import chosen_groups, nearest_to_threshold
from curate.report.other_thresholds import relevance_counts
from curate.report.pictures import pictures
from curate.report.queries import queries
from curate.report.samples import dropped_samples, kept_sample
from curate.report.tables import open_tables, read_funnel, rows
from curate.report.timings import DOES, QUERY, write_timings_page
from shared.errors import LvdError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = finished_run(tmp_path_factory.mktemp("run") / "out [1]*")
    pictures(out, picture, {"animals": picture})
    write_timings_page(out)
    return out


@pytest.fixture(scope="module")
def page(run):
    return (run / "reports" / "index.html").read_text(encoding="utf-8")


def pages(out):
    return {path.name: path.read_bytes() for path in (out / "reports").glob("*.html")}


class Tags(HTMLParser):
    """Collects the tags of a page with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.seen = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def values(self, tag, name):
        return [attrs[name] for one, attrs in self.seen if one == tag and name in attrs]


def test_the_page_holds_its_pictures_and_loads_nothing(run, page):
    for text in pages(run).values():
        tags = Tags(text.decode())
        assert not {tag for tag, _ in tags.seen} & {"link", "iframe", "object", "form", "b>"}
        assert not any(name.startswith("on") for _, attrs in tags.seen for name in attrs)
        assert not tags.values("script", "src")
        assert all(source.startswith("data:image/") for source in tags.values("img", "src"))
        links = tags.values("a", "href")
        assert links
        for link in links:
            there = run / "reports" / link
            assert f'id="{link[1:]}"' in text.decode() if link[0] == "#" else there.exists()
    assert len(Tags(page).values("img", "src")) > 50
    [policy] = [attrs["content"] for _, attrs in Tags(page).seen if "http-equiv" in attrs]
    assert policy.startswith("default-src 'none'")
    assert "script-src 'sha256-" in policy


def test_no_id_is_there_twice(page):
    ids = [attrs["id"] for _, attrs in Tags(page).seen if "id" in attrs]
    assert sorted(set(ids)) == sorted(ids)


def test_crawled_text_is_escaped(page):
    text = page
    assert "<script>alert" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;\\x1b[2J\\u202e&amp;amp" in text


def test_the_same_run_gives_the_same_bytes(run, tmp_path):
    again = finished_run(tmp_path / "another name", folder=True)
    pictures(again, picture, {"animals": picture})
    for name, text in pages(again).items():  # queries name the files of a table
        assert text.replace(b".parquet/*.parquet", b".parquet") == pages(run)[name]


def test_images_that_are_gone_leave_words(run, tmp_path):
    def gone(key):
        if key.endswith("1"):
            raise OSError("the crawl was moved")

    out = finished_run(tmp_path / "out")
    text = pictures(out, gone).read_text(encoding="utf-8")
    assert "no picture" in text
    assert text.count("data:image/") > 20  # the kept ones, from the shards
    for shard in (out / "shards").iterdir():
        shard.unlink()
    assert "base64" not in pictures(out, gone).read_text(encoding="utf-8")


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


def test_pairs_on_both_sides_of_the_threshold_are_counted(run):
    with open_tables(run) as tables:
        bins, [counted] = pair_bins(tables, DEDUP), rows(tables, "SELECT count(*) AS n FROM pairs")
    assert sum(one.images for one in bins) == counted["n"]
    for one in bins:
        assert (one.left + one.width <= DEDUP + 1e-9) == (one.decision == "kept")
    assert {one.decision for one in bins} == {"kept", "duplicate"}


def test_sheets_show_what_is_closest_to_a_threshold(run):
    with open_tables(run) as tables:
        above, below = nearest_to_threshold(tables, DEDUP).strips
        closest = {
            side: tables.execute(
                f"SELECT better, key FROM pairs WHERE similarity {side} {DEDUP}::FLOAT"
                f" ORDER BY similarity {order} LIMIT 1"
            ).fetchone()
            for side, order in ((">=", "ASC"), ("<", "DESC"))
        }
    assert tuple(tile.key for tile in above.tiles[:2]) == closest[">="]
    assert tuple(tile.key for tile in below.tiles[:2]) == closest["<"]
    for strip in (above, below):
        assert [tile.mark for tile in strip.tiles] == ["reference", ""] * (len(strip.tiles) // 2)


def test_pairs_above_the_threshold_are_of_one_group_and_those_below_of_none_or_two(run):
    with open_tables(run) as tables:
        alone = rows(tables, 'SELECT key FROM images WHERE "group" IS NULL ORDER BY key LIMIT 4')
        a, b, c, d = (row["key"] for row in alone)
        tables.execute(
            "CREATE OR REPLACE TEMP TABLE pairs (key TEXT, better TEXT, similarity FLOAT)"
        )
        tables.execute("INSERT INTO pairs VALUES (?, ?, ?), (?, ?, ?)", [a, b, 0.79, c, d, 0.81])
        [below] = nearest_to_threshold(tables, DEDUP).strips
    assert below.heading.startswith("Below")
    assert [tile.key for tile in below.tiles] == [b, a]


@pytest.mark.parametrize(
    ("bands", "threshold", "table", "column"),
    [
        (relevance_bands, RETRIEVE, "images", "seed_similarity"),
        (copy_bands, DEDUP, "pairs", "similarity"),
    ],
)
def test_bands_hold_every_similarity_once(run, bands, threshold, table, column):
    with open_tables(run) as tables:
        strips = bands(tables, threshold).strips
        [counted] = rows(tables, f"SELECT count({column}) AS n FROM {table}")
    noted = sum(int(strip.note.split()[0].replace(",", "")) for strip in strips)
    assert noted == counted["n"]
    assert threshold in {strip.band[0] for strip in strips}
    for strip in strips:
        shown = [float(tile.caption.split()[0]) for tile in strip.tiles if not tile.mark]
        assert all(strip.band[0] - 1e-4 <= one <= strip.band[1] + 1e-4 for one in shown)


def test_samples_show_every_decision_with_its_reason(run):
    with open_tables(run) as tables:
        sheets = {sheet.name: sheet for sheet in dropped_samples(tables)}
        kept = kept_sample(tables).strips[0].tiles
        groups = chosen_groups(tables)
    decisions = {name for name, count in read_funnel(run)["decisions"].items() if count}
    assert set(sheets) == decisions - {"kept"}
    assert [tile.seed for tile in kept] == [None, "animals"] * (len(kept) // 2)
    low = sheets["low_quality"].strips[0].tiles
    assert all(tile.reason.startswith("<b>low_quality</b> for reason") for tile in low)
    everything = [tile for sheet in sheets.values() for tile in sheet.strips[0].tiles]
    assert HOSTILE in {tile.key for tile in everything}
    for sheet in groups:
        for strip in sheet.strips:
            assert [tile.mark for tile in strip.tiles][:2] == ["reference", ""]


def test_counts_at_each_threshold_are_those_of_duckdb(run):
    with open_tables(run) as tables:
        counts = relevance_counts(tables, RETRIEVE + 1e-9, "retrieve.threshold")
        for place, value in enumerate(counts.thresholds):
            reach = f"seed_similarity >= {value!r}::FLOAT"
            [expected] = rows(
                tables,
                f"SELECT count(*) AS reach, count(*) FILTER (decision = 'kept') AS stay,"
                f" count(*) FILTER (decision = 'irrelevant') AS enter FROM images WHERE {reach}",
            )
            assert counts.row(place) == expected
    assert len(counts.thresholds) > 100
    assert len(set(counts.columns["reach"])) > 10
    assert np.float32(counts.thresholds[counts.at]) == np.float32(RETRIEVE)


def test_every_query_of_the_page_runs_where_it_says(run, monkeypatch):
    monkeypatch.chdir(run)
    asked = queries(run, RETRIEVE)
    found = {name: duckdb.sql(query).fetchall() for name, query in asked.items()}
    assert all(found.values())
    counts = {name: count for name, count in read_funnel(run)["decisions"].items() if count}
    assert dict(found["funnel"]) == counts
    told = dict.fromkeys(("kept", "over_budget"), True) | {"irrelevant": False}
    assert {decision: reach for reach, decision, _ in found["relevance"]} == told
    folder = finished_run(run.parent / "in files", folder=True)
    monkeypatch.chdir(folder)
    assert dict(duckdb.sql(queries(folder, None)["funnel"]).fetchall()) == counts


def test_how_long_stages_took_is_on_a_page_of_its_own(run, page, monkeypatch):
    assert Tags(page).values("a", "href").count("timings.html") == 2
    text = pages(run)["timings.html"].decode()
    told = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in text.split("<tr>")[2:]]
    with open_tables(run) as tables:
        [[images]] = tables.sql("SELECT count(*) FROM images").fetchall()
    bar = '<i style="width: 99.19%"></i>'
    does = f"{images} images: {DOES['embed']}; hashing 4.0 s"
    assert told[0] == ["embed", "12.3 s", f"{images / 12.3:.1f}", bar, does]
    assert told[1][4] == f"{images} images, reused: {DOES['cluster']}"
    monkeypatch.chdir(run)
    assert duckdb.sql(f"SELECT name FROM ({QUERY})").fetchall() == [("embed",), ("cluster",)]
    pictures(run, picture, {"animals": picture}, timed=False)
    assert "timings" not in Tags(pages(run)["index.html"].decode()).values("a", "href")


def test_a_copy_says_its_cosine_and_how_it_was_found_where_not_by_that():
    size = {"key": "k", "width": 8, "height": 9, "format": "png", "decision": "duplicate"}
    row = size | {"output_shard": None, "output_key": None, "representative": False}
    said = [
        member_tile(row | {"similarity": similarity, "method": method}).caption
        for method, similarity in (("exact", 1.0), ("near", 0.91), ("looked", 0.79))
    ]
    assert said == ["exact · 8×9", "0.9100 · 8×9", "0.7900 looked · 8×9"]


def test_all_groups_are_on_further_pages(run, monkeypatch):
    monkeypatch.setattr("curate.report.pictures.ON_PAGE", 1)
    monkeypatch.setattr("curate.report.copy_sheets.ON_PAGE", 1)
    out = finished_run(run.parent / "further")
    pictures(out, picture)
    assert set(pages(out)) == {"index.html", "copies-001.html", "copies-002.html"}
    with open_tables(out) as tables:
        stand = [row["key"] for row in rows(tables, "FROM duplicates WHERE representative")]
    further = [pages(out)[f"copies-00{number}.html"].decode() for number in (1, 2)]
    assert all(any(f"<bdi>{key}</bdi>" in text for text in further) for key in stand)
    for text in further:
        assert {"index.html", "copies-001.html"} <= set(Tags(text).values("a", "href"))
    funnel = read_funnel(out)
    funnel["settings"]["report"] = {"groups": 0}
    (out / "reports" / "funnel.json").write_text(json.dumps(funnel))
    pictures(out, picture)
    assert set(pages(out)) == {"index.html"}


def test_pictures_of_noise_stay_within_their_bytes(monkeypatch, tmp_path):
    import io

    from PIL import Image

    def noise(key):
        pixels = np.random.default_rng(len(key)).integers(0, 256, (300, 400, 3), np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=95)
        return stream.getvalue()

    monkeypatch.setattr("curate.report.pictures.PICTURE_BYTES", 1_000_000)
    monkeypatch.setattr("finished_run.picture", noise)
    out = finished_run(tmp_path / "out", images=40)
    pictures(out, noise, {"animals": noise})
    for text in pages(out).values():
        assert len(text) < 1_000_000 * 4 / 3 + 200_000


def test_a_run_without_images_has_a_report(tmp_path):
    out = finished_run(tmp_path / "out", images=0)
    (out / "reports" / "copies-001.html").write_bytes(b"of an earlier run")
    pictures(out, picture)
    text = pages(out).pop("index.html").decode()
    assert set(pages(out)) == {"index.html"}
    assert "Nothing was kept" not in text
    assert "0 of 0 crawled images are kept" in text


def test_an_unfinished_run_is_named(tmp_path):
    with pytest.raises(LvdError, match=re.escape(f"{tmp_path} holds no finished run")):
        pictures(tmp_path, picture)
    out = finished_run(tmp_path / "out")
    (out / "reports" / "images.parquet").unlink()
    with pytest.raises(LvdError, match=r"reports/images\.parquet"):
        pictures(out, picture)


def test_no_retrieve_threshold_is_no_slider(tmp_path):
    out = finished_run(tmp_path / "out")
    funnel = read_funnel(out)
    funnel["thresholds"] = {"dedup": funnel["thresholds"]["dedup"]}
    (out / "reports" / "funnel.json").write_text(json.dumps(funnel))
    text = pictures(out, picture).read_text(encoding="utf-8")
    assert 'id="copies-slider"' in text
    assert 'id="relevance-slider"' not in text


def test_a_result_without_pairs_shows_the_copies_it_has(tmp_path):
    out = finished_run(tmp_path / "out")
    for name in ("pairs", "regrouped"):
        (out / "reports" / f"{name}.parquet").unlink()
    funnel = read_funnel(out)
    del funnel["dedup_pairs"]
    (out / "reports" / "funnel.json").write_text(json.dumps(funnel))
    text = pictures(out, picture).read_text(encoding="utf-8")
    assert "this result has no list (report.pairs)" in text
    assert 'id="copies-slider"' not in text
    assert "Nearest to the threshold" in text
