"""What a person says of images: read, merged, and kept to by the next run and its calibration."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from growing_crawl import Site
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.calibration.near_pairs import LookedPairs, mark_apart
from curate.catalogue.collection import Collection
from curate.catalogue.labels import SCHEMA
from curate.cli import main
from curate.report.label import merge_labels

FLOOR = "--set=retrieve.threshold=0.57"
COPY, ORIGINAL = "00001/003", "00002/copy"


def lvd_curate(*words):
    result = CliRunner().invoke(main, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


ALL = "--set=calibrate.crawl_sample=1000"
"""Calibrates on the whole crawl, whose pairs are labelled."""


def looked_pairs(site):
    """Return what calibrations said of COPY and ORIGINAL, by the catalogue that they looked at."""
    address = site.json("run.json")["datasets"]["crawl"]["content"]
    crawl = Collection(site.work / "catalogue" / address / "all")
    wanted = sorted(crawl.find(key) for key in (COPY, ORIGINAL))
    verdicts = []
    for path in sorted((site.work / "calibrate").glob("*/look/*.npz")):
        with np.load(path) as pairs:
            numbers = crawl.usable
            if max([0, *pairs["one"], *pairs["other"]]) < len(numbers):
                both = np.sort(np.stack([numbers[pairs["one"]], numbers[pairs["other"]]], 1), 1)
                verdicts += pairs["same"][(both == wanted).all(1)].tolist()
    return verdicts


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A run, labels of it, and what the run with these says: rows before and after, and the site."""
    root = tmp_path_factory.mktemp("labelled")
    with pytest.MonkeyPatch.context() as patch:
        site = Site(root, patch)
        site("run", ALL, FLOOR)
        before, looked = site.rows(), looked_pairs(site)
        out_of_it = [k for k, row in before.items() if row["decision"] == "irrelevant"]
        kept = [
            k for k, row in before.items() if row["decision"] == "kept" and row["group"] is None
        ]
        said = [("keep", out_of_it[0], ""), ("drop", kept[0], ""), ("not_a_copy", COPY, ORIGINAL)]
        lines = [",".join(line) for line in [("label", "key", "other"), *said]]
        (root / "said.csv").write_text("\n".join(lines) + "\n")
        status, told = lvd_curate("label", site.out, f"--labels={root / 'said.csv'}")
        assert status == 0, told
        file = root / "out.labels.parquet"
        assert f"{file} holds 1 apart, 1 drop, 1 keep" in told
        again = site("run", ALL, FLOOR, f"--set=labels={file}", "--replace")
        assert "kept" in again
        yield site, before, looked, {label: key for label, key, _ in said}


def test_labels_are_kept_to_and_nothing_else_changes(labelled):
    site, before, _, key_of = labelled
    after = site.rows()
    assert before[COPY]["duplicate_of"] == ORIGINAL
    assert after[key_of["keep"]]["decision"] == "kept"
    dropped = after[key_of["drop"]]
    assert (dropped["decision"], dropped["reason"]) == ("unsafe", "sha256 is on the list labels")
    for key in (COPY, ORIGINAL):
        expected = "kept" if after[key]["seed_similarity"] >= np.float32(0.57) else "irrelevant"
        assert (after[key]["decision"], after[key]["group"]) == (expected, None)
    labels = {*key_of.values(), COPY, ORIGINAL}
    rest = [key for key in before if key not in labels]
    columns = ("decision", "reason", "duplicate_of", "nearest_seed", "seed_similarity")
    assert [[after[key][name] for name in columns] for key in rest] == [
        [before[key][name] for name in columns] for key in rest
    ]
    site.require_whole()


def test_calibration_takes_the_pair_for_two_pictures(labelled):
    site, _, before, _ = labelled
    assert before == [True]
    assert looked_pairs(site) == [False]


def test_what_the_crawl_lacks_is_a_problem_of_the_run(labelled):
    site, _, _, key_of = labelled
    problems = site.json("reports/funnel.json")["problems"]
    assert not [line for line in problems if "labelled" in line]
    path = site.root / "out.labels.parquet"
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        row["sha256"] = f"{len(row['label']):064x}"
        row["key"] += "x"
    elsewhere = site.root / "elsewhere.parquet"
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), elsewhere)
    old = site.out
    try:
        site.out = site.root / "other"
        site("run", ALL, FLOOR, f"--set=labels={elsewhere}")
        problems = " ".join(site.json("reports/funnel.json")["problems"])
        assert "1 of the 1 images that are labelled keep are not kept" in problems
        assert "1 of the 1 pairs that are labelled no copies are not in this crawl" in problems
        assert site.rows()[key_of["keep"]]["decision"] == "irrelevant"
    finally:
        site.out = old


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=6), st.integers(0, 99))
def test_marked_pairs_are_two_pictures_and_no_other(apart, seed):
    rng = np.random.default_rng(seed)
    one, other = np.triu_indices(6, 1)
    same, unsure = rng.random((2, len(one))) < 0.5
    numbers = np.sort(rng.choice(10, 6, replace=False))
    cosine, weight = np.ones(len(one), np.float32), np.ones(len(one))
    found = LookedPairs(6, one, other, cosine, weight, same, unsure, 0.5, len(one))
    pairs = numbers[np.array(apart, np.int64).reshape(-1, 2)]
    marked = mark_apart(found, numbers, pairs)
    known = {frozenset(pair) for pair in apart}
    for row, pair in enumerate(zip(one.tolist(), other.tolist(), strict=True)):
        is_known = frozenset(pair) in known
        assert marked.same[row] == (same[row] and not is_known)
        assert marked.unsure[row] == (unsure[row] and not is_known)


