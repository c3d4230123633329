"""Datasets: what a path stands for, how it is divided, and what is said when nothing is there."""

import io
import os
import pickle
import re
import tarfile
from dataclasses import replace

import duckdb
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shared.datasets.dataset import DatasetSettings, list_parts
from shared.datasets.parts import PartReader
from shared.errors import LvdError
from shared.keys import shown


def parts_of(path, **options):
    return list_parts("mine", DatasetSettings(path=path, **options))


def names_of(path, **options):
    return [part.name for part in parts_of(path, **options)]


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * len(name))


def write_images(path, column="image"):
    pq.write_table(pa.table({column: pa.array([b"a"], pa.binary())}), path)


@pytest.fixture
def shards(tmp_path):
    touch(tmp_path, "a/00000.tar", "a/00001.tar", "b/00002.tar.gz", "b/00003.tgz", "a/.tmp.tar")
    touch(tmp_path, "a/00000.parquet", "a/00000_stats.json", ".hidden/00009.tar", "README.md")
    return tmp_path


def test_a_folder_of_tars_is_a_part_for_each(shards):
    parts = parts_of(str(shards))
    assert [part.name for part in parts] == ["a/00000", "a/00001", "b/00002", "b/00003"]
    assert [part.table for part in parts] == ["a/00000.parquet", None, None, None]
    assert {part.root for part in parts} == {str(shards)}
    assert parts[0].paths == ("a/00000.tar",)
    assert parts[0].nbytes == len("a/00000.tar")
    assert pickle.loads(pickle.dumps(parts)) == parts


def test_names_are_relative_to_the_longest_prefix_without_a_wildcard(shards, monkeypatch):
    assert names_of(f"{shards}/a/00000.tar") == ["00000"]
    assert names_of(f"{shards}/a/*.tar") == ["00000", "00001"]
    assert names_of(f"{shards}/a/0000{{0..1}}.tar") == ["00000", "00001"]
    assert names_of(f"{shards}/{{a,b}}/*") == ["a/00000", "a/00001", "b/00002", "b/00003"]
    assert names_of(f"{shards}/**/*.tar") == ["a/00000", "a/00001"]
    assert names_of(f"{shards}/*") == ["a/00000", "a/00001", "b/00002", "b/00003"]
    monkeypatch.chdir(shards)
    assert names_of("a") == names_of("./a/../a") == ["00000", "00001"]
    assert parts_of("a/*.tar")[0].table == "00000.parquet"
    assert parts_of("a/00000.tar")[0].table == "00000.parquet"


def test_a_name_that_exists_is_never_a_pattern(tmp_path):
    touch(tmp_path, "data[1]/00000.tar", "{x}.tar")
    assert names_of(f"{tmp_path}/data[1]") == ["00000"]
    assert names_of(f"{tmp_path}/{{x}}.tar") == ["{x}"]


@pytest.mark.parametrize("folder", ["photos [2019]", "{a,b}", "what?", "a*b"])
@pytest.mark.parametrize("where", ["local", "memory"])
def test_a_folder_that_exists_is_taken_literally_below_which_is_a_pattern(tmp_path, folder, where):
    touch(tmp_path, f"{folder}/x/0.tar", f"{folder}/x/1.tar", f"{folder}/[y]/2.tar", "aab/3.tar")
    root = str(tmp_path)
    if where == "memory":
        memory = fsspec.filesystem("memory")
        for path in tmp_path.rglob("*.tar"):
            memory.pipe(f"/test_literal/{path.relative_to(tmp_path)}", path.read_bytes())
        root = "memory://test_literal"
    place = f"{root}/{folder}"
    assert names_of(f"{place}/x/*.tar") == ["0", "1"]
    assert names_of(f"{place}/**/*.tar") == ["[y]/2", "x/0", "x/1"]
    assert names_of(f"{place}/x/{{0,1}}.tar") == ["0", "1"]
    assert names_of(f"{place}/[y]/*.tar") == ["2"]
    assert names_of(f"{place}/{{x,[y]}}/*.tar") == ["[y]/2", "x/0", "x/1"]
    assert parts_of(f"{place}/x/*.tar")[0].root.endswith(f"{folder}/x")
    if where == "memory":
        memory.rm("/test_literal", recursive=True)


