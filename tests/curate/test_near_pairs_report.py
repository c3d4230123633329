"""Pairs below the threshold are those of brute force, and the counts those of runs by other thresholds."""

import json
from dataclasses import replace

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from made_collection import (
    asked_for,
    clumps,
    clustered,
    exact_cosines,
    from_vectors,
    grouped,
    ranked,
)
from pictures import encoded, textured, write_tar
from PIL import Image

from curate.dedup.bar import Bar
from curate.dedup.groups import REPRESENTATIVE, UNDECIDED
from curate.dedup.keep import RANK
from curate.dedup.near import DedupSettings
from curate.filters.decisions import CODE
from curate.report.pairs import Pool, find_pairs, grid, prepare, regroup

FLOOR, THRESHOLD = 0.8, 0.92
VECTORS = clumps(0, 12, 8, 8, 0.4)


@pytest.fixture(scope="module", params=["greedy", "components"])
def pool(request, tmp_path_factory):
    """A crawl that was grouped, every second image kept."""
    work = tmp_path_factory.mktemp("pool")
    crawl = from_vectors(work, VECTORS)
    settings = DedupSettings(groups=request.param)
    clusters, _ = clustered(crawl, work)
    found, _ = grouped(crawl, clusters, work, THRESHOLD, settings)
    decision = np.full(len(crawl), CODE["irrelevant"], np.int8)
    decision[::2] = CODE["kept"]
    decision[np.load(found / "status.npy") != REPRESENTATIVE] = CODE["duplicate"]
    np.save(work / "decision.npy", decision)
    (work / "ranking").mkdir()
    ranks = ranked(crawl, work / "ranking", settings)
    how = (ranks, found, None, work, Bar(THRESHOLD, THRESHOLD), settings)
    return Pool(crawl, clusters, *how, per_image=200, threads=1)


def listed(pool, out):
    """Return the rows of both tables."""
    for name in ("prepared", "near", "all"):
        (out / name).mkdir()
    assert prepare(pool, out=out / "prepared")["floor"] < THRESHOLD
    asked = asked_for(pool.clusters, out, FLOOR, pool.settings, out / "prepared")
    for first, last in pool.clusters.ranges:
        find_pairs(pool, out / "prepared", asked, FLOOR, first, last, out=out / "near")
    regroup(pool, out / "prepared", FLOOR, [out / "near"], out=out / "all")
    return [pq.read_table(out / "all" / f"{n}.parquet").to_pylist() for n in ("pairs", "regrouped")]


def test_pairs_are_those_of_brute_force(pool, tmp_path):
    pairs, _ = listed(pool, tmp_path)
    crawl, rank = pool.collection, np.load(pool.ranks / RANK)
    stored = crawl.vectors(np.arange(len(crawl))).astype(np.float32)
    cosines, keys = exact_cosines(stored, stored), crawl.keys(np.arange(len(crawl)))
    expected = {
        (keys[max(a, b, key=rank.__getitem__)], keys[min(a, b, key=rank.__getitem__)])
        for a, b in np.argwhere(cosines >= FLOOR).tolist()
        if a != b
    }
    assert {(row["key"], row["better"]) for row in pairs} == expected
    assert [(row["key"], row["better"]) for row in pairs] == sorted(expected)
    number = {key: place for place, key in enumerate(keys)}
    for row in pairs:
        own = cosines[number[row["key"]], number[row["better"]]]
        assert row["similarity"] == pytest.approx(own, abs=1e-6)


def test_counts_are_those_of_runs_by_other_thresholds(pool, tmp_path):
    _, tried = listed(pool, tmp_path)
    assert [row["threshold"] for row in tried] == grid(FLOOR, THRESHOLD)
    decision = np.load(pool.selected / "decision.npy")
    before = np.load(pool.groups / "representative.npy")
    for row in tried[::4]:
        anew, _ = grouped(pool.collection, pool.clusters, tmp_path, row["threshold"], pool.settings)
        stands = np.flatnonzero(np.load(anew / "status.npy") == REPRESENTATIVE)
        released = stands[decision[stands] == CODE["duplicate"]]
        sizes = np.bincount(np.load(anew / "representative.npy"))
        assert row == {
            "threshold": row["threshold"],
            "standing": len(stands),
            "copies": len(pool.collection) - len(stands),
            "groups": (sizes > 1).sum(),
            "members": sizes[sizes > 1].sum(),
            "undecided": 0,
            "kept": (decision[stands] == CODE["kept"]).sum(),
            "released": len(released),
            "of_kept": (decision[before[released]] == CODE["kept"]).sum(),
            "would_keep": None,
        }


