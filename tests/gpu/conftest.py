"""The device of these tests, which import nothing of stage one: a bare machine with torch has them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def device() -> torch.device:
    """The first card; the CPU where the tests themselves are tried out."""
    tried_out = os.environ.get("LVD_GPU_TESTS_ON") == "cpu"
    return torch.device("cpu") if tried_out else torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _exact_convolutions() -> Iterator[None]:
    """cuDNN takes 10 bits of a float32 unless it is told otherwise; matrix products take all."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
