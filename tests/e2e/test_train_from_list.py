"""A list in place of shards, from the crawl to a model: the same pictures, and no copy of one."""

import hashlib
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from curated_site import Site, content, leftovers

import curate.cli
import train.cli
from train.data.index import read_index
from train.data.selection import read_selection

CONFIG = Path(__file__).parents[2] / "pipelines.yaml"
CRAWL = "crawl/{00000,00001,00003}.tar"
"""Those of the drawn crawl that are not compressed; what is kept of them is JPEG."""


@pytest.fixture(scope="module")
def site(drawn, tmp_path_factory) -> Site:
    """The same images as shards and as a list, with an included seed."""
    root = tmp_path_factory.mktemp("lists")
    site = Site(root, drawn, root / "work")
    seeds = ("--set=seed=null", "--set=seeds={animals: {include: true}}")
    more = (f"--crawl={drawn / CRAWL}", *seeds)
    site.run(*more, out="shards")
    said = site.run(*more, "--set=export.format=list", out="list")
    assert "selection.parquet" in said
    assert "WebDataset" not in said
    return site


def run(command, *words) -> list[str]:
    result = CliRunner().invoke(command, [str(word) for word in words])
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result.output.splitlines()


def rows(out: Path) -> list[dict]:
    return pq.read_table(out / "selection.parquet").to_pylist()


def images(out: Path, name: str = "images") -> list[dict]:
    return pq.read_table(out / "reports" / f"{name}.parquet").to_pylist()


def test_a_list_says_where_the_bytes_of_what_is_kept_are_and_nothing_is_copied(site):
    out = site.root / "list"
    listed = rows(out)
    for row in listed:
        with Path(row["part"]).open("rb") as file:
            file.seek(row["offset"])
            data = file.read(row["size"])
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        assert row["weight"] == 1
    kept = {(row["key"], row["output_key"]) for row in images(out) if row["decision"] == "kept"}
    own = {
        (row["key"], row["output_key"])
        for row in images(out, "seed_images")
        if row["decision"] == "kept"
    }
    assert {(row["key"], row["output_key"]) for row in listed if row["seed"] is None} == kept
    assert {(row["key"], row["output_key"]) for row in listed if row["seed"] == "animals"} == own
    assert {row["caption"] for row in listed if row["part"].endswith("00000.tar")} == {"a wave"}
    assert sorted(path.name for path in out.iterdir()) == [
        *("clusters", "datasheet.md", "files.json", "reports", "run.json", "selection.parquet"),
        *("timings.json", "used.json"),
    ]
    assert not leftovers(site)


def test_tables_are_those_of_shards_and_so_are_the_pictures_of_a_training(site, tmp_path):
    for name in ("images", "seed_images", "retrieval", "duplicates"):
        assert images(site.root / "list", name) == images(site.root / "shards", name)
    sharded = read_index(str(site.root / "shards" / "shards"), tmp_path / "shards")
    listed = read_selection(str(site.root / "list"), str(site.data / CRAWL), tmp_path / "list")
    assert listed.sizes.tolist() == sharded.sizes.tolist()
    numbers = range(len(sharded))
    assert list(listed.read_each(numbers)) == list(sharded.read_each(numbers))


def test_two_steps_are_trained_from_a_list(site, tmp_path):
    small = ("batch_size=8", "group_size=4", "steps=2", "data.workers=0", "collapse.grace=0")
    sets = [word for value in small for word in ("--set", value)]
    where = ("--config", CONFIG, "--recipe", "tiny", "--out", tmp_path / "out", *sets)
    dry = run(train.cli.main, "run", *where, "--select", site.root / "list", "--dry-run")
    assert any(
        line.startswith("selection ") and str(len(rows(site.root / "list"))) in line for line in dry
    )
    run(train.cli.main, "run", *where, "--select", site.root / "list")
    assert (tmp_path / "out/model/model.safetensors").is_file()
    again = run(
        *(train.cli.main, "run", *where, "--select", site.root / "list/selection.parquet"),
        *("--shards", site.data / CRAWL),
    )
    assert any("nothing to do" in line for line in again)


def test_a_list_is_verified_explained_and_loses_what_is_removed(site, tmp_path):
    out = site.root / "list"
    files = json.loads((out / "files.json").read_text())
    assert "selection.parquet" in files
    before, groups = rows(out), pq.ParquetFile(out / "selection.parquet").num_row_groups
    assert groups == -(-len(before) // 8)
    gone = next(row for row in before if row["seed"] is None)
    told = run(curate.cli.main, "explain", out, gone["key"])
    assert f"Written to selection.parquet as {gone['output_key']}" in told
    (tmp_path / "keys.txt").write_text(gone["key"])
    words = ("--list", tmp_path / "keys.txt", "--kind", "key", "--no-work")
    said = run(curate.cli.main, "remove", out, *words)
    assert "of them kept, were taken out" in said[-1]
    lost = {row["key"] for row in images(out, "removed")}
    assert gone["key"] in lost
    assert rows(out) == [row for row in before if row["key"] not in lost]
    assert pq.ParquetFile(out / "selection.parquet").num_row_groups == groups
    assert run(curate.cli.main, "verify", out)[-1].endswith("0 problems")
    assert gone["sha256"].encode() not in content(out)["selection.parquet"]


def test_what_no_list_can_name_is_refused_at_once(site):
    said = site.run("--set=export.format=list", out="none", status=2)
    (line,) = said.strip().splitlines()
    assert "00002.tar.gz is a compressed tar" in line
    assert "export.format=shards" in line
    assert not (site.root / "none").exists()
