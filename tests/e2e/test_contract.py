"""The tables, shards and funnel of a run, column by column as design.md has them."""

import hashlib
import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from drawn_crawl import COPIES, CORRUPT, HELD, LOW_QUALITY, NEAR, UNSAFE
from PIL import Image

from curate.catalogue.collection import Collection
from curate.filters.decisions import DECISIONS

IMAGES = {
    "key": "string",
    "part": "string",
    "member": "string",
    "url": "string",
    "sha256": "string",
    "width": "int32",
    "height": "int32",
    "format": "string",
    "bytes": "int64",
    "decision": "string",
    "reason": "string",
    "cluster": "int32",
    "group": "int64",
    "duplicate_of": "string",
    "duplicate_similarity": "float",
    "nearest_seed": "string",
    "seed_similarity": "float",
    "output_shard": "string",
    "output_key": "string",
}
RETRIEVAL = {
    "key": "string",
    "rank": "int16",
    "seed_key": "string",
    "similarity": "float",
    "strategy": "string",
}
DUPLICATES = {
    "group": "int64",
    "key": "string",
    "representative": "bool",
    "similarity": "float",
    "method": "string",
}
GROUPS = {
    "group": "int64",
    "representative": "string",
    "size": "int64",
    "contents": "int64",
    "diameter": "float",
    "lowest_similarity": "float",
    "chain": "bool",
    "sampled": "bool",
    "method": "string",
}
LISTED = {"irrelevant", "over_budget", "kept"}
BUDGET = 20


@pytest.fixture(scope="module")
def out(undisturbed) -> Path:
    """A run with every decision in it, and pictures."""
    undisturbed.run(f"--set=retrieve.max_images={BUDGET}", "--set=report.pictures=true", out="all")
    return undisturbed.root / "all"


@pytest.fixture(scope="module")
def images(out) -> list[dict]:
    return pq.read_table(out / "reports" / "images.parquet").to_pylist()


@pytest.fixture(scope="module")
def by_key(images) -> dict[str, dict]:
    return {row["key"]: row for row in images}


@pytest.fixture(scope="module")
def retrieval(out) -> list[dict]:
    return pq.read_table(out / "reports" / "retrieval.parquet").to_pylist()


@pytest.fixture(scope="module")
def duplicates(out) -> list[dict]:
    return pq.read_table(out / "reports" / "duplicates.parquet").to_pylist()


@pytest.fixture(scope="module")
def originals(drawn) -> dict[str, bytes]:
    """Key -> bytes of every crawled image."""
    found = {}
    for path in sorted((drawn / "crawl").glob("*.tar*")):
        with tarfile.open(path) as tar:
            for member in tar:
                trunk, _, extension = member.name.partition(".")
                if extension not in ("json", "txt"):
                    found[f"{path.name[:5]}/{trunk}"] = tar.extractfile(member).read()
    return found


def vectors(site, role: str, keys: list[str]) -> np.ndarray:
    """Return the stored vectors as float64 unit vectors, for brute force."""
    run = json.loads((site.root / "all" / "run.json").read_text())
    address = run["datasets"][role]["content"]
    collection = Collection(site.work / "catalogue" / address / "all")
    numbers = np.array([collection.find(key) for key in keys])
    stored = collection.vectors(collection.canonical[numbers]).astype(np.float64)
    return stored / np.linalg.norm(stored, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("images", IMAGES),
        ("retrieval", RETRIEVAL),
        ("duplicates", DUPLICATES),
        ("groups", GROUPS),
    ],
)
def test_columns_have_the_names_and_types_of_the_contract(out, name, columns):
    schema = pq.read_schema(out / "reports" / f"{name}.parquet")
    types = {field.name: str(field.type) for field in schema}
    assert {column: types.get(column) for column in columns} == columns


def test_every_image_has_one_row_sorted_by_key(images, originals):
    keys = [row["key"] for row in images]
    assert keys == sorted(originals, key=str.encode)
    assert [row["part"] for row in images] == [key.split("/")[0] for key in keys]


