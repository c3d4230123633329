"""The tests with the mark `gpu`, which the suite leaves out where there is no card."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

from benchmarks.gpu.preflight import FOR_TESTS, lacking
from benchmarks.gpu.section import ROOT, Context, NothingToMeasureError, Row

FOLDER = "tests/gpu"


class _Counter:
    """A plugin of pytest that counts outcomes, and emits a row for each test that fails."""

    def __init__(self, emit: Callable[[Row], None]) -> None:
        self.outcomes: Counter[str] = Counter()
        self._emit = emit

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.outcome] += 1
        if report.failed:
            reason = report.longreprtext.strip().splitlines()[-1:]
            self._emit({"test": report.nodeid, "outcome": "failed", "reason": "".join(reason)})
        elif report.when == "call" and report.passed:
            self._emit({"test": report.nodeid, "outcome": "passed"})

    def pytest_collectreport(self, report) -> None:
        if report.failed:
            self.outcomes["failed"] += 1
            reason = report.longreprtext.strip().splitlines()[-1:]
            self._emit({"test": report.nodeid, "outcome": "failed", "reason": "".join(reason)})


def measure(context: Context, emit: Callable[[Row], None]) -> None:
    """Run them; RuntimeError, which makes the section a failed one, where any of them fails."""
    if missing := lacking(FOR_TESTS):
        raise NothingToMeasureError(f"this Python has no {', '.join(missing)}")
    if not any((ROOT / FOLDER).glob("test_*.py")):
        raise NothingToMeasureError(f"there are no tests in {FOLDER}")
    import pytest

    os.chdir(ROOT)
    counter = _Counter(emit)
    # Without the project's own options: array shapes are checked where beartype is, and elsewhere.
    plain = ["-o", "addopts=-q --strict-markers"]
    arguments = [*plain, "-m", "gpu", "-p", "no:cacheprovider", FOLDER]
    status = pytest.main(arguments, plugins=[counter])
    emit({"test": "all", "outcome": ", ".join(f"{n} {o}" for o, n in counter.outcomes.items())})
    if status == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise NothingToMeasureError(f"no test in {FOLDER} has the mark gpu")
    if status != pytest.ExitCode.OK:
        raise RuntimeError(f"pytest ended with {pytest.ExitCode(status).name}: see the rows")
