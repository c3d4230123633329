"""Whole runs with a balance: what is kept, told, drawn and refused."""

import json
import math
import shutil
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest

from curate import balance
from curate.catalogue.collection import Collection

LEVELS = "--set=balance.levels=[4,2]"


def images_of(out):
    return pq.read_table(out / "reports" / "images.parquet").to_pylist()


def clusters_of(out):
    return pq.read_table(out / "reports" / "balance.parquet").to_pylist()


def funnel_of(out):
    return json.loads((out / "reports" / "funnel.json").read_text())


def check_counts(out):
    """The tables, the funnel and the shards say the same."""
    images, clusters, funnel = images_of(out), clusters_of(out), funnel_of(out)
    assert Counter(row["decision"] for row in images) == Counter(funnel["decisions"])
    kept = [row for row in images if row["decision"] == "kept"]
    for row in images:
        assert (row["weight"] is not None) == (row["decision"] == "kept")
    for number, cluster in enumerate(clusters):
        inside = [row for row in images if row["balance_cluster"] == number]
        assert cluster["path"][-1] == number
        assert cluster["images"] >= len(inside)
        assert cluster["kept"] == sum(row["decision"] == "kept" for row in inside)
        assert cluster["weight"] == sum(row["weight"] or 0 for row in inside)
    told = funnel["balance"]
    assert told["kept"] == len(kept) == sum(cluster["kept"] for cluster in clusters)
    assert told["drawn"] == sum(row["weight"] for row in kept)
    assert told["retrieved"] == sum(cluster["images"] for cluster in clusters)
    for place, level in enumerate(told["levels"]):
        for when, column in (("before", "images"), ("after", "weight")):
            held = Counter()
            for cluster in clusters:
                held[cluster["path"][place]] += cluster[column]
            share = sorted((n / held.total() for n in held.values() if n), reverse=True)
            entropy = sum(-each * math.log(each) for each in share)
            assert level[when]["effective_clusters"] == pytest.approx(math.exp(entropy), abs=1e-4)
            tenth = share[: math.ceil(level["clusters"] / 10)]
            assert level[when]["largest_tenth"] == pytest.approx(sum(tenth), abs=1e-6)
    shards = [pq.read_table(path) for path in sorted((out / "shards").glob("*.parquet"))]
    assert sorted(row["key"] for row in kept) == sorted(
        key for shard in shards for key in shard["source_key"].to_pylist()
    )
    return images, clusters, funnel


def test_a_run_keeps_what_the_function_draws_and_says_why_of_the_others(small_run):
    plain = images_of(small_run.out)
    assert {row["weight"] for row in plain if row["decision"] == "kept"} == {1}
    assert {row["balance_cluster"] for row in plain} == {None}
    candidates = [row["key"] for row in plain if row["decision"] == "kept"]
    said = small_run.run("--replace", "--set=balance.target=7", LEVELS)
    images, clusters, funnel = check_counts(small_run.out)
    assert sum(cluster["images"] for cluster in clusters) == len(candidates)
    address = json.loads((small_run.out / "run.json").read_text())["datasets"]["crawl"]["content"]
    crawl = Collection(small_run.work / "catalogue" / address / "all")
    vectors = crawl.vectors(np.array([crawl.find(key) for key in candidates]))
    drawn = balance(vectors, 7, levels=[4, 2])
    row_of = {row["key"]: row for row in images}
    assert [row_of[key]["weight"] or 0 for key in candidates] == drawn.weight.tolist()
    assert [row_of[key]["balance_cluster"] for key in candidates] == drawn.cluster.tolist()
    assert funnel["decisions"]["over_budget"] == len(candidates) - 7
    assert funnel["balance"]["retrieved"] == len(candidates)
    text = " ".join(" ".join(said).split())
    assert f"Balance 7 of {len(candidates)} retrieved images are kept" in text
    assert "largest tenth holds" in text
    assert [level["clusters"] for level in funnel["balance"]["levels"]] == [2, 4]
    [out] = [row for row in images if row["decision"] == "over_budget"][:1]
    cluster = clusters[out["balance_cluster"]]
    assert out["reason"] == (
        f"balance takes {cluster['kept']} of the {cluster['images']} images of its cluster "
        f"{out['balance_cluster']}, and not this one"
    )
    status, life = small_run("explain", str(small_run.out), out["key"])
    assert status == 0
    assert out["reason"] in " ".join(life)
    assert any("balance" in line and "in cluster" in line for line in life)
    assert "largest tenth holds" in (small_run.out / "reports" / "index.html").read_text()
    assert '<h2 id="balance">' in (small_run.out / "reports" / "index.html").read_text()