def row(label, content, other=None):
    return dict(zip(SCHEMA.names, (label, content, content, other, other), strict=True))


def test_what_is_said_last_counts_and_the_order_of_files_does_not_change_bytes(tmp_path):
    first = [row("keep", "a"), row("apart", "c", "d"), row("keep", "b")]
    then = [row("drop", "a"), row("apart", "d", "c")]
    merged = merge_labels(made(first), made(then), tmp_path)
    assert [(r["label"], r["sha256"]) for r in merged.to_pylist()] == [
        ("apart", "d"),
        ("drop", "a"),
        ("keep", "b"),
    ]
    assert merge_labels(made(first[::-1]), made(then[::-1]), tmp_path) == merged


def made(rows):
    return pa.Table.from_pylist(rows, SCHEMA)


WRONG = {
    "no file": (None, "No such file"),
    "other columns": ("what,key\nkeep,x\n", "its columns must be label, key, other"),
    "another label": ("label,key\nkep,{key}\n", "line 2: no label 'kep' (did you mean 'keep'?)"),
    "no such key": ("label,key\nkeep,nowhere\n", "line 2: 'nowhere' is no key of"),
    "one key of two": ("label,key\nnot_a_copy,{key}\n", "not_a_copy takes two keys"),
    "two keys of one": ("label,key,other\nkeep,{key},{key}\n", "keep takes one key"),
    "the same bytes": ("label,key,other\nnot_a_copy,{key},{key}\n", "the two have the same bytes"),
    "both": ("label,key\nkeep,{key}\ndrop,{key}\n", "is both to be kept and to be dropped"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_line_is_said_with_its_place_and_nothing_is_written(labelled, tmp_path, case):
    site = labelled[0]
    text, told = WRONG[case]
    if text is not None:
        (tmp_path / "said.csv").write_text(text.format(key=COPY))
    to = tmp_path / "labels.parquet"
    status, said = lvd_curate("label", site.out, f"--labels={tmp_path / 'said.csv'}", f"--to={to}")
    assert (status, said.count("\n")) == (2, 1), said
    assert told in said
    assert not to.exists()


def test_balance_takes_what_is_labelled_keep_first(labelled, tmp_path, monkeypatch):
    site, key_of = labelled[0], labelled[3]
    monkeypatch.setattr(site, "out", tmp_path / "out")
    labels = f"--set=labels={site.root / 'out.labels.parquet'}"
    site("run", ALL, FLOOR, labels, "--set=balance.target=1")
    assert [k for k, row in site.rows().items() if row["decision"] == "kept"] == [key_of["keep"]]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--set=labels=nowhere.parquet",), "labels: nowhere.parquet is not there"),
        (("--set=labels=pipelines.yaml",), "labels: pipelines.yaml is no Parquet file"),
        (("--set=labels=out/reports/images.parquet",), "holds no labels"),
    ],
)
def test_labels_that_a_run_cannot_keep_to_are_refused(labelled, words, told):
    assert told in " ".join(labelled[0]("run", FLOOR, "--replace", *words, status=2).split())


def test_where_the_crawl_has_grown_labels_are_kept_to_beside_what_was_exported(labelled):
    site, _, _, key_of = labelled
    before, file = site.rows(), site.root / "out.labels.parquet"
    exported = {key for key, row in before.items() if row["decision"] == "kept"}
    status, said = lvd_curate("update", site.out, f"--work={site.work}")
    assert status == 2
    assert "say `lvd-curate run` into OUT" in " ".join(said.split())
    irrelevant = [k for k, row in before.items() if row["decision"] == "irrelevant"]
    no_more = next(k for k in sorted(exported) if k not in {*key_of.values(), COPY, ORIGINAL})
    lines = ["label,key,other", f"keep,{irrelevant[0]},", f"drop,{no_more},"]
    (site.root / "more.csv").write_text("\n".join(lines) + "\n")
    status, told = lvd_curate("label", site.out, f"--labels={site.root / 'more.csv'}")
    assert (status, "2 drop, 2 keep" in told) == (0, True), told
    site.grow()
    said = " ".join(site("run", ALL, FLOOR, f"--set=labels={file}").split())
    assert "what it exported stays" in said
    after = site.rows()
    kept = {key for key, row in after.items() if row["decision"] == "kept"}
    assert {*exported - {no_more}, key_of["keep"], irrelevant[0]} <= kept
    for key in (key_of["drop"], no_more):
        assert after[key]["reason"] == "sha256 is on the list labels"
    assert {after[key]["group"] for key in (COPY, ORIGINAL)} == {None}
    problems = " ".join(site.json("reports/funnel.json")["problems"])
    asked = len(exported) + 1
    assert (
        f"1 of the {asked} images that the earlier result exported or that are labelled" in problems
    )
    assert "nothing to do" in site("run", ALL, FLOOR, f"--set=labels={file}")
    site.require_whole()