def test_what_cut_lists_do_not_tell_is_counted(pool, tmp_path):
    (tmp_path / "cut").mkdir()
    (tmp_path / "whole").mkdir()
    _, whole = listed(pool, tmp_path / "whole")
    _, cut = listed(replace(pool, per_image=1), tmp_path / "cut")
    assert any(row["undecided"] for row in cut)
    if pool.settings.groups == "greedy":
        for row, true in zip(cut, whole, strict=True):
            assert row["standing"] <= true["standing"] <= row["standing"] + row["undecided"]


def test_of_a_heap_only_the_best_take_part(pool, tmp_path, monkeypatch):
    (tmp_path / "few").mkdir()
    (tmp_path / "whole").mkdir()
    _, whole = listed(pool, tmp_path / "whole")
    monkeypatch.setattr("curate.report.pairs.MEMBERS", 2)
    pairs, few = listed(pool, tmp_path / "few")
    own = {row["threshold"]: row for row in few}[THRESHOLD]
    true = {row["threshold"]: row for row in whole}[THRESHOLD]
    assert own == true
    assert max(row["undecided"] for row in few) > 0
    taking = np.load(tmp_path / "few" / "prepared" / "status.npy") == UNDECIDED
    groups = np.load(pool.groups / "representative.npy")[taking]
    assert np.bincount(groups).max() == 2
    assert 0 < len({key for row in pairs for key in (row["key"], row["better"])}) <= taking.sum()
    for row, true in zip(few, whole, strict=True):
        assert row["copies"] <= true["copies"]
        if row["threshold"] >= THRESHOLD:
            assert true["copies"] <= row["copies"] + row["undecided"]


def test_the_steps_are_even_and_few():
    assert grid(0.8638, 0.9092)[:3] == [0.865, 0.87, 0.875]
    assert 0.9092 in grid(0.8638, 0.9092)
    for floor in (-1.0, 0.0, 0.5, 0.9, 1.0):
        steps = grid(floor, 0.95)
        assert len(steps) <= 66
        assert steps[-1] == 1
        assert all(step >= floor for step in steps if step != 0.95)


def test_a_run_lists_its_pairs(small_run):
    reports = small_run.out / "reports"
    told = json.loads((reports / "funnel.json").read_text())
    [(pairs,)] = duckdb.sql(f"SELECT count(*) FROM '{reports}/pairs.parquet'").fetchall()
    assert pairs == told["dedup_pairs"]["pairs"]
    assert told["dedup_pairs"]["floor"] < 0.95
    [(copies,)] = duckdb.sql(
        f"SELECT copies FROM '{reports}/regrouped.parquet' WHERE threshold = 0.95"
    ).fetchall()
    assert copies == told["decisions"]["duplicate"]
    # a holdout decides too
    assert duckdb.sql(f"FROM '{reports}/regrouped.parquet'").fetchall()[0][-1] is None
    small_run.run("--set=report.pairs=0", "--replace")
    assert not (reports / "pairs.parquet").exists()
    assert json.loads((reports / "funnel.json").read_text())["dedup_pairs"] is None


def test_a_run_at_another_threshold_keeps_what_is_told(small_run, tmp_path):
    blends = {
        f"{number}-{share}.png": encoded(
            Image.blend(textured(number), textured(number + 50), share / 100), "PNG"
        )
        for number in range(8)
        for share in (0, 6, 15, 30)
    }
    write_tar(tmp_path / "blends.tar", blends)
    seed = tmp_path / "likes"
    seed.mkdir()
    for number in range(4):
        like = Image.blend(textured(number), textured(number + 50), 0.22)
        (seed / f"{number}.png").write_bytes(encoded(like, "PNG"))
    alone = (f"--crawl={tmp_path}/blends.tar", f"--seed={seed}", "--set=holdouts=[]", "--replace")
    alone += ("--set=filters=[]", "--set=dedup.looks=0", "--set=retrieve.threshold=0.9")
    reports = small_run.out / "reports"
    small_run.run(*alone)
    tried = pq.read_table(reports / "regrouped.parquet").to_pylist()
    own = json.loads((reports / "funnel.json").read_text())["decisions"]
    assert {row["threshold"]: row for row in tried}[0.95]["would_keep"] == own["kept"]
    seen = set()
    for row in tried[:: len(tried) // 3]:
        small_run.run(*alone, f"--set=dedup.threshold={row['threshold']}")
        found = json.loads((reports / "funnel.json").read_text())["decisions"]
        assert (row["copies"], row["would_keep"]) == (found["duplicate"], found["kept"])
        seen.add((row["copies"], row["would_keep"]))
    assert len({kept for _, kept in seen}) > 1
