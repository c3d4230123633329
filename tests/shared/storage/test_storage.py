"""Files that are written whole or not at all, and fingerprints that address values."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.storage.files import digest_file, fingerprint, read_json, write_json, written_whole


def test_write_json_replaces_the_file_whole(tmp_path):
    path, scratch = tmp_path / "run.json", tmp_path / "scratch"
    scratch.mkdir()
    write_json(path, {"b": 1, "a": [None, "ü"]})
    first = path.read_bytes()
    write_json(path, {"a": [None, "ü"], "b": 1}, scratch)
    assert path.read_bytes() == first
    with pytest.raises(TypeError):
        write_json(path, {"a": object()}, scratch)
    assert path.read_bytes() == first
    assert read_json(path) == {"a": [None, "ü"], "b": 1}
    assert sorted(tmp_path.rglob("*")) == [path, scratch]


def test_digest_is_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert digest_file(tmp_path / "x").startswith("ba7816bf8f01cfea")


VALUES = st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=4)


@given(VALUES, VALUES)
def test_fingerprints_are_equal_where_values_are(a, b):
    assert (fingerprint(a) == fingerprint(b)) == (a == b)
    assert fingerprint(a) == fingerprint(dict(reversed(a.items())))


def test_threads_may_write_one_path_at_a_time(tmp_path):
    barrier = threading.Barrier(2, timeout=20)

    def write(text: str) -> None:
        with written_whole(tmp_path / "file") as beside:
            beside.write_text(text)
            barrier.wait()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(write, text) for text in ("one", "other")]:
            done.result(30)
    assert (tmp_path / "file").read_text() in ("one", "other")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
