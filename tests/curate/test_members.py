"""What lies beside an image goes out with it byte for byte, from tars, folders and Parquet files."""

import gzip
import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import encoded, picture, write_tar
from pydantic import ValidationError
from test_export import exported

from curate.export.shards import ExportSettings

IMAGES = {number: encoded(picture(number)) for number in range(5)}
CAPTIONS = {0: b" one\n", 1: "zw\u00f6lf".encode(), 2: b"", 4: b"four"}
CLASSES = {0: b"7", 1: b"\0\xff\n", 3: IMAGES[0], 4: b"x" * (1 << 20)}
NOTES = {
    0: b'{"nsfw": 0.25, "key": "theirs", "deep": {"a": [1, null]}}',
    1: b'{"caption": "of the JSON", "score": NaN}',
    2: b"{no JSON",
    3: b'{"caption": "three", "odd": "\\ud800"}',
}
EXPECTED = {0: b" one\n", 1: CAPTIONS[1], 2: b"", 3: b"three", 4: b"four"}


def files():
    """Return all files of the crawl, by name."""
    found = {f"{number}.jpg": data for number, data in IMAGES.items()}
    for end, beside in (("txt", CAPTIONS), ("cls", CLASSES), ("json", NOTES)):
        found |= {f"{number}.{end}": data for number, data in beside.items()}
    return dict(sorted(found.items()))


def as_tar(root):
    return write_tar(root / "p.tar", files())


def as_zipped_tar(root):
    plain = as_tar(root)
    (root / "p.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    return root / "p.tar.gz"


def as_folder(root):
    for name, data in files().items():
        (root / "a b" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "a b" / name).write_bytes(data)
    return root


def as_parquet(root):
    root.mkdir(parents=True)
    text = {number: data.decode() for number, data in NOTES.items()}
    columns = {
        "image": list(IMAGES.values()),
        "text": ["of a column", None, None, "three", None],
        "txt": [CAPTIONS.get(number) for number in IMAGES],
        "cls": [CLASSES.get(number) for number in IMAGES],
        "json": [text.get(number) for number in IMAGES],
    }
    pq.write_table(pa.table(columns), root / "p.parquet", row_group_size=2)
    return root / "p.parquet"


def written(files_of_shards):
    """Return the JSON and all other members of each sample, by the number of its picture."""
    result = {}
    for name, content in files_of_shards.items():
        if name.endswith(".tar"):
            samples = {}
            with tarfile.open(fileobj=io.BytesIO(content)) as tar:
                for entry in tar:
                    key, _, end = entry.name.partition(".")
                    samples.setdefault(key, {})[end] = tar.extractfile(entry).read()
            for sample in samples.values():
                image = sample.pop("jpg")
                [number] = [number for number, data in IMAGES.items() if data == image]
                result[number] = json.loads(sample.pop("json")), sample
    return result


@pytest.mark.parametrize("lay", [as_tar, as_zipped_tar, as_folder, as_parquet])
def test_members_come_out_as_they_lie_beside_the_image(tmp_path, lay):
    asked = ExportSettings(members=["txt", "json", "cls"])
    made = written(exported(tmp_path, lay(tmp_path / "in"), asked)[0])
    assert set(made) == set(IMAGES)
    assert {number: beside["txt"] for number, (_, beside) in made.items()} == EXPECTED
    kept = {number: beside["cls"] for number, (_, beside) in made.items() if "cls" in beside}
    assert kept == {number: CLASSES[number] for number in (0, 1, 4)}  # 3 is a picture
    rows = {number: row for number, (row, _) in made.items()}
    assert rows[0]["nsfw"] == 0.25
    assert rows[0]["deep"] == {"a": [1, None]}
    assert rows[0]["key"].isdecimal()
    assert rows[1]["score"] is None
    assert rows[3]["odd"] == "\ud800"
    assert rows[3]["caption"] == "three"


@pytest.mark.parametrize("lay", [as_tar, as_folder])
def test_a_caption_goes_out_unasked_and_nothing_else_does(tmp_path, lay):
    files_of_shards, source = exported(tmp_path, lay(tmp_path / "in"))
    made = written(files_of_shards)
    assert source.spills == {}
    captions = {number: row["caption"] for number, (row, _) in made.items()}
    assert captions == {0: "one", 1: "of the JSON", 2: "", 3: "three", 4: "four"}
    assert all(set(beside) == {"txt"} for _, beside in made.values())
    assert {number: beside["txt"].decode() for number, (_, beside) in made.items()} == captions


def test_without_any_caption_there_is_no_text(tmp_path):
    crawl = {f"{number}.jpg": data for number, data in IMAGES.items()}
    made = written(exported(tmp_path, write_tar(tmp_path / "in" / "p.tar", crawl))[0])
    assert all(beside == {} for _, beside in made.values())


def test_what_is_larger_than_a_mebibyte_stays_behind(tmp_path):
    crawl = {"0.jpg": IMAGES[0], "0.cls": b"x" * ((1 << 20) + 1), "0.txt": b"fits"}
    for lay in (lambda root: write_tar(root / "p.tar", crawl), folder_of(crawl)):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        asked = ExportSettings(members=["cls", "txt"])
        made = written(exported(root, lay(root / "in"), asked)[0])
        assert made[0][1] == {"txt": b"fits"}


def folder_of(crawl):
    def lay(root):
        root.mkdir(parents=True)
        for name, data in crawl.items():
            (root / name).write_bytes(data)
        return root

    return lay


def test_repeated_samples_have_each_its_own(tmp_path):
    path = tmp_path / "in" / "p.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for number in range(2):
            for name, data in (("a.jpg", IMAGES[number]), ("a.cls", str(number).encode())):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    made = written(exported(tmp_path, path, ExportSettings(members=["cls"]))[0])
    assert {number: beside["cls"] for number, (_, beside) in made.items()} == {0: b"0", 1: b"1"}


@pytest.mark.parametrize(
    ("member", "said"),
    [("jpg", "what goes beside one is no image"), ("pyd", "unpickle"), (".txt", "no extension")],
)
def test_members_that_are_images_or_would_be_executed_are_refused(member, said):
    with pytest.raises(ValidationError, match=said):
        ExportSettings(members=["txt", member])