def test_urls_are_listed_like_folders(shards):
    memory = fsspec.filesystem("memory")
    for path in shards.rglob("*"):
        if path.is_file():
            memory.pipe(f"/test_urls/.data/{path.relative_to(shards)}", path.read_bytes())
    for url in ("memory://test_urls/.data", shards.as_uri()):
        assert names_of(url) == ["a/00000", "a/00001", "b/00002", "b/00003"]
        assert names_of(f"{url}/a/*.tar") == names_of(f"{url}/a/{{00000,00001}}.tar")
        assert parts_of(f"{url}/a/*.tar")[0].table == "00000.parquet"
        assert names_of(f"{url}/b/00003.tgz") == ["00003"]
    memory.rm("/test_urls", recursive=True)


def test_images_are_dealt_to_parts_with_their_sidecars(tmp_path):
    names = [f"{folder}/{number}.JPG" for folder in ("a", "b/c") for number in range(20)]
    touch(tmp_path, *names, "a/0.json", "b/c/3.txt", "a/.hidden.jpg", "notes.csv")
    parts = parts_of(str(tmp_path), folder_parts=4)
    assert [part.name for part in parts] == [f"folder-{n:05d}" for n in range(4)]
    dealt = [path for part in parts for path in part.paths]
    assert sorted(dealt) == sorted([*names, "a/0.json", "b/c/3.txt", "notes.csv"])
    for image, note in (("a/0.JPG", "a/0.json"), ("b/c/3.JPG", "b/c/3.txt")):
        assert any({image, note} <= set(part.paths) for part in parts)
    assert sum(part.nbytes for part in parts) == sum(map(len, [*names, "notes.csv"]))
    assert names_of(f"{tmp_path}/**/*.JPG", folder_parts=4) == [part.name for part in parts]


def test_a_member_is_found_without_scanning_its_part(tmp_path):
    names = ["a.jpg", "caf\\xe9.jpg", *(os.fsdecode(b"%d\xe9.jpg" % n) for n in range(200))]
    touch(tmp_path, *names, os.fsdecode(b"caf\xe9.jpg"))
    (part,) = parts_of(str(tmp_path), folder_parts=1)
    scans = []

    class Paths(tuple):
        def __iter__(self):
            scans.append(1)
            return super().__iter__()

        def __contains__(self, path):
            scans.append(1)
            return super().__contains__(path)

    part = replace(part, paths=Paths(part.paths))
    for name in names:
        assert part.path_of(shown(name)) == name
    assert len(scans) < 5


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.from_regex(r"[a-c]{1,2}(/[a-c]{1,2})?\.jpg", fullmatch=True),
        min_size=2,
        max_size=8,
        unique=True,
    )
)
def test_adding_a_file_moves_no_other(tmp_path_factory, names):
    root = tmp_path_factory.mktemp("images")
    *first, last = names

    def homes():
        parts = parts_of(str(root), folder_parts=5)
        return {path: part for part in parts for path in part.paths}

    touch(root, *first)
    before = homes()
    touch(root, last)
    after = homes()
    assert set(after) == set(names)
    for name in first:
        assert after[name].name == before[name].name
        if after[name].name != after[last].name:
            assert after[name] == before[name]


def test_a_fingerprint_follows_the_content(shards):
    def prints():
        return {part.name: part.fingerprint for part in parts_of(str(shards))}

    before = prints()
    assert prints() == before
    assert len(set(before.values())) == len(before)
    os.utime(shards / "a/00001.tar", ns=(1, 1))
    touch(shards, "a/00000.parquet.tmp", "c/00004.tar")
    (shards / "a/00000.parquet").write_bytes(b"longer than it was")
    after = prints()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"a/00000", "a/00001"}


def test_a_fingerprint_does_not_know_where_the_root_is(tmp_path):
    prints = []
    for root in ("here", "there/too"):
        touch(tmp_path, f"{root}/x.tar")
        (tmp_path / root / "x.tar").write_bytes(b"same")
        os.utime(tmp_path / root / "x.tar", ns=(5, 5))
        prints.append(parts_of(str(tmp_path / root))[0].fingerprint)
    assert prints[0] == prints[1]


def test_no_two_parts_share_a_name(tmp_path):
    touch(tmp_path, "x/c/0.tar", "y/c/0.tar", "y/c/1.tar", "z/0.tar", "z/0.tar.gz", "n/a.tar")
    touch(tmp_path, "n/a/b.tar")
    both = [str(tmp_path / "x/c"), str(tmp_path / "y/c")]
    assert names_of(both) == ["1", "x/c/0", "y/c/0"]
    assert names_of(both[::-1]) == names_of(both)
    assert names_of(str(tmp_path / "z")) == ["0.tar", "0.tar.gz"]
    assert names_of(str(tmp_path / "n")) == ["a.tar", "a/b"]
    assert names_of([both[0], both[0], both[0] + "/*.tar"]) == ["0"]


