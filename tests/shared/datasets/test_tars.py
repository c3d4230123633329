"""Reading tars: each image member is a row with the right bytes or a reason, in any state of file."""

import gzip
import os
import struct
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from part_reading import png, read, write_tar

from shared.datasets import parts as parts_module
from shared.datasets.tars import list_tar


@pytest.fixture
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


def test_a_tar_gives_its_images_and_only_those(tmp_path, scratch):
    link = tarfile.TarInfo("link.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    members = [
        ("b.JPG", b"2"),
        ("a.png", b"1"),
        ("run.pkl", b"cos\nsystem\n(S'touch pwned'\ntR."),
        ("x.cls", b"3"),
        ("._a.png", b"macOS"),
        ("sniffed", png()),
        ("not_sniffed", b"text"),
        ("drawing.svg", b"<svg/>"),
        ("photo.AVIF", b"?"),
        ("empty.jpg", b""),
        (link, b""),
    ]
    rows, problems, content = read(write_tar(tmp_path / "p.tar", members), scratch)
    assert problems == []
    assert content == {
        "p/a": b"1",
        "p/b": b"2",
        "p/sniffed": png(),
        "p/empty": b"",
        "p/drawing": b"<svg/>",
        "p/photo": b"?",
        "p/link": "a link to etc/passwd, which is not in the tar",
    }
    for row in rows:
        data = (tmp_path / "p.tar").read_bytes()[row.offset : row.offset + row.size]
        assert row.problem or data == content[row.key]
    assert [row.member for row in rows if row.key == "p/b"] == ["b.JPG"]


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_long_and_foreign_names_survive_every_tar_format(tmp_path, scratch, tar_format):
    long = "d" * 90 + "/" + "e" * 90 + ".jpg"
    path = write_tar(tmp_path / "p.tar", [(long, b"1"), ("é/ü.png", b"2")], format=tar_format)
    rows, problems, content = read(path, scratch)
    assert problems == []
    assert {row.member: content[row.key] for row in rows} == {long: b"1", "é/ü.png": b"2"}


def test_names_that_are_not_utf8_are_spelt_out(tmp_path, scratch):
    path = tmp_path / "p.tar"
    write_tar(path, [(b"caf\xe9.jpg".decode("utf-8", "surrogateescape"), b"1")])
    assert read(path, scratch)[2] == {"p/caf\\xe9": b"1"}


