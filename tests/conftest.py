"""The one real Ray session that all tests share, and what becomes of tests that need a card."""

import atexit
import gc
import logging
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from browsers import NO_BROWSER
from machines import NO_NAMESPACES
from s3_server import serve

if find_spec("beartype") and find_spec("hypothesis"):  # a bare machine with a card has neither
    from array_types import check_arrays_only
    from hypothesis import HealthCheck, settings
    from remembered import remember_looks

    check_arrays_only()  # before anything imports the packages
    remember_looks()
    # No example has a time to keep: a busy machine would fail what is right.
    settings.register_profile("any", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any")

LONGEST = (
    *("e2e/test_nodes_of_a_store.py", "e2e/test_demo.py", "e2e/test_object_storage.py"),
    *("e2e/test_runs_on_ray.py", "e2e/test_docs.py", "e2e/test_lost_nodes.py"),
)
"""The files that take longest, the longest first: 230 to 66 seconds of four testers on two processors."""
NO_CARD = "no CUDA device"
GPU_TESTS_ON = "LVD_GPU_TESTS_ON"
"""Environment variable: `cpu` runs the tests of a card on the CPU, to try out their own code."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Search nothing for garbage while tests and packages are imported, nor later what they hold."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        # Or libraries complain of what they find alive; not before pytest has searched all of it twice.
        atexit.register(gc.unfreeze)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest files first: no process is left alone with one at the end."""
    places = [Path(__file__).parent / name for name in (*LONGEST, "e2e", "train")]
    items.sort(key=lambda item: [not item.path.is_relative_to(place) for place in places])


@pytest.fixture(scope="session", autouse=True)
def _unflushed():
    """Nobody waits for the disk: what a killed process has written is there without it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    # As many threads as a fresh process has, for fixtures too: sums depend on it, embedders set it.
    if (torch := sys.modules.get("torch")) is not None and "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if item.get_closest_marker("gpu") and os.environ.get(GPU_TESTS_ON) != "cpu":
        import torch

        if not torch.cuda.is_available():
            pytest.skip(NO_CARD)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = terminalreporter.stats.get("skipped", [])
    missing = (("gpu", NO_CARD), ("browser", NO_BROWSER), ("cluster", NO_NAMESPACES))
    for kind, why in missing:
        if count := sum(why in str(report.longrepr) for report in reports):
            terminalreporter.write_line(f"{count} {kind} tests skipped: {why}")


@pytest.fixture(scope="module")
def server():
    """A server that speaks S3, with faults to order."""
    with serve() as made:
        yield made


@pytest.fixture
def s3(server):
    """That server, empty."""
    server.clear()
    return server


@pytest.fixture(scope="session")
def ray_environment():
    """Quiet Ray nodes whose workers find the units that tests define."""
    os.environ |= {
        "PYTHONPATH": os.pathsep.join(
            str(Path(__file__).parent / name) for name in ("curate", "e2e")
        ),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_prestart_worker_first_driver": "0",  # engines ask for workers of their own
        "RAY_worker_niceness": "0",  # a busy machine would starve them
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="session")
def ray_session(ray_environment):
    """A local Ray session of two processors, which engines in this process join.

    It pretends to have a GPU, so that setups which want one get their own process.
    """
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