def test_folders_of_images_in_a_list_stay_apart(tmp_path):
    touch(tmp_path, "x/a.jpg", "y/a.jpg")
    parts = parts_of([str(tmp_path / "x"), str(tmp_path / "y")], folder_parts=1)
    assert [part.name for part in parts] == ["x/folder-00000", "y/folder-00000"]
    assert [part.key_prefix for part in parts] == ["x/", "y/"]


def test_parquet_files_are_parts_and_tables_are_not(tmp_path):
    (tmp_path / "p").mkdir()
    write_images(tmp_path / "p/0.parquet")
    write_images(tmp_path / "p/1.parquet")
    assert names_of(str(tmp_path / "p")) == ["0", "1"]
    assert names_of(str(tmp_path / "p/1.parquet")) == ["1"]
    touch(tmp_path, "f/00000/1.jpg", "f/00000.parquet", "f/metadata.parquet")
    assert {part.format for part in parts_of(str(tmp_path / "f"))} == {"folder"}


def test_a_missing_image_column_fails_at_once_and_names_the_nearest(tmp_path):
    write_images(tmp_path / "0.parquet", column="picture")
    assert parts_of(str(tmp_path))[0].image_column is None
    with pytest.raises(LvdError, match="did you mean 'picture'"):
        parts_of(str(tmp_path), image_column="pictures")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "0.parquet")
    with pytest.raises(LvdError, match="no column of image bytes among x"):
        parts_of(str(tmp_path))


def write_result(folder):
    touch(folder, "run.json", "reports/images.parquet", "reports/page/a.png", "shards/00000.tar")
    touch(folder, "shards/00000.parquet", "shards/00000_stats.json")


@pytest.fixture
def crawl_with_outputs(tmp_path):
    """A crawl that holds two results, a work folder and two folders that only `exclude` tells."""
    crawl = tmp_path / "crawl"
    touch(
        crawl, "a/0.tar", "a/run.json", "b/reports/1.tar", "own/2.tar", "own.partial/shards/3.tar"
    )
    for result in ("x", "runs/curate/y"):
        write_result(crawl / result)
    touch(crawl, "work/lvd-work.json", "work/embed/0.tar", "work/sample/s.jpg", "work/v.npy")
    return crawl


@pytest.mark.parametrize("pattern", ["", "/**/*.tar", "/*"])
@pytest.mark.parametrize("where", ["local", "memory", "link"])
def test_what_lvd_curate_wrote_is_never_input(crawl_with_outputs, tmp_path, capsys, pattern, where):
    root = str(crawl_with_outputs)
    if where == "link":
        (tmp_path / "link").symlink_to(crawl_with_outputs)
        root = str(tmp_path / "link")
    if where == "memory":
        memory = fsspec.filesystem("memory")
        for path in crawl_with_outputs.rglob("*"):
            if path.is_file():
                place = path.relative_to(crawl_with_outputs)
                memory.pipe(f"/test_outputs/{place}", path.read_bytes())
        root = "memory://test_outputs"
    own = root if where == "memory" else crawl_with_outputs
    settings = DatasetSettings(path=root + pattern)
    exclude = [f"{own}/own", f"{own}/own.partial", f"{own}/not_there", root, tmp_path]
    parts = list_parts("mine", settings, exclude=exclude)
    assert [part.name for part in parts] == ["a/0", "b/reports/1"]
    said = capsys.readouterr().err
    assert said.count("warning:") == said.count("\n") == 1
    assert "left out 5 folders" in said
    if where == "memory":
        memory.rm("/test_outputs", recursive=True)


def test_a_result_that_is_named_is_the_dataset_of_its_shards(tmp_path, capsys):
    write_result(tmp_path / "out")
    assert names_of(f"{tmp_path}/out/shards") == ["00000"]
    assert names_of(f"{tmp_path}/out/shards/*.tar") == ["00000"]
    (part,) = list_parts(
        "mine", DatasetSettings(path=str(tmp_path / "out")), exclude=[tmp_path / "out"]
    )
    assert (part.name, part.table) == ("shards/00000", "shards/00000.parquet")
    assert not capsys.readouterr().err
    with pytest.raises(LvdError, match="only what lvd-curate wrote is there"):
        parts_of(str(tmp_path))


