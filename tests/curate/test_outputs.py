"""Whole runs with every setting of the export: what OUT holds, and who reads it afterwards."""

import io
import json
import re
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curate.catalogue.collection import Collection
from curate.report.datasheet import datasheet
from shared.pictures.images import read_header
from train.data.index import read_index
from train.data.pictures import picture as decode_for_training

MOST_BYTES = 4_000
SETTINGS = (
    f"export.shard_bytes={MOST_BYTES}",
    "export.resize={smaller_side: 20}",
    "export.encode=webp",
    "export.members=[json, txt]",
    "export.embeddings=true",
    "seed=null",
    "seeds={seed: {include: true}, other: {}}",
    "datasets.seed.licence=as | asked",
    "datasets.held.homepage=https://example.org/held",
)


@pytest.fixture(scope="module")
def finished(finished_once, tmp_path_factory):
    """A run in a folder of its own."""
    root = tmp_path_factory.mktemp("outputs")
    shutil.copytree(finished_once.root / "work", root / "work", copy_function=shutil.copy2)
    run = type(finished_once)(finished_once.data, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        run.run(*(f"--set={each}" for each in SETTINGS))
    return run


@pytest.fixture
def copied(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("work", "out"):
        shutil.copytree(finished.root / name, tmp_path / name, copy_function=shutil.copy2)
    return type(finished)(finished.data, tmp_path)


def reports(out: Path) -> dict[str, dict]:
    """Return the rows of all images that were written, by output key."""
    tables = [out / "reports" / f"{name}.parquet" for name in ("images", "seed_images")]
    rows = [row for table in tables for row in pq.read_table(table).to_pylist()]
    kept = sorted((row for row in rows if row["output_key"]), key=lambda row: row["output_key"])
    return {row["output_key"]: row for row in kept}


def samples(out: Path) -> dict[str, dict[str, bytes]]:
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted((out / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            for entry in tar:
                key, _, end = entry.name.partition(".")
                found.setdefault(key, {})[end] = tar.extractfile(entry).read()
    return found


def originals(run) -> dict[str, bytes]:
    """Return the bytes of crawled images and of the seed's, by key."""
    found = {path.name: path.read_bytes() for path in (run.data / "seed").iterdir()}
    for path in sorted((run.data / "crawl").glob("*.tar")):
        with tarfile.open(path) as tar:
            for entry in tar:
                trunk, _, end = entry.name.partition(".")
                if end == "jpg":
                    found[f"{path.stem}/{trunk}"] = tar.extractfile(entry).read()
    return found


def embeddings(out: Path) -> tuple[np.ndarray, list[dict]]:
    folder = out / "embeddings"
    vectors = np.load(folder / "img_emb" / "img_emb_0.npy")
    return vectors, pq.read_table(folder / "metadata" / "metadata_0.parquet").to_pylist()


def test_shards_end_before_they_hold_too_many_bytes(finished):
    rows = list(reports(finished.out).values())
    expected, held = [[]], 0
    for row in rows:
        if expected[-1] and (len(expected[-1]) == 8 or held + row["bytes"] > MOST_BYTES):
            expected.append([])
            held = 0
        expected[-1].append(row["key"])
        held += row["bytes"]
    assert len(expected) > 3
    assert {len(shard) for shard in expected} != {8}
    made = [[] for _ in expected]
    for row in rows:
        made[int(row["output_shard"])].append(row["key"])
    assert made == expected
    for number, shard in enumerate(expected):
        stats = json.loads((finished.out / "shards" / f"{number:05d}_stats.json").read_text())
        assert stats["count"] == len(shard)


def test_pictures_are_those_of_pillow_by_hand_and_sizes_those_written(finished):
    data = originals(finished)
    for key, sample in samples(finished.out).items():
        row, said = reports(finished.out)[key], json.loads(sample["json"])
        assert read_header(sample["webp"]).format == "webp"
        by_hand = Image.open(io.BytesIO(data[row["key"]])).resize(
            (24, 20), Image.Resampling.LANCZOS
        )
        made = Image.open(io.BytesIO(sample["webp"]))
        assert made.size == by_hand.size == (said["width"], said["height"])
        assert np.abs(np.asarray(made, int) - np.asarray(by_hand, int)).mean() < 6
        assert (said["original_width"], said["original_height"]) == (row["width"], row["height"])
        assert said.get("nsfw") == (None if "seed" in row else 0.1)


def test_vectors_are_the_stored_ones_in_the_order_of_the_shards(finished):
    run = json.loads((finished.out / "run.json").read_text())["datasets"]
    vectors, table = embeddings(finished.out)
    rows = reports(finished.out)
    assert vectors.dtype == np.float16
    assert [row["image_path"] for row in table] == list(rows) == sorted(samples(finished.out))
    assert [row["key"] for row in table] == [row["key"] for row in rows.values()]
    by_role = {
        role: Collection(finished.work / "catalogue" / run[role]["content"] / "all")
        for role in ("crawl", "seed seed")
    }
    for vector, row in zip(vectors, rows.values(), strict=True):
        data = by_role["seed seed" if "seed" in row else "crawl"]
        stored = data.vectors(np.array([data.find(row["key"])]))
        assert np.array_equal(vector, stored[0])
        assert np.linalg.norm(vector.astype(np.float64)) == pytest.approx(1, abs=1e-2)


def test_of_vectors_there_is_a_file_for_each_range_of_shards(copied, monkeypatch):
    monkeypatch.setattr("curate.export.embeddings.SHARDS", 2)
    out = copied.root / "ranges"
    asked = ("--set=export.embeddings=true", "--set=export.shard_size=1")
    assert copied("run", f"--out={out}", *asked)[0] == 0
    shards = len(list((out / "shards").glob("*.tar")))
    names = sorted(path.name for path in (out / "embeddings" / "img_emb").iterdir())
    assert names == [f"img_emb_{number:02d}.npy" for number in range(-(-shards // 2))]
    tables = sorted((out / "embeddings" / "metadata").iterdir())
    keys = [key for path in tables for key in pq.read_table(path)["image_path"].to_pylist()]
    assert keys == [f"{shard:05d}0000" for shard in range(shards)]


def test_the_trainer_reads_the_shards(finished, tmp_path):
    index = read_index(str(finished.out / "shards"), tmp_path)
    assert len(index) == len(reports(finished.out))
    assert all(decode_for_training(index.read(n)).shape == (3, 20, 24) for n in range(len(index)))


def test_verify_knows_every_file(copied):
    assert copied("verify", copied.out)[0] == 0
    for name in ("embeddings/img_emb/img_emb_0.npy", "datasheet.md"):
        path = copied.out / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        status, said = copied("verify", copied.out)
        assert (status, str(path) in said[0]) == (1, True)
        path.write_bytes(whole)


def test_removed_images_are_out_of_vectors_and_datasheet(copied):
    vectors, table = embeddings(copied.out)
    gone = {table[0]["key"], table[7]["key"]}
    (copied.root / "list.txt").write_text("\n".join(gone))
    words = ["--list", copied.root / "list.txt", "--kind", "key", "--work", copied.work]
    assert copied("remove", copied.out, *words)[0] == 0
    left, rows = embeddings(copied.out)
    stays = [row["key"] not in gone for row in table]
    assert rows == [row for row, yes in zip(table, stays, strict=True) if yes]
    assert np.array_equal(left, vectors[stays])
    files = [path.read_bytes() for path in copied.out.rglob("*") if path.is_file()]
    assert not any(vectors[row].tobytes() in data for row in (0, 7) for data in files)
    assert copied("verify", copied.out)[0] == 0
    said = (copied.out / "datasheet.md").read_text()
    assert "2 images were taken out afterwards, by the lists" in said
    assert said == "\n".join(datasheet(copied.out)) + "\n"


def cells(said: str, first: str) -> dict[str, list[str]]:
    """Return the table of a datasheet whose first column is called so, by first cell."""
    lines = said.split(f"\n| {first} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    found = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {row[0]: row[1:] for row in found}


def test_the_datasheet_counts_what_the_tables_hold(finished):
    said = (finished.out / "datasheet.md").read_text()
    images = pq.read_table(finished.out / "reports" / "images.parquet").to_pylist()
    counts = Counter(row["decision"] for row in images)
    decisions = cells(said, "decision")
    assert {name: int(row[0]) for name, row in decisions.items() if row[0] != "0"} == counts
    kept = [row for row in images if row["decision"] == "kept"]
    assert cells(said, "format") == {"jpeg": [str(len(kept))]}
    sizes = cells(said, "pixels, bytes")
    for name in ("width", "height", "bytes"):
        values = sorted(row[name] for row in kept)
        places = [max(0, int(np.ceil(q * len(values))) - 1) for q in (0, 0.25, 0.5, 0.75, 1)]
        assert sizes[name] == [f"{values[place]:,}" for place in places]
    written = reports(finished.out)
    assert f"In all {len(written):,} images in" in said
    assert f"{len(written) - len(kept)} images of the seed seed itself" in said
    sources = cells(said, "role")
    assert set(sources) == {"crawl", "seed", "holdout"}
    assert sources["holdout"][:2] == ["held", "1"]
    assert "https://example.org/held" in sources["holdout"]
    assert r"as \| asked" in said
    assert cells(said, "of").keys() >= {"dedup"}
    measured = json.loads((finished.out / "run.json").read_text())["calibration"]["dedup"]
    # the threshold of this run is a number of the pipeline
    assert f"from cosine {measured['threshold']:.4f} on, which is not the threshold" in said
    assert "For a precision of" not in said


def test_a_result_of_resized_pictures_is_not_replaced_unasked(copied):
    asked = [f"--set={each}" for each in SETTINGS if "resize" not in each]
    status, said = copied("run", f"--out={copied.out}", *asked)
    assert (status, len(said)) == (2, 1)
    assert "holds a run with export.resize" in said[0]


def test_the_same_run_writes_the_same_bytes(copied):
    again = copied.root / "again"
    assert copied("run", f"--out={again}", *(f"--set={each}" for each in SETTINGS))[0] == 0
    for name in ("datasheet.md", "files.json"):
        assert (again / name).read_bytes() == (copied.out / name).read_bytes()