def test_facts_are_those_of_the_files(images, originals):
    for row in images:
        data = originals[row["key"]]
        assert row["bytes"] == len(data)
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert row["member"].partition(".")[0] == row["key"].split("/")[1]
        assert row["url"] == (f"https://example.org/{row['member'].partition('.')[0]}")
        try:
            with Image.open(io.BytesIO(data)) as image:
                found = (*image.size, image.format.lower())
        except OSError:
            found = (None, None, None)
        if row["key"] != "00003/unread":
            assert (row["width"], row["height"], row["format"]) == found, row["key"]


def test_every_decision_is_made_and_the_first_that_applies(by_key, images):
    for decision, keys in {
        "corrupt": CORRUPT,
        "unsafe": UNSAFE,
        "low_quality": LOW_QUALITY,
        "holdout": HELD,
        "duplicate": [*COPIES, *NEAR],
    }.items():
        assert {row["key"] for row in images if row["decision"] == decision} == set(keys)
    for row in images:
        assert (row["reason"] == "") == (row["decision"] == "kept")
        drawn = row["key"].split("/")[1].startswith("chart")
        assert (row["decision"] == "irrelevant") == drawn, row
    assert Counter(row["decision"] for row in images)["kept"] == BUDGET
    assert {row["decision"] for row in images} == set(DECISIONS)


def test_columns_are_set_exactly_where_the_contract_says(images):
    for row in images:
        decision = row["decision"]
        early = decision in ("corrupt", "unsafe", "low_quality")
        assert (row["cluster"] is None) == early, row
        assert row["group"] is None or not early
        for column in ("duplicate_of", "duplicate_similarity"):
            assert (row[column] is not None) == (decision == "duplicate"), (column, row)
        for column in ("nearest_seed", "seed_similarity"):
            assert (row[column] is not None) == (decision in LISTED), (column, row)
        for column in ("output_shard", "output_key"):
            assert (row[column] is not None) == (decision == "kept"), (column, row)


def test_duplicates_name_a_representative_that_reaches_the_threshold(images, by_key, undisturbed):
    numbers = {row["key"]: number for number, row in enumerate(images)}
    for key, of in {**COPIES, **NEAR}.items():
        row = by_key[key]
        assert row["duplicate_of"] == of
        assert row["group"] == by_key[of]["group"] == numbers[of]
        if key in COPIES:
            assert row["duplicate_similarity"] == 1
            continue
        a, b = vectors(undisturbed, "crawl", [key, of])
        assert row["duplicate_similarity"] == pytest.approx(a @ b, abs=1e-6)
        assert 0.85 <= row["duplicate_similarity"] < 1


def test_duplicates_parquet_lists_every_member_of_every_group(images, duplicates):
    groups = {row["key"]: row["group"] for row in images if row["group"] is not None}
    assert [row["key"] for row in duplicates] == sorted(groups)
    assert {row["key"]: row["group"] for row in duplicates} == groups
    assert all(count > 1 for count in Counter(groups.values()).values())
    leads = {row["group"]: row["key"] for row in duplicates if row["representative"]}
    assert sorted(leads) == sorted(set(groups.values()))
    for row in duplicates:
        assert images[row["group"]]["key"] == leads[row["group"]]
        same = row["representative"] or row["key"] in COPIES
        assert (row["method"], row["similarity"] == 1) == (
            ("exact", True) if same else ("near", False)
        )


def test_retrieval_lists_the_nearest_seeds_by_brute_force(images, retrieval, drawn, undisturbed):
    places = [(row["key"], row["rank"]) for row in retrieval]
    listed = [row["key"] for row in images if row["decision"] in LISTED]
    assert places == [(key, rank) for key in listed for rank in range(5)]
    assert {row["strategy"] for row in retrieval} == {"threshold"}
    seeds = sorted(str(path.relative_to(drawn / "animals")) for path in drawn.glob("animals/*/*"))
    exact = vectors(undisturbed, "crawl", listed) @ vectors(undisturbed, "seed", seeds).T
    found = {(row["key"], row["rank"]): row for row in retrieval}
    for key, row in zip(listed, exact, strict=True):
        best = np.lexsort((np.arange(len(seeds)), -row))[:5]
        assert [found[key, rank]["seed_key"] for rank in range(5)] == [seeds[at] for at in best]
        said = [found[key, rank]["similarity"] for rank in range(5)]
        assert said == pytest.approx(row[best].tolist(), abs=1e-6)


