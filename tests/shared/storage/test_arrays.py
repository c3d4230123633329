"""Mapped arrays and rows of arrays are those that numpy reads."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.storage.arrays import map_array, read_array_rows


@given(
    kind=st.sampled_from(["<i8", "<f2", "|i1", "|b1", "<f4"]),
    shape=st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple),
    rows=st.tuples(st.integers(0, 5), st.integers(0, 5)).map(sorted),
)
def test_a_file_is_read_as_numpy_reads_it(tmp_path_factory, kind, shape, rows):
    path = tmp_path_factory.mktemp("array") / "array.npy"
    values = np.arange(np.prod(shape)).reshape(shape).astype(kind)
    np.save(path, values)
    mapped = map_array(path)
    assert mapped.dtype == values.dtype
    np.testing.assert_array_equal(mapped, values)
    assert not mapped.flags.writeable
    first, last = (min(row, len(values)) for row in rows)
    np.testing.assert_array_equal(read_array_rows(path, first, last), values[first:last])


def test_another_file_is_named(tmp_path):
    (tmp_path / "short.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "text.npy").write_bytes(b"no array at all")
    np.save(tmp_path / "columns.npy", np.ones((2, 3), order="F"))
    for name, said in (("short", "is no .npy"), ("text", "is no .npy"), ("columns", "C order")):
        with pytest.raises(ValueError, match=f"{name}.npy .*{said}"):
            map_array(tmp_path / f"{name}.npy")
