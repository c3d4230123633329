"""Whole runs by each strategy, and what is refused, told and written of it."""

import json

import pyarrow.parquet as pq
import pytest

from curate.written_cosine import rounded_up

OWN = {
    "knn": ["--set=retrieve.strategy=knn", "--set=retrieve.knn.neighbours=2"],
    "cluster": [
        "--set=retrieve.strategy=cluster",
        *("--set=retrieve.cluster.clusters=2", "--set=retrieve.cluster.more_than=1"),
        *("--set=retrieve.cluster.images=3", "--set=retrieve.cluster.cap=4"),
    ],
}
NO_FLOOR = "--set=retrieve.threshold=null"
DESCRIBED = {
    "knn": "the 2 nearest images of each seed image",
    "cluster": "3 nearest images of each cluster of more than 1 seed images, 4 in all",
}


def images_of(out):
    return pq.read_table(out / "reports" / "images.parquet").to_pylist()


@pytest.mark.parametrize("strategy", ["knn", "cluster"])
def test_a_run_retrieves_by_its_strategy_and_says_so(small_run, strategy):
    words = [*OWN[strategy], NO_FLOOR, f"--out={small_run.root / strategy}"]
    status, said = small_run("run", *words)
    assert status == 0, said
    out = small_run.root / strategy
    told = " ".join(" ".join(said).split())
    assert f"{strategy}: {DESCRIBED[strategy]}" in told
    funnel = json.loads((out / "reports" / "funnel.json").read_text())
    seed = funnel["seeds"]["seed"]
    assert (seed["strategy"], seed["description"]) == (strategy, DESCRIBED[strategy])
    assert (seed["images"], seed["threshold"], seed["negative"]) == (4, None, False)
    assert funnel["settings"]["retrieve"]["strategy"] == strategy
    assert "retrieve" not in funnel["thresholds"]
    found = pq.read_table(out / "reports" / "retrieval.parquet").to_pylist()
    assert {row["strategy"] for row in found} == {strategy}
    images = images_of(out)
    listed = [row for row in images if row["seed_similarity"] is not None]
    assert [(row["key"], rank) for row in listed for rank in range(4)] == [
        (row["key"], row["rank"]) for row in found
    ]
    before = {row["key"]: row for row in images_of(small_run.out)}  # by a threshold of -1
    for row in images:
        same = before[row["key"]]
        assert row["seed_similarity"] == same["seed_similarity"]
        if same["decision"] != "kept":
            assert row["decision"] == same["decision"]
    kept = [row["key"] for row in listed if row["decision"] == "kept"]
    most = {"knn": 2 * 4, "cluster": 4}[strategy]
    assert 0 < len(kept) <= most
    missed = [row["reason"] for row in listed if row["decision"] == "irrelevant"]
    assert missed
    assert all("with its nearest seed" in reason and "; " in reason for reason in missed)
    [key] = [row["key"] for row in listed if row["decision"] == "irrelevant"][:1]
    status, life = small_run("explain", str(out), key)
    assert status == 0
    assert {row["key"]: row["reason"] for row in listed}[key] in " ".join(life)
    status, said = small_run("verify", str(small_run.work))
    assert status == 0, said
    [again] = [line for line in small_run("run", *words)[1] if "nothing to do" in line]
    assert again


def test_a_budget_and_a_floor_stand_behind_a_strategy(small_run):
    similar = sorted(
        row["seed_similarity"] for row in images_of(small_run.out) if row["decision"] == "kept"
    )
    floor = similar[-6]
    said = small_run.run(
        *("--replace", *OWN["knn"], "--set=retrieve.knn.neighbours=9"),
        *(f"--set=retrieve.threshold={floor:.7f}", "--set=retrieve.max_images=2"),
    )
    assert any("set in the pipeline" in line for line in said if "retrieve" in line)
    images = images_of(small_run.out)
    count = {
        name: sum(row["decision"] == name for row in images) for name in ("kept", "over_budget")
    }
    assert count["kept"] == 2
    assert 3 <= count["over_budget"] <= 4
    for row in images:
        if row["decision"] == "irrelevant" and row["seed_similarity"] < floor - 1e-5:
            assert f"is below {rounded_up(floor)}" in row["reason"]


def test_a_dry_run_says_the_strategy(small_run):
    for strategy, words in OWN.items():
        for floor in (NO_FLOOR, "--set=retrieve.threshold=0.25"):
            status, said = small_run(
                "run", *words, floor, "--dry-run", f"--out={small_run.root / 'dry'}"
            )
            assert status == 0
            [line] = [line for line in said if line.startswith("retrieve ")]
            assert f"{strategy}: {DESCRIBED[strategy]}" in line
            assert ("floor: cosine 0.25 (inclusive)" in line) == (floor != NO_FLOOR)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["retrieve.strategy=nearest"],
            ["retrieve.strategy", "'threshold', 'knn', 'cluster', 'auto' or 'none'"],
        ),
        (
            ["retrieve.strategy=knn", "retrieve.threshold=null", "retrieve.target=5"],
            ["target is for the strategy threshold", "--set retrieve.target=null"],
        ),
        (
            ["retrieve.strategy=cluster", "retrieve.threshold=auto"],
            ["threshold auto is for the strategy threshold", "--set retrieve.threshold=null"],
        ),
        (["retrieve.knn.neighbours=0"], ["retrieve.knn.neighbours"]),
        (["retrieve.knn.neighbors=2"], ["retrieve.knn.neighbors", "neighbours"]),
        (["retrieve.knn.collisions=twice"], ["retrieve.knn.collisions", "'once' or 'deeper'"]),
        (["retrieve.cluster.images=0"], ["retrieve.cluster.images"]),
        (["retrieve.cluster.more_than=-1"], ["retrieve.cluster.more_than"]),
        (["retrieve.cluster.cap=0"], ["retrieve.cluster.cap"]),
        (["retrieve.cluster.order=first"], ["retrieve.cluster.order", "'nearest' or 'random'"]),
    ],
)
def test_wrong_settings_are_refused_in_one_line(small_run, words, told):
    sets = [f"--set={word}" for word in words]
    status, said = small_run("run", *sets, f"--out={small_run.root / 'wrong'}")
    assert status == 2
    [line] = said
    for text in told:
        assert text in line
    assert not (small_run.root / "wrong").exists()
