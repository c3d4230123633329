"""The tests see an array of a wrong shape or type where a signature declares it."""

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from curate.neighbours.search import Searchable, cosine


def test_a_wrong_type_or_shape_is_seen() -> None:
    ones = np.ones((2, 3), np.float32)
    cosine(ones, ones)
    with pytest.raises(TypeCheckError):
        cosine(ones, ones.astype(np.float64))
    with pytest.raises(TypeCheckError):
        cosine(ones, ones[:1])


def test_the_fields_of_a_dataclass_belong_together() -> None:
    with pytest.raises(TypeCheckError):
        Searchable(np.ones((2, 3), np.float16), np.arange(3))