HUGGING_FACE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize("asked", [None, "images"])
@pytest.mark.parametrize("kind", [HUGGING_FACE, pa.binary()])
@pytest.mark.parametrize("lists", [pa.list_, pa.large_list])
def test_lists_of_images_are_refused_with_a_remedy_that_works(tmp_path, asked, kind, lists):
    image = {"bytes": b"1", "path": "a"} if kind == HUGGING_FACE else b"1"
    table = {"images": pa.array([[image, image], [image]], lists(kind)), "url": ["u", "v"]}
    pq.write_table(pa.table(table), tmp_path / "OLD.parquet")
    with pytest.raises(LvdError, match="column 'images' holds a list of images a row") as error:
        parts_of(str(tmp_path), image_column=asked)
    assert "image_column" not in str(error.value)
    remedy = re.search(r'duckdb\.sql\("(.*)"\)', str(error.value))[1]
    places = {name: str(tmp_path / name) for name in ("OLD.parquet", "NEW.parquet")}
    for name, place in places.items():
        remedy = remedy.replace(name, place)
    duckdb.sql(remedy)
    (part,) = parts_of(places["NEW.parquet"])
    with PartReader(part, tmp_path) as reader:
        assert [(reader.read(m), m.url) for m in reader.members] == [
            (b"1", "u"),
            (b"1", "u"),
            (b"1", "v"),
        ]


def test_a_column_that_holds_no_images_is_named_with_one_that_does(tmp_path):
    table = {"label": [1], "a": pa.array([b"1"], pa.binary()), "b": pa.array([b"1"], pa.binary())}
    pq.write_table(pa.table(table), tmp_path / "0.parquet")
    with pytest.raises(
        LvdError, match="'label' is int64, not image bytes: set image_column to a or b"
    ):
        parts_of(str(tmp_path), image_column="label")
    with pytest.raises(LvdError, match="images could be in a, b; set the dataset's `image_column`"):
        parts_of(str(tmp_path))


def test_a_folder_of_two_kinds_is_refused_with_a_remedy(tmp_path):
    touch(tmp_path, "0.tar", "cat.jpg", "LICENSE")
    with pytest.raises(LvdError, match=r"both tar files \(0.tar\) and loose images \(cat.jpg\)"):
        parts_of(str(tmp_path))
    assert names_of(str(tmp_path), format="tar") == ["0"]
    assert len(parts_of(str(tmp_path), format="folder")) > 0
    assert names_of(f"{tmp_path}/*.tar") == ["0"]


def test_files_without_an_extension_are_a_folder_if_any_is_an_image(tmp_path):
    touch(tmp_path, "README")
    with pytest.raises(LvdError, match="no image, tar or Parquet file"):
        parts_of(str(tmp_path))
    stream = io.BytesIO()
    Image.new("RGB", (2, 2)).save(stream, "PNG")
    (tmp_path / "picture").write_bytes(stream.getvalue())
    assert {part.format for part in parts_of(str(tmp_path))} == {"folder"}


def test_an_odd_name_is_read_as_the_format_that_is_asked_for(tmp_path):
    with tarfile.open(tmp_path / "shard.bin", "w"):
        pass
    assert names_of(f"{tmp_path}/shard.bin", format="tar") == ["shard.bin"]


@pytest.mark.parametrize(
    "path",
    [
        "nowhere",
        "nowhere/*.tar",
        "00000.tar.part",
        "memory://nowhere",
        "nosuch://x",
        "a::memory://x",
        "{a",
        "00000.tar/{0..3}",
        ".",
    ],
)
def test_what_is_not_there_is_one_line_with_name_place_and_remedy(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LvdError) as error:
        parts_of(path)
    text = str(error.value)
    assert "\n" not in text
    for part in ("'mine'", repr(path), "pipelines.yaml"):
        assert part in text


def test_a_brace_list_with_a_gap_names_the_gap(tmp_path):
    touch(tmp_path, "0.tar", "2.tar")
    with pytest.raises(LvdError, match=r"1\.tar does not exist"):
        parts_of(f"{tmp_path}/{{0..2}}.tar")


def test_links_that_lead_back_up_or_nowhere_do_no_harm(tmp_path):
    touch(tmp_path, "a/x.jpg")
    (tmp_path / "a/up").symlink_to(tmp_path)
    (tmp_path / "a/gone.jpg").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "a/pipe.jpg")
    paths = [path for part in parts_of(str(tmp_path)) for path in part.paths]
    assert sorted(paths) == ["a/gone.jpg", "a/x.jpg"]


def test_settings_refuse_what_nothing_reads():
    with pytest.raises(ValueError, match="folder_part"):
        DatasetSettings(path="x", folder_part=2)
    with pytest.raises(ValueError, match="folder_parts"):
        DatasetSettings(path="x", folder_parts=0)
