"""An audit finds the copies that were planted between two datasets, and says so."""

import io
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from made_collection import Made, clear, clumps, exact_cosines, made_collection
from pictures import encoded, picture, write_tar
from PIL import Image

from curate import embed
from curate.audit.audit import PAIRS, TABLE, pair
from curate.cli import main
from curate.dedup.holdout import search


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """A folder and a tar of 12 pictures each: two leaks by byte, two by picture, one broken file."""
    root = tmp_path_factory.mktemp("splits")
    (root / "train").mkdir()
    train = {f"{number:02d}.jpg": encoded(picture(number)) for number in range(12)}
    train |= {"cut.jpg": train["00.jpg"][:300]}
    for name, data in train.items():
        (root / "train" / name).write_bytes(data)
    test = {f"{number:02d}.jpg": encoded(picture(number)) for number in range(50, 58)}
    test |= {"same.jpg": train["03.jpg"], "again.jpg": train["03.jpg"]}
    test |= {"png.png": encoded(picture(5), "PNG"), "cut.jpg": train["cut.jpg"]}
    low = io.BytesIO()
    picture(7).save(low, "JPEG", quality=50)
    test |= {"low.jpg": low.getvalue()}
    write_tar(root / "test" / "00000.tar", test)
    (root / "few").mkdir()
    (root / "few" / "00.jpg").write_bytes(train["00.jpg"])
    places = {name: {"path": str(root / name)} for name in ("train", "few")}
    (root / "pipelines.yaml").write_text(json.dumps({"datasets": places}))
    return root