def test_the_nearest_seed_is_rank_0_and_decides(images, retrieval):
    first = {row["key"]: row for row in retrieval if row["rank"] == 0}
    similarity = {decision: [] for decision in LISTED}
    for row in images:
        if row["decision"] in LISTED:
            best = first[row["key"]]
            assert (best["seed_key"], best["similarity"]) == (
                row["nearest_seed"],
                row["seed_similarity"],
            )
            similarity[row["decision"]].append(row["seed_similarity"])
    assert max(similarity["irrelevant"]) < 0.2
    assert 0.2 <= max(similarity["over_budget"]) <= min(similarity["kept"])


def test_funnel_adds_up(out, images):
    funnel = json.loads((out / "reports" / "funnel.json").read_text())
    assert funnel["images"] == len(images) == sum(funnel["decisions"].values())
    counted = Counter(row["decision"] for row in images)
    assert funnel["decisions"] == {name: counted[name] for name in sorted(DECISIONS)}
    assert funnel["dedup_recall"]["recall"] == 1
    assert funnel["settings"]["retrieve"]["max_images"] == BUDGET
    assert {"lvd", "faiss-cpu", "numpy"} <= set(funnel["versions"])


def test_duckdb_reads_the_tables(out):
    tables = {
        name: f"'{out / 'reports' / name}.parquet'"
        for name in ("images", "retrieval", "duplicates")
    }
    [(kept, best)] = duckdb.sql(
        f"select count(*), min(similarity) from {tables['images']} join {tables['retrieval']} "
        "using (key) where decision = 'kept' and rank = 0"
    ).fetchall()
    assert kept == BUDGET
    assert best >= 0.2
    [(groups,)] = duckdb.sql(
        f'select count(distinct "group") from {tables["duplicates"]}'
    ).fetchall()
    assert groups == 6


def test_shards_load_with_plain_webdataset(out, by_key, originals):
    import webdataset

    shards = sorted((out / "shards").glob("*.tar"))
    assert [path.name for path in shards] == ["00000.tar", "00001.tar", "00002.tar"]
    seen = {}
    dataset = webdataset.WebDataset([str(path) for path in shards], shardshuffle=False)
    for sample in dataset.decode("pil"):
        source = sample["json"]["source_key"]
        row = by_key[source]
        assert (Path(sample["__url__"]).stem, sample["__key__"]) == (
            row["output_shard"],
            row["output_key"],
        )
        assert sample["jpg"].size == (row["width"], row["height"])
        assert sample["json"]["sha256"] == row["sha256"]
        assert sample["json"]["url"] == row["url"]
        seen[source] = sample
    assert set(seen) == {key for key, row in by_key.items() if row["decision"] == "kept"}
    for path in shards:
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    continue
                key = next(k for k, row in by_key.items() if row["output_key"] == member.name[:9])
                if member.name.endswith(".txt"):
                    caption = by_key[key]["caption"] or ""
                    assert tar.extractfile(member).read().decode() == caption
                elif by_key[key]["format"] == "jpeg":
                    assert tar.extractfile(member).read() == originals[key]


def test_shards_are_of_equal_size_and_described_beside(out):
    for number, size in enumerate((8, 8, 4)):
        shard = out / "shards" / f"{number:05d}"
        assert json.loads(Path(f"{shard}_stats.json").read_text())["count"] == size
        table = pq.read_table(f"{shard}.parquet")
        assert table["key"].to_pylist() == [f"{number:05d}{index:04d}" for index in range(size)]
        assert pa.types.is_string(table["url"].type)
    names = {path.name for path in (out / "shards").iterdir()}
    assert names == {
        f"0000{n}{end}" for n in range(3) for end in (".tar", ".parquet", "_stats.json")
    }


def test_explain_and_report_and_status_read_the_run(out, undisturbed):
    from click.testing import CliRunner

    from curate.cli import main

    for words in (["explain", str(out), "00001/near1"], ["status", str(out)], ["report", str(out)]):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, result.output
        assert result.output.strip()
