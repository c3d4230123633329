"""One drawn crawl and one undisturbed run for all end-to-end tests."""

import shutil
from pathlib import Path

import pytest
from curated_site import Site
from drawn_crawl import make_data


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    """The drawn data, which tests must not change."""
    return make_data(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="module", autouse=True)
def _elsewhere(tmp_path_factory):
    """`runs/curate/latest` belongs to the working folder: not the repository's, here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("cwd"))
        yield


@pytest.fixture(scope="session")
def undisturbed_once(drawn, tmp_path_factory) -> Site:
    """The run that is copied."""
    root = tmp_path_factory.mktemp("undisturbed")
    site = Site(root, drawn, root / "work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("cwd"))
        site.run()
    return site


@pytest.fixture(scope="module")
def undisturbed(undisturbed_once, tmp_path_factory) -> Site:
    """A finished run in `out`, and the work folder that it left: copies of this module."""
    root = tmp_path_factory.mktemp("undisturbed") / "copy"
    shutil.copytree(undisturbed_once.root, root, copy_function=shutil.copy2)
    return Site(root, undisturbed_once.data, root / "work")


@pytest.fixture
def site(undisturbed_once, tmp_path) -> Site:
    """The drawn data with a work folder of its own, in which only the calibration is done.

    It is most of what a run of this crawl takes, and what `undisturbed_once` is there to try.
    """
    site = Site(tmp_path, undisturbed_once.data, tmp_path / "work")
    shutil.copytree(undisturbed_once.work / "calibrate", site.work / "calibrate")
    return site