def audited(root, work, *words, status=0):
    """Return the lines that an audit says."""
    asked = [f"--config={root}/pipelines.yaml", f"--work={work}", "--executor=inline", *words]
    result = CliRunner().invoke(main, ["audit", *map(str, asked)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.output
    return (result.output if status else result.stdout).splitlines()


HOW = ("--embedder=descriptor", "--threshold=0.9")


def test_planted_leaks_are_found_and_drawn(splits, tmp_path):
    out = tmp_path / "out"
    test = f"{splits}/test/*.tar"
    said = audited(splits, tmp_path / "work", "train", test, *HOW, f"--out={out}")
    table = pq.read_table(out / "audit.parquet")
    assert table.schema.equals(TABLE)
    rows = {(row["key_a"], row["key_b"]): row for row in table.to_pylist()}
    assert {pair: row["method"] for pair, row in rows.items()} == {
        ("03.jpg", "00000/again"): "exact",
        ("03.jpg", "00000/same"): "exact",
        ("05.jpg", "00000/png"): "near",
        ("07.jpg", "00000/low"): "near",
        ("cut.jpg", "00000/cut"): "exact",
    }
    both = [embed(splits / name, "descriptor") for name in ("train", "test")]
    for (one, other), row in rows.items():
        vectors = [x.vectors[x.keys.index(key)] for x, key in zip(both, (one, other), strict=True)]
        cosine = 1 if row["method"] == "exact" else exact_cosines(*np.array(vectors)[:, None])[0, 0]
        assert row["similarity"] == pytest.approx(cosine, abs=1e-6)
    assert len(said) == 2
    assert "4 of the 13 images of train are copies of 5 of the 13" in said[0]
    assert "3 of 5 pairs are the same bytes" in said[0]
    assert "cosine >= 0.9 by descriptor" in said[1]
    with Image.open(out / "audit.png") as drawn:
        assert drawn.height > 300
    backward = tmp_path / "backward"
    audited(splits, tmp_path / "work", test, "train", *HOW, f"--out={backward}")
    swapped = pq.read_table(backward / "audit.parquet").to_pylist()
    assert {(row["key_b"], row["key_a"]) for row in swapped} == set(rows)


def test_a_result_is_compared_by_its_shards_with_what_it_was_made_of(small_run, tmp_path):
    where = (small_run.out, small_run.data / "crawl", f"--out={tmp_path}/audit")
    [counted, _] = audited(small_run.data, small_run.work, *where, *HOW)
    kept = [
        row["key"]
        for row in pq.read_table(small_run.out / "reports" / "images.parquet").to_pylist()
        if row["decision"] == "kept"
    ]
    rows = pq.read_table(tmp_path / "audit" / "audit.parquet").to_pylist()
    assert {row["key_b"] for row in rows if row["method"] == "exact"} >= set(kept)
    assert f"{len(kept)} of the {len(kept)} images" in counted


def test_paths_need_no_configuration(splits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["audit", f"{splits}/few", "--executor=inline", "--work=work", "--out=out"]
    words += ["--embedder=descriptor", "--threshold=0.9"]
    result = CliRunner().invoke(main, [*words, f"{splits}/train"])
    assert result.exit_code == 0, result.output
    assert pq.read_table("out/audit.parquet")["key_b"].to_pylist() == ["00.jpg"]
    result = CliRunner().invoke(main, [*words, "train"])
    assert result.exit_code == 2
    said = "no dataset 'train' in pipelines.yaml, and no such path: the file is not there"
    assert said in result.output
    result = CliRunner().invoke(main, [*words, f"{splits}/train", "--config=other.yaml"])
    assert "no configuration file at other.yaml" in result.output


def test_two_datasets_without_a_copy_have_an_empty_table_and_no_picture(splits, tmp_path):
    shutil.copytree(splits / "train", tmp_path / "other")
    for name in ("03.jpg", "05.jpg", "07.jpg", "cut.jpg"):
        (tmp_path / "other" / name).unlink()
    words = (tmp_path / "other", splits / "test", *HOW, f"--out={tmp_path}/out")
    said = audited(splits, tmp_path / "work", *words)
    assert said[0].startswith("0 of the 9 images")
    assert len(pq.read_table(tmp_path / "out" / "audit.parquet")) == 0
    assert not (tmp_path / "out" / "audit.png").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("trian", "train"), "no dataset 'trian'"),
        (("train", "/nowhere/x"), "no images at '/nowhere/x'"),
        (("train", "train", "--embedder=descriptr"), "no embedder 'descriptr'"),
        (("train", "train", "--threshold=2"), "--threshold 2.0: a cosine lies between -1 and 1"),
        (("few", "few", "--embedder=descriptor"), "say --threshold ..."),
    ],
)
def test_a_mistake_is_one_line(splits, tmp_path, words, told):
    said = audited(splits, tmp_path / "work", *words, f"--out={tmp_path}/out", status=2)
    assert told in said[-1]
    assert said[-1].startswith("lvd-curate: ")


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**20), st.integers(0, 3))
def test_pairs_are_those_of_brute_force(tmp_path_factory, seed, shared):
    work = tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(seed)
    vectors = clumps(seed, 6, 8, 6, 0.4)
    sides = [vectors[side] for side in np.split(rng.permutation(len(vectors)), 2)]
    exact = exact_cosines(*sides)
    threshold = clear(exact, 0.95)
    contents = [{}, {}]
    for number in range(shared):
        for each in contents:
            each[int(rng.integers(len(sides[0])))] = f"same {number}"
    collections = [
        made_collection(
            work,
            [
                Made(f"p/{row:02d}", vector, content=known.get(row, f"{side} {row}"))
                for row, vector in enumerate(sides[side])
            ],
            name=str(side),
        )
        for side, known in enumerate(contents)
    ]
    found = []
    for own, other in (collections, collections[::-1]):
        found.append(work / f"hits-{len(found)}")
        found[-1].mkdir()
        search(own, [other], 0, len(own), threshold, 1, out=found[-1])
    pair(*collections, [found[0]], [found[1]], out=work)
    with np.load(work / PAIRS) as loaded:
        pairs, exactly = loaded["pairs"].tolist(), loaded["exact"].tolist()
    expected = {}
    for table, turn in ((exact, 1), (exact.T, -1)):
        own, other = contents[::turn]
        for row, cosines in enumerate(table):
            same = [at for at in sorted(other) if row in own and other[at] == own[row]]
            near = int(cosines.argmax())
            if same or cosines[near] >= threshold:
                expected[(row, same[0] if same else near)[::turn]] = bool(same)
    assert dict(zip(map(tuple, pairs), exactly, strict=True)) == expected
    assert pairs == sorted(pairs)
