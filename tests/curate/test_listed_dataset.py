"""A selection list is a dataset: its images are read where they lie, in a crawl and in an audit."""

import hashlib
import shutil
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import encoded, picture
from test_audit import audited

from curate.export.selection_list import list_files
from shared.datasets.dataset import DatasetSettings, list_parts
from shared.datasets.outputs import LIST
from shared.datasets.parts import PartReader
from shared.errors import LvdError

AS_LIST = ("--set=export.format=list", "--replace")
HOW = ("--embedder=descriptor", "--threshold=0.9")


def rows_of(path):
    return pq.read_table(path).to_pylist()


def audit_pairs(small_run, dataset, out):
    where = (dataset, small_run.data / "crawl", f"--out={out}")
    said = audited(small_run.data, small_run.work, *where, *HOW)
    rows = rows_of(out / "audit.parquet")
    return said, {(row["key_b"], row["method"], row["similarity"]) for row in rows}, rows


def test_an_audit_finds_in_a_list_what_it_finds_in_shards(small_run, tmp_path):
    shards = shutil.copytree(small_run.out, tmp_path / "shards")
    small_run.run(*AS_LIST)
    expected = audit_pairs(small_run, shards, tmp_path / "of-shards")[1]
    said, found, rows = audit_pairs(small_run, small_run.out, tmp_path / "of-list")
    listed = [row for path in list_files(small_run.out) for row in rows_of(path)]
    assert found == expected
    assert f"{len(listed)} of the {len(listed)} images" in said[0]
    assert {row["key_a"] for row in rows} == {f"selection/{row['key']}" for row in listed}
    assert (tmp_path / "of-list" / "audit.png").exists()
    [file] = list_files(small_run.out)
    assert audit_pairs(small_run, file, tmp_path / "of-file")[1] == expected


def test_a_list_is_a_crawl_with_urls_and_captions(small_run, tmp_path):
    small_run.run(*AS_LIST)
    shutil.copytree(small_run.out, old := tmp_path / "old")
    listed = {f"selection/{row['key']}": row for path in list_files(old) for row in rows_of(path)}
    small_run.run("--replace", f"--crawl={old}", "--set=filters=[]", "--set=retrieve.threshold=-1")
    images = rows_of(small_run.out / "reports" / "images.parquet")
    assert {row["key"] for row in images} == listed.keys()
    for row in images:
        assert row["decision"] == "kept"
        assert {name: row[name] for name in ("sha256", "url", "caption")} == {
            name: listed[row["key"]][name] for name in ("sha256", "url", "caption")
        }
    written = set()
    for path in (small_run.out / "shards").glob("*.tar"):
        with tarfile.open(path) as tar:
            members = [tar.extractfile(m).read() for m in tar if m.name.endswith(".jpg")]
        written |= {hashlib.sha256(data).hexdigest() for data in members}
    assert written == {row["sha256"] for row in images}
    status, said = small_run("run", f"--crawl={old}", "--set=filters=[]", *AS_LIST, "--out=never")
    assert status == 2
    assert "is a list itself, whose images no list can name: name the crawl" in said[-1]


@pytest.fixture
def listed_file(tmp_path):
    """A list of one image file."""
    data = encoded(picture(1))
    (photo := tmp_path / "photo.jpg").write_bytes(data)
    row = {"key": "a", "part": str(photo), "offset": 0, "size": len(data)}
    row |= {"sha256": hashlib.sha256(data).hexdigest(), "caption": "one"}
    (place := tmp_path / "out").mkdir()
    pq.write_table(pa.Table.from_pylist([row, row]), place / LIST)
    return place, photo


def read_all(place, scratch):
    [part] = list_parts("listed", DatasetSettings(path=str(place)))
    with PartReader(part, scratch) as reader:
        return part, reader.problems, [(m.key, m.caption, reader.read(m)) for m in reader.members]


def test_bytes_that_have_changed_are_one_line(listed_file, tmp_path):
    place, photo = listed_file
    data = photo.read_bytes()
    part, problems, members = read_all(place, tmp_path)
    assert part.nbytes == 2 * len(data)
    assert members == [("selection/a", "one", data), ("selection/a#2", "one", data)]
    assert not problems
    photo.write_bytes(data[:-1] + b"\0")
    with pytest.raises(LvdError, match="a has changed since it was listed"):
        read_all(place, tmp_path)
    photo.unlink()
    with pytest.raises(FileNotFoundError):
        read_all(place, tmp_path)


def test_a_file_that_is_no_list_is_a_problem_of_its_part(tmp_path):
    (tmp_path / LIST).write_bytes(b"PAR1 and no more")
    assert "the list cannot be read" in read_all(tmp_path, tmp_path)[1][0]
