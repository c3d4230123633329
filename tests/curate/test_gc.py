"""Only what no given run is made of is removed from a work folder."""

import pytest
from made_collection import files_of

from curate.execution.session import open_runner
from curate.execution.verify import STAGES
from curate.stage import EngineSettings


def stages(work):
    return {name: data for name, data in files_of(work).items() if name.partition("/")[0] in STAGES}


@pytest.fixture
def two_runs(small_run):
    """A finished run, and beside it, in `other`, one with another seed on the same work folder."""
    first = stages(small_run.work)
    status, said = small_run("run", "--seed=other", f"--out={small_run.root / 'other'}")
    assert status == 0, said
    return small_run, first


def test_what_no_kept_run_needs_is_removed_and_nothing_else(two_runs):
    run, first = two_runs
    both = stages(run.work)
    assert len(both) > len(first)
    before = files_of(run.work)
    status, said = run("gc", run.out, "--dry-run")
    assert status == 0
    assert "would be removed" in said[-1]
    assert files_of(run.work) == before
    named = {line.split("  ")[0] for line in said[:-1]}
    unneeded = {name.rpartition("/")[0] for name in set(both) - set(first)}
    assert named == unneeded
    status, said = run("gc", run.out)
    assert status == 0
    assert "were removed" in said[-1]
    assert stages(run.work) == first
    assert run.run()[-1].endswith("nothing to do")
    assert run("verify", run.work)[0] == 0


def test_all_kept_runs_keep_what_they_need(two_runs):
    run, _ = two_runs
    before = stages(run.work)
    status, said = run("gc", run.out, run.root / "other")
    assert (status, said[-1].split(" units")[0]) == (0, "0")
    assert stages(run.work) == before


def test_what_was_removed_is_made_again(two_runs):
    run, _ = two_runs
    before, out = stages(run.work), files_of(run.root / "other")
    assert run("gc", run.out)[0] == 0
    status, said = run("run", "--seed=other", f"--out={run.root / 'other'}")
    assert (status, said[-1].endswith("nothing to do")) == (0, True)
    assert stages(run.work) == before
    assert files_of(run.root / "other") == out


def test_nothing_is_removed_while_a_run_is_at_work(two_runs):
    run, _ = two_runs
    before = stages(run.work)
    with open_runner(run.work, EngineSettings(), "inline"):
        status, said = run("gc", run.out)
    assert status == 2
    assert f"a run is at work on {run.work}" in said[-1]
    assert stages(run.work) == before


def test_what_is_no_finished_run_or_work_folder_is_refused(two_runs):
    run, _ = two_runs
    before = files_of(run.work)
    for word in (run.root / "nowhere", run.data):
        status, said = run("gc", word)
        assert (status, len(said)) == (2, 1)
        assert str(word) in said[0]
    assert files_of(run.work) == before
    assert run("gc", run.out, f"--work={run.data}")[0] == 2