def test_a_share_stands_behind_the_budget_of_all(small_run):
    small_run.run(
        *("--replace", "--set=balance.target=0.5", LEVELS, "--set=retrieve.max_images=10"),
        "--set=report.pictures=false",
    )
    images, _, funnel = check_counts(small_run.out)
    assert funnel["balance"]["retrieved"] == 10
    assert funnel["decisions"]["kept"] == 5
    reasons = [row["reason"] for row in images if row["decision"] == "over_budget"]
    assert sum("balance takes" in reason for reason in reasons) == 5
    assert all("balance takes" in each or "not among the 10 most" in each for each in reasons)


def test_repeats_meet_a_target_beyond_what_there_is_and_without_them_it_is_a_problem(small_run):
    quick = ("--replace", LEVELS, "--set=report.pictures=false", "--set=balance.target=40")
    small_run.run(*quick, "--set=balance.repeats=4")
    images, _, funnel = check_counts(small_run.out)
    weights = [row["weight"] for row in images if row["weight"]]
    assert (sum(weights), funnel["problems"]) == (40, [])
    assert 1 <= min(weights) < max(weights) <= 4
    [heavy] = [row["key"] for row in images if row["weight"] == max(weights)][:1]
    _, life = small_run("explain", str(small_run.out), heavy)
    assert any(f"to be drawn {max(weights)} times" in line for line in life)
    small_run.run(*quick)
    _, _, funnel = check_counts(small_run.out)
    [problem] = funnel["problems"]
    assert "balance.target asks for 40 images" in problem
    assert "--set balance.repeats" in problem
    assert funnel["decisions"]["over_budget"] == 0


def test_another_work_folder_gives_the_same_bytes(small_run):
    words = ["--set=balance.target=0.5", LEVELS, "--set=report.pictures=false"]
    hashes = []
    for work in (small_run.work, small_run.root / "other-work"):
        out = small_run.root / f"out-of-{work.name}"
        status, said = small_run("run", *words, f"--work={work}", f"--out={out}")
        assert status == 0, said
        hashes.append(json.loads((out / "files.json").read_text()))
    assert hashes[0] == hashes[1]
    status, said = small_run("run", *words, f"--work={work}", f"--out={out}")
    assert any("nothing to do" in line for line in said)


def test_where_nothing_is_retrieved_nothing_is_balanced(small_run):
    small_run.run("--replace", "--set=balance.target=0.5", "--set=retrieve.threshold=1")
    _, clusters, funnel = check_counts(small_run.out)
    assert (clusters, funnel["balance"]["levels"]) == ([], [])
    assert '<h2 id="balance">' not in (small_run.out / "reports" / "index.html").read_text()


def test_what_is_removed_counts_no_more(small_run):
    small_run.run("--replace", "--set=balance.target=9", LEVELS)
    before = funnel_of(small_run.out)["balance"]["levels"]
    [key, *_] = [row["key"] for row in images_of(small_run.out) if row["decision"] == "kept"]
    (small_run.root / "keys.txt").write_text(key)
    status, said = small_run(
        *("remove", str(small_run.out), f"--list={small_run.root / 'keys.txt'}", "--kind=key"),
        f"--work={small_run.work}",
    )
    assert status == 0, said
    _, _, funnel = check_counts(small_run.out)
    assert funnel["balance"]["kept"] == 8
    for level, other in zip(funnel["balance"]["levels"], before, strict=True):
        assert level["before"] == other["before"]


def test_a_dry_run_says_the_balance_and_none_where_none_is_asked(small_run):
    words = ("--dry-run", f"--out={small_run.root / 'dry'}")
    told = {
        target: [
            line
            for line in small_run("run", f"--set=balance.target={target}", *words)[1]
            if line.startswith("balance")
        ]
        for target in ("null", "1000", "0.5")
    }
    assert told["null"] == []
    assert told["1000"] == ["balance    1,000 images, over clusters (auto)"]
    assert told["0.5"] == ["balance    0.5 of what is retrieved, over clusters (auto)"]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("balance.target=0", "balance.target"),
        ("balance.target=1.5", "balance.target"),
        ("balance.levels=[10,100]", "fewer clusters on each level above"),
        ("balance.levels=[]", "fewer clusters on each level above"),
        ("balance.levels=many", "balance.levels"),
        ("balance.resample=-1", "balance.resample"),
        ("balance.iterations=0", "balance.iterations"),
        ("balance.draw=closest", "'random', 'nearest' or 'furthest'"),
        ("balance.repeats=0", "balance.repeats"),
        ("balance.repeat=2", "repeats"),
        ("balance.seed=x", "balance.seed"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(small_run, word, told):
    status, said = small_run("run", f"--set={word}", f"--out={small_run.root / 'wrong'}")
    assert status == 2
    [line] = said
    assert told in line
    shutil.rmtree(small_run.root / "wrong", ignore_errors=True)
