"""The tests see an array of a wrong shape or type where a signature declares it."""

import numpy as np
import pytest
from array_types import EACH
from beartype.roar import BeartypeCallHintViolation

from curate.calibration.histograms import compare
from curate.dedup.members import load_members
from curate.neighbours.search import Searchable, cosine
from shared.storage.files import fingerprint


def test_a_wrong_type_or_shape_is_seen() -> None:
    ones = np.ones((2, 3), np.float32)

    def compare_often(other: np.ndarray) -> None:
        for _ in range(EACH):  # after many calls only some are checked
            cosine(ones, other)

    compare_often(ones)
    for wrong in (ones.astype(np.float64), ones[:1]):
        with pytest.raises(BeartypeCallHintViolation):
            compare_often(wrong)


def test_the_fields_of_a_dataclass_belong_together() -> None:
    def make_often() -> None:
        for _ in range(EACH):
            Searchable(np.ones((2, 3), np.float16), np.arange(3))

    with pytest.raises(BeartypeCallHintViolation):
        make_often()


def test_no_other_function_pays_for_it() -> None:
    wrapped = [hasattr(function, "__wrapped__") for function in (cosine, fingerprint)]
    assert wrapped == [True, False]


def test_arrays_are_seen_in_unions_tuples_and_names_for_them() -> None:
    assert all(hasattr(function, "__wrapped__") for function in (load_members, compare))
