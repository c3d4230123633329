"""Data, work and results on S3, that fails at times: a real client, a real server, the same bytes."""

import pytest
from curated_site import content, leftovers, result
from s3_server import Fault, S3Server, serve

DATASETS = ("crawl", "animals", "exam")


@pytest.fixture(scope="module")
def server():
    with serve() as made:
        yield made


@pytest.fixture
def s3(server):
    server.clear()
    return server


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("shared.failures._pause", lambda seconds: None)


def stored_data(s3: S3Server, site) -> list[str]:
    """Put the data of a site on the server, and return the words that name it there."""
    urls = {name: s3.put(site.data / name, f"data/{name}") for name in DATASETS}
    return [f"--set=datasets.{name}.path={url}" for name, url in urls.items()]


def test_data_behind_s3_gives_the_bytes_of_local_data(s3, site, undisturbed):
    site.run(*stored_data(s3, site))
    places = (site.data, "s3://bucket/data")
    assert result(site.root / "out", *places) == result(undisturbed.root / "out", *places)


def test_a_run_goes_on_through_throttling_errors_resets_and_short_answers(s3, site, undisturbed):
    words = stored_data(s3, site)
    ways = ("SlowDown", "InternalError", "reset", "cut")
    s3.faults += [Fault(way, "GET", every=n) for way, n in zip(ways, (7, 11, 13, 17), strict=True)]
    site.run(*words)
    assert all(fault.failed for fault in s3.faults)
    places = (site.data, "s3://bucket/data")
    assert result(site.root / "out", *places) == result(undisturbed.root / "out", *places)
    assert leftovers(site) == []
