"""The one real Ray session that all tests share."""

import logging
import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def ray_session():
    """A local Ray session of two processors, which engines in this process join.

    It pretends to have a GPU, so that setups which want one get their own process.
    """
    os.environ |= {
        # Where workers find the units that tests define.
        "PYTHONPATH": os.pathsep.join(
            str(Path(__file__).parent / name) for name in ("curate", "e2e")
        ),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_worker_niceness": "0",  # a busy machine would starve them
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": "1",
    }
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=1,
        include_dashboard=False,
        object_store_memory=128 * 2**20,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield ray
    ray.shutdown()
