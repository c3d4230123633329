"""Runs with every way to group say what became of copies, and refuse what cannot be."""

import io
import json
from collections import Counter

import duckdb
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from pictures import encoded, picture, write_tar

from curate.cli import main

CONFIG = """
datasets:
  crawl: {path: ROOT/crawl}
  seed: {path: ROOT/seed}
pipelines:
  default:
    crawl: crawl
    seed: seed
    holdouts: [seed]
    embedder: descriptor
    cluster: {clusters: 3}
    calibrate: {originals: 8, crawl_sample: 8}
    dedup: {threshold: 0.85, groups: components}
    retrieve: {threshold: -1}
    report: {pictures: false}
"""


def at_quality(number, quality):
    stream = io.BytesIO()
    picture(number).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A crawl of six pictures with two copies each, one of the same bytes, and a seed of two."""
    root = tmp_path_factory.mktemp("groups")
    members = {}
    for number in range(6):
        members[f"{number}a.jpg"] = members[f"{number}c.jpg"] = encoded(picture(number))
        members[f"{number}b.jpg"] = at_quality(number, 95)
    write_tar(root / "crawl" / "00000.tar", members)
    (root / "seed").mkdir()
    for number in (5, 20):
        (root / "seed" / f"{number}.jpg").write_bytes(at_quality(number, 80))
    (root / "pipelines.yaml").write_text(CONFIG.replace("ROOT", str(root)))
    return root


def run(root, name, *words, status=0):
    asked = [f"--config={root}/pipelines.yaml", f"--out={root}/{name}", f"--work={root}/work"]
    result = CliRunner().invoke(main, ["run", "--executor=inline", *asked, *words])
    assert result.exit_code == status, f"{result.output}\n{result.exception!r}"
    return root / name, result


def test_a_crawl_without_copies_has_a_table_of_no_groups(root, monkeypatch):
    monkeypatch.chdir(root)
    write_tar(root / "alone" / "00000.tar", {f"{n}.jpg": encoded(picture(n)) for n in range(9)})
    out, _ = run(root, "alone-out", f"--crawl={root}/alone", "--set=dedup.threshold=0.999")
    table = pq.read_table(out / "reports" / "groups.parquet")
    assert len(table) == 0
    assert "diameter" in table.column_names


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--set=dedup.keep=centrality", "--set=dedup.chain_floor=0.9"),
        ("--set=dedup.keep=bytes", "--set=dedup.search=pool", "--set=dedup.neighbours=1"),
        ("--set=dedup.groups=greedy", "--set=dedup.keep=random"),
    ],
)
def test_the_tables_of_a_run_agree_about_groups(root, request, words, monkeypatch):
    monkeypatch.chdir(root)
    out, _ = run(root, request.node.name, *words)
    duplicates = pq.read_table(out / "reports" / "duplicates.parquet").to_pylist()
    groups = pq.read_table(out / "reports" / "groups.parquet").to_pylist()
    members = Counter(row["group"] for row in duplicates)
    assert [(row["group"], row["size"], row["contents"]) for row in groups] == [
        (group, 3, 2) for group in sorted(members)
    ]
    assert len(groups) == 6
    stands = {row["group"]: row["key"] for row in duplicates if row["representative"]}
    assert {row["group"]: row["representative"] for row in groups} == stands
    if "--set=dedup.keep=bytes" in words:
        assert all(key.endswith("b") for key in stands.values())
    lowest = {
        row["group"]: min(
            each["similarity"] for each in duplicates if each["group"] == row["group"]
        )
        for row in groups
    }
    for row in groups:
        assert row["lowest_similarity"] == pytest.approx(lowest[row["group"]], abs=1e-6)
    funnel = json.loads((out / "reports" / "funnel.json").read_text())
    chains = sum(row["chain"] for row in groups)
    assert funnel["groups"] == {"count": 6, "members": 18, "chains": chains}


def test_a_holdout_takes_a_group_and_a_seed_that_is_one_is_told(root, monkeypatch):
    monkeypatch.chdir(root)
    out, said = run(root, "held")
    held = duckdb.sql(
        f"select key, reason from '{out}/reports/images.parquet' where decision = 'holdout'"
    ).fetchall()
    assert sorted(key for key, _ in held) == ["00000/5a", "00000/5b", "00000/5c"]
    assert all("with 5.jpg of holdout seed" in reason for _, reason in held)
    [problem] = json.loads((out / "reports" / "funnel.json").read_text())["problems"][:1]
    assert problem.startswith("holdout seed: 2 of its 2 images are images of seed seed too")
    assert "holdout seed: 2 of its 2" in said.output
    assert "stopped after" not in said.output
    stages = json.loads((out / "timings.json").read_text())["stages"]
    assert [stage["name"] for stage in stages].count("holdout") == 1


@pytest.mark.parametrize("held", ["seed", "ROOT/seed", "ROOT/seed/*.jpg"])
def test_files_that_are_a_seed_and_a_holdout_are_warned_of_before_anything_is_embedded(
    root, monkeypatch, held
):
    monkeypatch.chdir(root)
    _, result = run(root, "never", "--dry-run", f"--holdout={held.replace('ROOT', str(root))}")
    assert "parts are parts of seed seed too" in result.stderr
    assert not (root / "never").exists()
    _, result = run(root, "never", "--dry-run", f"--holdout={root}/crawl")
    assert "parts of seed" not in result.stderr


@pytest.mark.parametrize(
    "wrong", ["dedup.keep=centrality", "dedup.chain_floor=0.5", "dedup.search=pool"]
)
def test_what_greedy_groups_cannot_have_is_one_line(root, wrong):
    words = ("--set=dedup.groups=greedy", f"--set={wrong}")
    _, result = run(root, "never", *words, status=2)
    assert result.output.count("\n") == 1
    assert "dedup.groups=components" in result.output
