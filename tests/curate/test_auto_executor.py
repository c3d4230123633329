"""What runs in this process and what on Ray, where the user leaves that to the program."""

import os

import pytest

from curate.execution import auto
from curate.execution.auto import AutoExecutor
from curate.execution.executor import Call
from curate.execution.inline import InlineExecutor
from curate.stage import Unit, Workers


class Elsewhere(InlineExecutor):
    """Stands for Ray: it notes the units that it is given."""

    def __init__(self):
        super().__init__()
        self.given = []
        self.is_started = False
        self.is_left = False

    def __exit__(self, *_):
        self.is_left = True

    def run(self, calls, workers, *, gpus, waiting):
        self.is_started = True
        self.given += [call.unit.name for call in calls]
        yield from super().run(calls, workers, gpus=gpus, waiting=waiting)


@pytest.fixture
def elsewhere(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return Elsewhere()


def tell(*args, scratch):
    return {"told": str(args[-1])}


def fail(text, scratch):
    raise ValueError(text)


def calls(tmp_path, *names, function=tell):
    return [Call(Unit(name, (name,)), function, tmp_path) for name in names]


def run(executor, made, workers=None, gpus=0):
    return [
        (call.unit.name, outcome["told"])
        for call, outcome in executor.run(made, workers, gpus=gpus, waiting=lambda missing: None)
    ]


ALL = [(name, name) for name in "abcd"]


def test_what_ends_within_the_first_seconds_starts_no_ray(elsewhere, tmp_path):
    with AutoExecutor(elsewhere) as executor:
        assert run(executor, calls(tmp_path, *"abcd")) == ALL
        assert run(executor, calls(tmp_path, *"abcd")) == ALL
    assert not elsewhere.is_started
    assert elsewhere.is_left


@pytest.mark.parametrize("most", range(5))
def test_what_is_left_after_them_goes_to_ray(elsewhere, tmp_path, monkeypatch, most):
    # A clock on which each unit takes a second.
    ticks = iter(range(100))
    monkeypatch.setattr(auto.time, "monotonic", lambda: next(ticks))
    monkeypatch.setattr(auto, "SECONDS", most)
    executor = AutoExecutor(elsewhere)
    assert run(executor, calls(tmp_path, *"abcd")) == ALL
    assert elsewhere.given == list("abcd")[most:]
    elsewhere.given.clear()
    assert run(executor, calls(tmp_path, *"abcd")) == ALL
    assert elsewhere.given == list("abcd")


def test_workers_that_decode_a_crawl_never_live_in_this_process(elsewhere, tmp_path):
    executor = AutoExecutor(elsewhere)
    assert run(executor, calls(tmp_path, *"abcd"), Workers(os.getpid)) == ALL
    assert elsewhere.given == list("abcd")


def test_gpus_and_the_cluster_that_is_named_are_used(elsewhere, tmp_path, monkeypatch):
    run(AutoExecutor(elsewhere), calls(tmp_path, "a"), gpus=1)
    assert elsewhere.given == ["a"]
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    named = Elsewhere()
    run(AutoExecutor(named), calls(tmp_path, "a"))
    assert named.given == ["a"]


def test_a_unit_that_fails_is_told_as_everywhere(elsewhere, tmp_path):
    executor = AutoExecutor(elsewhere)
    made = calls(tmp_path, "a", function=fail)
    ((_, outcome),) = executor.run(made, None, gpus=0, waiting=lambda missing: None)
    assert isinstance(outcome, ValueError)
    assert str(outcome) == "a"