def test_repeated_members_all_count(tmp_path, scratch):
    members = [("a.jpg", b"1"), ("a.jpg", b"2"), ("a.png", b"3"), ("a.jpg", b"4"), ("b.jpg", b"5")]
    content = read(write_tar(tmp_path / "p.tar", members), scratch)[2]
    assert content == {
        "p/a.jpg": b"1",
        "p/a.jpg#2": b"2",
        "p/a.jpg#3": b"4",
        "p/a.png": b"3",
        "p/b": b"5",
    }


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 6 * 1024 + 10240))
def test_a_tar_cut_anywhere_gives_what_is_whole_and_says_so(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("cut")
    members = [(f"{n}.jpg", bytes([n]) * (300 + n)) for n in range(6)]
    data = write_tar(folder / "whole.tar", members).read_bytes()
    (folder / "p.tar").write_bytes(data[:cut])
    scratch = folder / "scratch"
    scratch.mkdir()
    rows, problems, content = read(folder / "p.tar", scratch)
    whole = {f"p/{n}": data for n, (_, data) in enumerate(members) if n * 1024 + 812 + n <= cut}
    assert {key: value for key, value in content.items() if isinstance(value, bytes)} == whole
    assert len(rows) == min(6, (cut + 512) // 1024)
    assert all(row.problem == "tar ends inside this member" for row in rows[len(whole) :])
    assert len(problems) == (cut < 6 * 1024 + 512)
    if 512 <= cut < 6 * 1024 + 512:
        assert problems[0].startswith(f"tar ends early at byte {cut}")
        member, byte = divmod(cut, 1024)
        in_padding = problems[0].endswith("inside the padding of a whole member")
        assert in_padding == (byte >= 812 + member)


@pytest.mark.parametrize("data", [b"", b"<html>404</html>" * 100, b"\x1f\x8b not gzip", b"x"])
def test_what_is_no_tar_is_a_problem_and_no_rows(tmp_path, scratch, data):
    (tmp_path / "p.tar").write_bytes(data)
    rows, problems, _ = read(tmp_path / "p.tar", scratch)
    assert rows == []
    assert any("not a tar file" in problem for problem in problems)


def test_reading_goes_on_behind_a_damaged_header_and_a_second_tar(tmp_path, scratch):
    one = write_tar(tmp_path / "1.tar", [(f"{n}.jpg", b"%d" % n) for n in range(3)]).read_bytes()
    two = write_tar(tmp_path / "2.tar", [("3.jpg", b"3")]).read_bytes()
    damaged = bytearray(one)
    damaged[1024:1034] = b"\xff" * 10
    (tmp_path / "p.tar").write_bytes(bytes(damaged) + two)
    _, problems, content = read(tmp_path / "p.tar", scratch)
    assert content == {"p/0": b"0", "p/2": b"2", "p/3": b"3"}
    assert problems == ["bad tar header at byte 1024: reading went on at byte 2048"]


@pytest.mark.parametrize("filler", [bytes(512), b"x" * 512])
def test_what_is_behind_damage_is_found_without_reading_anything_twice(
    tmp_path, monkeypatch, filler
):
    member = tarfile.TarInfo("a.cls").tobuf(tarfile.USTAR_FORMAT)
    path = tmp_path / "p.tar"
    path.write_bytes((filler + member) * 2000 + bytes(1024))
    got = []
    pread = os.pread

    def counted(*call):
        got.append(pread(*call))
        return got[-1]

    monkeypatch.setattr(os, "pread", counted)
    with path.open("rb") as file:
        entries = list_tar(file.fileno(), [])
    assert len(entries) == 2000
    assert sum(map(len, got)) < 4 * path.stat().st_size
    assert len(got) < 4 * 4000


def test_every_record_of_a_pax_header_is_read(tmp_path):
    records = b"6 a=b\n" * 100_000 + b"17 path=late.jpg\n"
    head = header("h", b"%011o\0" % len(records), b"x") + records + bytes(-len(records) % 512)
    good = header("early.jpg", b"%011o\0" % 4) + b"good".ljust(512, b"\0")
    (tmp_path / "p.tar").write_bytes(head + good + bytes(1024))
    with (tmp_path / "p.tar").open("rb") as file:
        assert [entry.name for entry in list_tar(file.fileno(), [])] == ["late.jpg"]


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


HARD = tarfile.LNKTYPE


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_links_have_the_bytes_of_what_they_lead_to_in_the_tar(tmp_path, scratch, tar_format):
    members = [
        link("early.jpg", "d/a.jpg"),
        ("./d/a.jpg", b"1"),
        ("d/a.json", b'{"caption": "c"}'),
        link("hard.jpg", "d/a.jpg", HARD),
        link("hard.json", "./d/a.json", HARD),
        link("d/e/up.jpg", "../a.jpg"),
        link("chain.jpg", "d/e/up.jpg"),
        link("hard_to_soft.jpg", "chain.jpg", HARD),
        ("x.jpg", b"old"),
        link("hard_to_old.jpg", "x.jpg", HARD),
        ("x.jpg", b"new"),
        link("soft_to_new.jpg", "x.jpg"),
        link("no_picture", "d/a.json"),
        link("sniffed", "picture"),
        ("picture", png()),
        link("loop1.jpg", "loop2.jpg"),
        link("loop2.jpg", "loop1.jpg"),
        link("self.jpg", "self.jpg"),
        link("self_hard.jpg", "self_hard.jpg", HARD),
        link("gone.jpg", "../elsewhere/gone.jpg"),
        link("gone_hard.jpg", "gone_at_all.jpg", HARD),
        link("broken_chain.jpg", "gone.jpg"),
    ]
    long = "/".join(["d" * 40] * 3) + ".jpg"
    if tar_format != tarfile.USTAR_FORMAT:  # whose link names end at 100 bytes
        members += [(long, b"1"), link("to_long.jpg", long)]
    path = write_tar(tmp_path / "p.tar", members, format=tar_format)
    rows, problems, content = read(path, scratch)
    assert problems == []
    by_member = {row.member: content[row.key] for row in rows if row.member != "x.jpg"}
    if tar_format != tarfile.USTAR_FORMAT:
        assert by_member.pop(long) == by_member.pop("to_long.jpg") == b"1"
    circle, missing = "a link in a circle of links", "a link to {}, which is not in the tar"
    assert by_member == {
        **dict.fromkeys(["early.jpg", "./d/a.jpg", "hard.jpg", "d/e/up.jpg", "chain.jpg"], b"1"),
        "hard_to_soft.jpg": b"1",
        "hard_to_old.jpg": b"old",
        "soft_to_new.jpg": b"new",
        "sniffed": png(),
        "picture": png(),
        **dict.fromkeys(["loop1.jpg", "loop2.jpg", "self.jpg", "self_hard.jpg"], circle),
        "gone.jpg": missing.format("../elsewhere/gone.jpg"),
        "broken_chain.jpg": missing.format("../elsewhere/gone.jpg"),
        "gone_hard.jpg": missing.format("gone_at_all.jpg"),
    }
    assert {row.key: row.caption for row in rows}["p/hard"] == "c"


def header(name, size_field, kind=b"0"):
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157] = size_field, kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def test_lying_sizes_and_endless_headers_end(tmp_path, scratch):
    huge, negative = b"\x80" + struct.pack(">xxxQ", 2**62), b"\xff" * 12
    good = header("good.jpg", b"%011o\0" % 4) + b"good".ljust(512, b"\0")
    chain = header("././@LongLink", b"%011o\0" % 5, b"L") + b"l.jpg".ljust(512, b"\0")
    for hostile, found in (
        (header("a.jpg", negative), {"p/good": b"good"}),
        (chain * 5000, {"p/l": b"good"}),
        (header("x", huge, b"x"), {}),
    ):
        (tmp_path / "p.tar").write_bytes(hostile + good + b"\0" * 1024)
        _, problems, content = read(tmp_path / "p.tar", scratch)
        assert content == found
        assert problems or "p/l" in found
    (tmp_path / "p.tar").write_bytes(good + header("a.jpg", huge))
    assert read(tmp_path / "p.tar", scratch)[2] == {
        "p/good": b"good",
        "p/a": "tar ends inside this member",
    }


def test_sparse_members_are_rows_without_bytes(tmp_path, scratch):
    sparse = header("s.jpg", b"%011o\0" % 512, b"S") + b"x" * 512
    good = header("good.jpg", b"%011o\0" % 4) + b"good".ljust(512, b"\0")
    (tmp_path / "p.tar").write_bytes(sparse + good + b"\0" * 1024)
    content = read(tmp_path / "p.tar", scratch)[2]
    assert content == {"p/good": b"good", "p/s": "sparse tar members are not read"}


def test_members_over_the_limit_are_rows_and_are_not_read(tmp_path, scratch, monkeypatch):
    monkeypatch.setattr(parts_module, "LARGEST_MEMBER", 1 << 20)
    write_tar(tmp_path / "p.tar", [("a.jpg", b"1" * (1 << 20)), ("b.jpg", b"1" * (1 << 20) + b"1")])
    rows, _, _ = read(tmp_path / "p.tar", scratch)
    assert [row.problem for row in rows] == ["", "larger than 1 MiB: 1048577 bytes"]


@pytest.mark.parametrize("name", ["p.tar.gz", "p.tgz", "p.tar"])
def test_compressed_tars_read_the_same_but_have_no_offsets(tmp_path, scratch, name):
    write_tar(tmp_path / name, [("a.jpg", b"1"), ("b.jpg", b"2" * 100_000)], "w:gz")
    rows, problems, content = read(tmp_path / name, scratch)
    assert problems == []
    assert content == {"p/a": b"1", "p/b": b"2" * 100_000}
    assert [row.offset for row in rows] == [None, None]


def test_a_compressed_tar_cut_short_gives_what_is_whole(tmp_path, scratch):
    noise = [os.urandom(200_000) for _ in range(4)]
    members = [(f"{n}.jpg", data) for n, data in enumerate(noise)]
    data = write_tar(tmp_path / "whole.tgz", members, "w:gz").read_bytes()
    (tmp_path / "p.tar.gz").write_bytes(data[: len(data) * 5 // 8])
    _, problems, content = read(tmp_path / "p.tar.gz", scratch)
    assert content == {"p/0": noise[0], "p/1": noise[1], "p/2": "tar ends inside this member"}
    assert problems[0].startswith("gzip data ends early")


def test_a_gzip_bomb_stops_at_its_limit(tmp_path, scratch, monkeypatch):
    monkeypatch.setattr(parts_module, "_FREE_GROWTH", 1 << 20)
    inner = write_tar(tmp_path / "inner", [("a.jpg", b"1"), ("b.jpg", b"\0" * (64 << 20))])
    (tmp_path / "p.tar.gz").write_bytes(gzip.compress(inner.read_bytes()))
    _, problems, content = read(tmp_path / "p.tar.gz", scratch)
    assert content == {"p/a": b"1", "p/b": "tar ends inside this member"}
    assert "grows over 100 times" in problems[0]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "d/a", "a.x", ".a"]),
            st.sampled_from([".jpg", ".png", ".json", ".txt", ".heic", "", ".pkl"]),
        ),
        max_size=12,
    )
)
def test_image_members_in_are_rows_out(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("rows")
    scratch = folder / "scratch"
    scratch.mkdir()
    members = [(trunk + end, png(n)) for n, (trunk, end) in enumerate(names)]
    rows, problems, content = read(write_tar(folder / "p.tar", members), scratch)
    images = [(name, data) for name, data in members if not name.endswith((".json", ".txt"))]
    assert problems == []
    assert len(rows) == len(set(content)) == len(images)
    assert sorted(row.member for row in rows) == sorted(name for name, _ in images)
    assert sorted(content.values()) == sorted(data for _, data in images)
