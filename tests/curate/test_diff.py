"""Two runs compared: images matched by key and bytes, by bytes, by key, as brute force does."""

import json
import shutil
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from finished_run import HOSTILE, IMAGES, finished_run
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.cli import main
from curate.report.diff import EXAMPLES, SCHEMA, diff
from curate.search.diff_answer import diff_page


def lvd_curate(*words):
    result = CliRunner().invoke(main, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def with_images(out, rows):
    """Let the table of images of a run hold these rows: (key, sha256, decision)."""
    known = [
        {"key": key, "sha256": sha256, "decision": decision, "reason": f"for {decision}"}
        for key, sha256, decision in sorted(rows)
    ]
    pq.write_table(pa.Table.from_pylist(known, IMAGES), out / "reports" / "images.parquet")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    root = tmp_path_factory.mktemp("pair")
    return [finished_run(root / name, images=24) for name in "ab"]


def matched_by_hand(a, b):
    """Return (key_a, key_b, how) of two lists of (key, sha256, decision)."""
    by_key = {key: sha256 for key, sha256, _ in b}
    same = [key for key, sha256, _ in a if key in by_key and by_key[key] == sha256]
    found = [(key, key, "key") for key in same]
    rest = [
        [(key, sha256) for key, sha256, _ in sorted(rows) if key not in same] for rows in (a, b)
    ]
    for key, sha256 in list(rest[0]):
        other = [each for each in rest[1] if sha256 is not None and each[1] == sha256]
        if other:
            found.append((key, other[0][0], "content"))
            rest[1].remove(other[0])
            rest[0].remove((key, sha256))
    left = [dict(each) for each in rest]
    found += [(key, key, "changed") for key in left[0].keys() & left[1].keys()]
    found += [(key, None, "a") for key in left[0].keys() - left[1].keys()]
    return found + [(None, key, "b") for key in left[1].keys() - left[0].keys()]


IMAGE = st.tuples(
    st.sampled_from("abcdefgh"),
    st.sampled_from(["1", "2", "3", None]),
    st.sampled_from(["kept", "duplicate", "irrelevant"]),
)
CRAWL = st.lists(IMAGE, unique_by=lambda image: image[0])


@settings(max_examples=15, deadline=None)
@given(CRAWL, CRAWL)
def test_images_are_matched_and_counted_as_by_hand(pair, a, b):
    for out, rows in zip(pair, (a, b), strict=True):
        with_images(out, rows)
    tables = []
    found = diff(*pair, lambda batches: tables.append(batches.read_all()))
    expected = matched_by_hand(a, b)
    counts = Counter(how for *_, how in expected)
    assert found.matched == {how: counts[how] for how in ("key", "content", "changed", "a", "b")}
    decided = [{key: decision for key, _, decision in rows} for rows in (a, b)]
    moves = [(decided[0].get(key_a), decided[1].get(key_b)) for key_a, key_b, _ in expected]
    assert found.kept == {
        "both": moves.count(("kept", "kept")),
        "a": sum(was == "kept" != now for was, now in moves),
        "b": sum(now == "kept" != was for was, now in moves),
    }
    moved = Counter(move for move in moves if move[0] != move[1])
    assert {move[:2]: move[2] for move in found.moves} == moved
    rows = tables[0].cast(SCHEMA).to_pylist()
    assert sorted(
        map(str, ((row["key_a"], row["key_b"], row["matched"]) for row in rows))
    ) == sorted(str(each) for each, (was, now) in zip(expected, moves, strict=True) if was != now)


@pytest.fixture
def two(tmp_path):
    """A run, and another on another crawl by another threshold, with two images of its own fate."""
    a, b = (finished_run(tmp_path / name) for name in "ab")
    path = b / "reports" / "images.parquet"
    rows = pq.read_table(path).to_pylist()
    kept = [row for row in rows if row["decision"] == "kept"]
    kept[0] |= {"decision": "irrelevant", "reason": "cosine 0.1 with its nearest seed"}
    kept[0] |= {"output_shard": None, "output_key": None}
    [hostile] = [row for row in rows if row["key"] == HOSTILE]
    hostile |= {"decision": "unsafe", "reason": "<i>nsfw</i>\x1b[2J"}
    pq.write_table(pa.Table.from_pylist(rows, IMAGES), path)
    for out, name, value in ((a, "web", 0.5), (b, "web2", 0.6)):
        run = {"crawl": name, "seed": "animals", "settings": {"retrieve": {"threshold": value}}}
        (out / "run.json").write_text(json.dumps(run))
    return a, b, kept[0]["key"]


def test_the_answer_says_what_moved_why_and_what_was_set_otherwise(two, tmp_path):
    a, b, key = two
    page, table = tmp_path / "page.html", tmp_path / "moved.parquet"
    status, said = lvd_curate(
        *("diff", a, b, f"--page={page}", f"--parquet={table}", f"--work={tmp_path / 'work'}")
    )
    assert status == 0, said
    assert "These are runs on different crawls" in said
    assert f"{key}: B: cosine 0.1 with its nearest seed" in said
    assert "retrieve.threshold  0.5  0.6" in " ".join(said.split("\n")[-2:]).replace("   ", "  ")
    assert "\x1b" not in said
    moved = {row["key_a"]: row["decision_b"] for row in pq.read_table(table).to_pylist()}
    assert moved == {key: "irrelevant", HOSTILE: "unsafe"}
    text = page.read_text()
    assert "<i>" not in text
    assert "<script" not in text
    assert "unsafe: not shown" in text
    assert text.count("<img ") == 1


def test_the_page_says_how_many_of_a_change_it_shows(pair, tmp_path):
    fates = {f"few{n}": "duplicate" for n in range(2)}
    fates |= {f"many{n}": "irrelevant" for n in range(EXAMPLES + 1)}
    with_images(pair[0], [(key, key, "kept") for key in fates])
    with_images(pair[1], [(key, key, fate) for key, fate in fates.items()])
    page = diff_page(diff(*pair), tmp_path)
    assert "2: kept by A, duplicate by B</bdi>" in page
    assert f"{EXAMPLES + 1}: kept by A, irrelevant by B; {EXAMPLES} shown</bdi>" in page
    assert page.count("<figure ") == 2 + EXAMPLES


def test_a_run_does_not_differ_from_itself(two, tmp_path):
    shutil.copytree(two[0], tmp_path / "copy")
    status, said = lvd_curate("diff", two[0], tmp_path / "copy")
    assert status == 0
    assert "About every image both decided the same." in said
    assert "set otherwise" not in said


def test_what_is_no_run_is_refused_in_one_line(two, tmp_path):
    for words in ((two[0], tmp_path), (tmp_path, two[0]), ("s3://bucket/a", two[0])):
        status, said = lvd_curate("diff", *words)
        assert (status, said.count("\n")) == (2, 1), said
