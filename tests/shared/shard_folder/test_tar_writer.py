"""A tar is byte for byte what Python's tarfile writes."""

import io
import tarfile

import pytest

from shared.shard_folder.tar_writer import TarWriter, header

NAMES = ["000010000.jpg", "000010000.json", "a", "x" * 100, "p" * 90 + "/" + "x" * 90, "käse.txt"]
SIZES = [0, 1, 511, 512, 513, 55_000, 8**11 - 1]


def by_tarfile(files):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_a_header_is_that_of_tarfile(name):
    for size in SIZES:
        entry = tarfile.TarInfo(name)
        entry.size = size
        assert header(name, size) == entry.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(("name", "size"), [("x" * 101, 1), ("x", 8**11)])
def test_what_the_format_has_no_room_for_is_an_error(name, size):
    with pytest.raises(ValueError, match=r"name is too long|overflow in number field"):
        header(name, size)


@pytest.mark.parametrize("last", [0, 511, 512, 10_000])
def test_a_tar_is_that_of_tarfile_whatever_is_in_it(last):
    files = [(name, b"x" * size) for name, size in zip(NAMES, SIZES[:6], strict=True)]
    files = [*files, ("last", b"z" * last)]
    stream = io.BytesIO()
    tar = TarWriter(stream)
    places = [tar.add(name, data) for name, data in files]
    tar.close()
    assert stream.getvalue() == by_tarfile(files)
    assert tar.nbytes == len(stream.getvalue())
    for place, (_, data) in zip(places, files, strict=True):
        assert stream.getvalue()[place : place + len(data)] == data


def test_a_tar_of_nothing_is_that_of_tarfile():
    stream = io.BytesIO()
    TarWriter(stream).close()
    assert stream.getvalue() == by_tarfile([])
