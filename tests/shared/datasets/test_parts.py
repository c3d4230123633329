"""Reading parts: sidecars and tables, folders, Parquet, URLs, and files that change meanwhile."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from part_reading import png, read, write_tar

from shared.datasets.dataset import DatasetSettings, list_parts
from shared.datasets.parts import PartReader
from shared.datasets.single_images import fetch, read_ahead
from shared.errors import LvdError


@pytest.fixture
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


def test_sidecars_are_found_wherever_they_stand(tmp_path, scratch):
    def note(**fields):
        return json.dumps(fields).encode()

    members = [
        ("d/early.json", note(url="u1", nsfw=0.5)),
        ("late.jpg", b""),
        ("d/early.jpg", b""),
        ("late.json", note(url="u2", caption="c2", nsfw=True, deep=[1])),
        ("late.txt", b"other"),
        ("text.jpg", b""),
        ("text.txt", b" a cat \n"),
        ("twice.jpg", b""),
        ("twice.json", note(url="first")),
        ("twice.jpg", b""),
        ("twice.json", note(url="second")),
        ("bad1.jpg", b""),
        ("bad1.json", b"[" * 100_000),
        ("bad2.jpg", b""),
        (
            "bad2.json",
            b'{"url": 7, "caption": "\\ud800", "nsfw": NaN, "deep": 1' + b"0" * 30 + b"}",
        ),
        ("bad3.jpg", b""),
        ("bad3.json", b'{"url": "' + b"x" * (1 << 20) + b'"}'),
        ("alone.json", note(url="none")),
    ]
    rows, _, _ = read(write_tar(tmp_path / "p.tar", members), scratch, ["nsfw", "deep"])
    said = {r.key: (r.url, r.caption, r.columns["nsfw"], r.columns["deep"]) for r in rows}
    assert said == {
        "p/d/early": ("u1", None, 0.5, None),
        "p/late": ("u2", "c2", True, None),
        "p/text": (None, "a cat", None, None),
        "p/twice.jpg": ("first", None, None, None),
        "p/twice.jpg#2": ("second", None, None, None),
        "p/bad1": (None, None, None, None),
        "p/bad2": (None, "\\ud800", None, None),
        "p/bad3": (None, None, None, None),
    }


def test_img2dataset_tables_say_url_caption_and_scores(tmp_path, scratch):
    members = [("000000000.jpg", b"1"), ("000000000.json", b'{"nsfw": 0.9, "extra": 1}')]
    write_tar(tmp_path / "00000.tar", [*members, ("000000002.jpg", b"3")])
    table = {
        "key": ["000000000", "000000001", "000000002"],
        "url": ["u0", "u1", "u2"],
        "caption": ["c0", "c1", None],
        "status": ["success", "failed_to_download", "success"],
        "nsfw": [0.1, None, 0.2],
    }
    pq.write_table(pa.table(table), tmp_path / "00000.parquet")
    rows, problems, _ = read(tmp_path, scratch, ["nsfw", "extra", "nowhere"])
    assert problems == []
    assert [(r.key, r.url, r.caption) for r in rows] == [
        ("00000/000000000", "u0", "c0"),
        ("00000/000000002", "u2", None),
    ]
    assert [r.columns for r in rows] == [
        {"nsfw": 0.1, "extra": 1, "nowhere": None},
        {"nsfw": 0.2, "extra": None, "nowhere": None},
    ]


def test_a_broken_table_is_a_problem_and_costs_no_image(tmp_path, scratch):
    write_tar(tmp_path / "00000.tar", [("a.jpg", b"1")])
    (tmp_path / "00000.parquet").write_bytes(b"PAR1 no")
    _, problems, content = read(tmp_path, scratch)
    assert content == {"00000/a": b"1"}
    assert [problem.split(":")[0] for problem in problems] == ["00000.parquet cannot be read"]


def test_remote_parts_read_like_local_ones(tmp_path, scratch):
    for folder in ("t", "i/d", "q"):
        (tmp_path / folder).mkdir(parents=True)
    write_tar(tmp_path / "t/0.tar", [("a.jpg", b"1"), ("a.json", b'{"url": "u"}')])
    (tmp_path / "i/d/a.jpg").write_bytes(b"1")
    pq.write_table(pa.table({"image": [b"1", b"2"], "url": ["u", "v"]}), tmp_path / "q/0.parquet")
    memory = fsspec.filesystem("memory")
    for path in tmp_path.rglob("*"):
        if path.is_file():
            memory.pipe(f"/test_parts/{path.relative_to(tmp_path)}", path.read_bytes())
    for folder in ("t", "i", "q"):
        assert read(f"memory://test_parts/{folder}", scratch) == read(tmp_path / folder, scratch)
    memory.rm("/test_parts", recursive=True)


def test_a_folder_of_images_reads_by_relative_path(tmp_path, scratch):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a.jpg").write_bytes(b"1")
    (tmp_path / "d/a.json").write_bytes(b'{"url": "u", "score": 2}')
    (tmp_path / "picture").write_bytes(png())
    (tmp_path / "README").write_bytes(b"text")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "x.heic").write_bytes(b"?")
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"2")
    rows, problems, content = read(tmp_path, scratch, ["score"], folder_parts=1)
    assert problems == []
    assert content == {
        "d/a.jpg": b"1",
        "picture": png(),
        "gone.jpg": "a link that leads to no file",
        "x.heic": b"?",
        "caf\\xe9.png": b"2",
    }
    assert all(row.key == row.member and row.offset is None for row in rows)
    assert {r.key: (r.url, r.columns["score"]) for r in rows}["d/a.jpg"] == ("u", 2)


PICTURES = [
    *("photo.jpg?w=640&h=480", "AbC123.jpg_large", "def.jpg:orig", "poster.jpg!d", "img_1.jpg.1"),
    *("krita.png~", "IMG_2023.01.05", "www.example.org_picture", "pic.pjpeg", "x.webp.tmp2"),
    *("DSC_0001.MPO", "a.apng", "bare", "IMG_2020.HEIC", "x.avif", "z.tga", "w.svg", "ok.jpg"),
]
JUNK = {
    "README.md": b"BMW is a maker of cars",
    "labels.csv": b"",
    "Thumbs.db": bytes(100),
    "page.html": b"<html>",
    "model.safetensors": b"MM\0",
}
UNREAD = {"scan.image": b"\0\0\0 ftypavif", "gone.jpg_large": b"\0\0\0 ftypheic", "x.png": b"junk"}


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_images_are_told_by_content_and_what_is_ignored_is_counted(tmp_path, scratch, kind):
    files = {**{name: png(n) for n, name in enumerate(PICTURES)}, **UNREAD, **JUNK}
    place = tmp_path / "p.tar"
    if kind == "tar":
        write_tar(place, [*files.items(), ("._ok.jpg", b"\0\5\x16\7"), ("ok.json", b"{}")])
    else:
        place = tmp_path / "p"
        place.mkdir()
        for name, data in files.items():
            (place / name).write_bytes(data)
    rows, problems, content = read(
        place, scratch, **{"folder_parts": 1} if kind == "folder" else {}
    )
    assert problems == []
    assert {row.member: content[row.key] for row in rows} == {
        name: data for name, data in files.items() if name not in JUNK
    }
    (part,) = list_parts("mine", DatasetSettings(path=str(place), folder_parts=1))
    with PartReader(part, scratch) as reader:
        assert reader.ignored == len(JUNK)
        assert len(reader.ignored_examples) == 3
        assert set(reader.ignored_examples) <= set(JUNK)


def test_a_folder_with_odd_names_alone_is_a_folder_of_images(tmp_path, scratch):
    (tmp_path / "README.md").write_bytes(b"text")
    (tmp_path / "photo.jpg?w=640").write_bytes(png())
    assert read(tmp_path, scratch, folder_parts=1)[2] == {"photo.jpg?w=640": png()}


def test_names_that_look_the_same_are_two_images(tmp_path, scratch):
    (tmp_path / "caf\\xe9.png").write_bytes(b"text")
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"byte")
    (part,) = list_parts("mine", DatasetSettings(path=str(tmp_path), folder_parts=1))
    with PartReader(part, scratch) as reader:
        content = {row.key: reader.read(row) for row in reader.members}
    assert sorted(content) == ["caf\\xe9.png", "caf\\xe9.png#2"]
    assert sorted(content.values()) == [b"byte", b"text"]


def test_an_image_that_vanished_after_listing_is_no_property_of_the_image(tmp_path, scratch):
    (tmp_path / "a.jpg").write_bytes(png())
    (part,) = list_parts("mine", DatasetSettings(path=str(tmp_path)))
    with PartReader(part, scratch) as reader:
        (tmp_path / "a.jpg").unlink()
        with pytest.raises(FileNotFoundError):
            reader.read(reader.members[0])
    assert read_ahead(part, "a.jpg", None, len(png()))  # a hint: who reads says what is wrong
    with pytest.raises(FileNotFoundError):
        fetch(part, "a.jpg", None, len(png()))


def test_several_folders_keep_their_keys_apart(tmp_path, scratch):
    keys = []
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes(name.encode())
    paths = [str(tmp_path / name) for name in ("x", "y")]
    for part in list_parts("mine", DatasetSettings(path=paths, folder_parts=1)):
        with PartReader(part, scratch) as reader:
            keys += [(row.key, row.member, reader.read(row)) for row in reader.members]
    assert keys == [("x/a.jpg", "a.jpg", b"x"), ("y/a.jpg", "a.jpg", b"y")]


def test_parquet_rows_are_images_of_bytes_or_of_hugging_face_structs(tmp_path, scratch):
    struct_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [{"bytes": b"1", "path": "a.jpg"}, {"bytes": None, "path": "only.jpg"}, None]
    table = pa.table(
        {
            "image": pa.array(images, struct_type),
            "caption": pa.array(["c", None, "d"]).dictionary_encode(),
            "score": pa.array([1.5, None, float("nan")]),
            "label": pa.array([[1], [2], [3]]),
        }
    )
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=2)
    rows, problems, content = read(tmp_path / "train.parquet", scratch, ["score", "label", "no"])
    assert problems == []
    reason = "the row holds no image bytes"
    assert content == {"train/0": b"1", "train/1": reason, "train/2": reason}
    assert [(r.member, r.offset, r.caption) for r in rows] == [
        ("0", None, "c"),
        ("1", None, None),
        ("2", None, "d"),
    ]
    assert [r.columns["score"] for r in rows] == [1.5, None, None]
    assert rows[0].columns == {"score": 1.5, "label": None, "no": None}


@pytest.mark.parametrize(
    "kind",
    [pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int8(), pa.binary())],
)
def test_image_bytes_are_read_in_every_layout_that_arrow_writes(tmp_path, scratch, kind):
    images = pa.array([b"1", b"2", b"1"], pa.binary())
    images = images.dictionary_encode() if pa.types.is_dictionary(kind) else images.cast(kind)
    table = {"image": images}
    if not pa.types.is_dictionary(kind):
        table = {"image": pa.StructArray.from_arrays([images], ["bytes"])}
    pq.write_table(pa.table(table), tmp_path / "p.parquet")
    assert read(tmp_path / "p.parquet", scratch)[2] == {"p/0": b"1", "p/1": b"2", "p/2": b"1"}


def test_parquet_keys_are_the_key_column_where_it_is_unique(tmp_path, scratch):
    def keys(column, **options):
        data = {"image": [b"%d" % n for n in range(11)], **column}
        pq.write_table(pa.table(data), tmp_path / "p.parquet")
        rows, problems, content = read(tmp_path / "p.parquet", scratch, **options)
        assert len(rows) == 11
        return content, problems

    ids = [f"id{n}" for n in range(11)]
    numbers = {f"p/{n}": b"%d" % n for n in range(11)}
    assert keys({})[0] == numbers
    assert keys({"key": ids})[0] == {f"p/id{n}": b"%d" % n for n in range(11)}
    assert keys({"name": ids}, key_column="name")[0] == {f"p/id{n}": b"%d" % n for n in range(11)}
    assert keys({"key": [*ids[:-1], "id0"]})[0] == numbers
    assert "not unique" in keys({"key": [*ids[:-1], None]})[1][0]
    assert "no key column" in keys({}, key_column="name")[1][0]


def test_broken_parquet_is_a_problem_and_what_came_before_it_counts(tmp_path, scratch):
    images = [os.urandom(1000) for _ in range(100)]
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"image": images}), path, row_group_size=50, compression="zstd")
    data = bytearray(path.read_bytes())
    start = data.index(images[70])
    for place in range(start - 15_000, start + 15_000):
        data[place] ^= 0x5A
    path.write_bytes(data)
    rows, problems, content = read(path, scratch)
    assert len(problems) == 1
    assert "cannot be read" in problems[0]
    assert 0 < len(rows) < 100
    assert content["p/3"] == images[3]
    path.write_bytes(b"PAR1" + bytes(100))
    assert read(path, scratch)[0] == []


def test_a_file_that_is_gone_is_an_error_to_retry_and_not_an_empty_part(tmp_path, scratch):
    write_tar(tmp_path / "p.tar", [("a.jpg", b"1")])
    (part,) = list_parts("mine", DatasetSettings(path=str(tmp_path)))
    (tmp_path / "p.tar").unlink()
    with pytest.raises(FileNotFoundError), PartReader(part, scratch):
        pass


def test_a_file_that_shrinks_while_it_is_read_is_no_fault_of_its_image(tmp_path, scratch):
    write_tar(tmp_path / "p.tar", [("a.jpg", b"1" * 5000)])
    (part,) = list_parts("mine", DatasetSettings(path=str(tmp_path)))
    with PartReader(part, scratch) as reader:
        os.truncate(tmp_path / "p.tar", 1000)
        with pytest.raises(
            LvdError, match=r"p\.tar ends at byte 1000, .*changed after it was listed"
        ):
            reader.read(reader.members[0])


def test_threads_read_the_same_bytes(tmp_path, scratch):
    data = [os.urandom(3000 + n) for n in range(200)]
    write_tar(tmp_path / "p.tgz", [(f"{n:03d}.jpg", d) for n, d in enumerate(data)], "w:gz")
    (part,) = list_parts("mine", DatasetSettings(path=str(tmp_path)))
    with PartReader(part, scratch) as reader, ThreadPoolExecutor(4) as pool:
        assert list(pool.map(reader.read, reader.members)) == data
