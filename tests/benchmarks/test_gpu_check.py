"""benchmarks/gpu.sh: a report that survives its sections, and figures that count what they say."""

import json
import os
import subprocess
import sys
from pathlib import Path
from time import monotonic

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu import card_tests, kernels, workload
from benchmarks.gpu.preflight import NEEDED, preflight
from benchmarks.gpu.report import Report, table
from benchmarks.gpu.runner import run_sections
from benchmarks.gpu.section import Context, NothingToMeasureError, Section
from benchmarks.gpu.sections import SECTIONS, chosen
from benchmarks.gpu.timing import median_lap
from train.step import PARTS

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """The status, the printed lines and the folder of a run in which nearly all goes wrong."""
    folder = tmp_path_factory.mktemp("gpu")
    modules = "gpu_sections"
    sections = [
        Section("first", f"{modules}:measures", (7.0,)),
        *(Section(name, f"{modules}:{name}") for name in ("raises", "emits_nan", "dies")),
        Section("hangs", f"{modules}:hangs", most=10.0),
        Section("has_nothing", f"{modules}:has_nothing"),
        Section("too_long", f"{modules}:measures", (1.0,), needs=10_000),
        Section("last", f"{modules}:measures", (8.0,)),
    ]
    report = Report(folder, {"device": "cpu"}, [section.name for section in sections])
    context = Context("cpu", True, folder)
    lines = []
    status = run_sections(
        sections,
        context,
        report,
        until=monotonic() + 300,
        log=folder / "log",
        say=lines.append,
        preload=(),
    )
    return status, lines, folder


def test_a_section_that_fails_dies_or_hangs_costs_itself_alone(outcome):
    status, lines, folder = outcome
    sections = json.loads((folder / "gpu.json").read_text())["sections"]
    assert status == 1
    assert {name: section["status"] for name, section in sections.items()} == {
        "first": "done", "raises": "failed", "emits_nan": "failed", "dies": "failed",
        "hangs": "stopped", "has_nothing": "skipped", "too_long": "skipped", "last": "done",
    }  # fmt: skip
    rows = {name: section["rows"] for name, section in sections.items()}
    assert rows["raises"] == [{"value": 1.0}]
    assert rows["dies"] == [{"value": 2.0}]
    assert rows["hangs"] == [{"value": 3.0}]
    assert rows["last"] == [{"value": 8.0, "of the first": 7.0}]
    assert sections["raises"]["reason"] == "ValueError: no such thing"
    assert "SIGKILL" in sections["dies"]["reason"]
    assert "minutes are left" in sections["too_long"]["reason"]
    assert len(lines) == len(sections)
    assert "second line" in (folder / "log").read_text()
    markdown = (folder / "gpu.md").read_text()
    assert all(f"## {name}\n" in markdown for name in sections)


def test_the_report_is_whole_after_every_row(tmp_path):
    report = Report(tmp_path, {"device": "cpu"}, ["one", "two"])
    for number in range(3):
        report.add("one", {"number": number})
        sections = json.loads((tmp_path / "gpu.json").read_text())["sections"]
        assert sections["one"]["rows"] == [{"number": n} for n in range(number + 1)]
        assert sections["two"]["status"] == "waiting"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.json", "gpu.md"]


def test_a_table_has_all_columns_of_its_rows():
    assert table([{"a": 1234.5, "b": None}, {"c": "x|y", "a": 0.25}])[2:] == [
        "| 1,234 |  |  |",
        "| 0.25 |  | x\\|y |",
    ]


def test_every_section_of_the_issue_is_there_and_can_be_imported():
    names = [section.name for section in SECTIONS]
    assert names[:3] == ["about", "tests", "rates"]
    for recipe in ("vitl14", "vits16", "vitl16-short"):
        assert {f"{recipe}-eager", f"{recipe}-compiled"} <= set(names)
    assert {"kernels", "resident", "embed-vits14", "embed-vitl14"} <= set(names)
    for section in SECTIONS:
        module, function = section.target.split(":")
        assert callable(getattr(__import__(module, fromlist=["_"]), function))
    assert [section.name for section in chosen(SECTIONS, ["rates", "about"])] == ["about", "rates"]


def test_a_bare_python_is_told_what_it_lacks_in_one_line(tmp_path):
    bare = [sys.executable, "-S", "-m", "benchmarks.gpu", "--out", str(tmp_path / "out")]
    done = subprocess.run(bare, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    pins = (ROOT / "constraints.txt").read_text().split()
    for name in NEEDED:
        assert f" {name}==" in line or name == "numpy"  # of numpy there are two, by the Python
    assert all(word in pins for word in line.split() if "==" in word)
    assert not (tmp_path / "out").exists()
    assert preflight(ROOT / "constraints.txt") is None


def test_a_cpu_without_quick_and_an_unknown_section_are_refused(tmp_path):
    for options in (["--device", "cpu"], ["--only", "stps"]):
        command = ["benchmarks/gpu.sh", "--out", str(tmp_path / "out"), *options]
        environment = {**os.environ, "PYTHON": sys.executable}
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1


def test_the_flops_are_those_of_the_matrix_products_of_a_real_step(tmp_path):
    context = Context("cpu", True, tmp_path)
    for name in ("vits16", "vitl16-short"):  # separate heads and Sinkhorn-Knopp; a shared one
        prepared = workload.prepare(context, name, compiled=False)
        counted = workload.flops_of_image(prepared.recipe, CPU) * prepared.recipe.batch_size
        with FlopCounterMode(display=False) as counter:
            prepared.step()
        group = prepared.recipe.group_size
        similarities = 2 * 2 * group * 2 * group * prepared.system.student.backbone.dim
        assert counter.get_total_flops() == counted + similarities  # KoLeo's, of 2 views, 2 groups


def test_a_batch_that_does_not_fit_is_halved(monkeypatch, tmp_path):
    tried = []

    def try_batch(recipe, device):
        tried.append((recipe.batch_size, recipe.group_size))
        return "fits" if recipe.batch_size <= 16 else None

    monkeypatch.setattr(workload, "_try", try_batch)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80 * 2**30, 80 * 2**30))
    context = Context("cuda", False, tmp_path)
    assert workload.prepare(context, "vitl14", compiled=False) == "fits"
    sizes = [size for size, _ in tried]
    assert sizes[0] >= 64
    assert sizes == [sizes[0] // 2**n for n in range(len(sizes))]
    assert tried[-2:] == [(32, 32), (16, 16)]


def test_kernels_are_listed_with_their_shares(tmp_path):
    rows = []
    kernels.measure(Context("cpu", True, tmp_path), rows.append, "vitl14", False)
    whole, *listed = rows
    listed, parts = listed[: -len(PARTS)], listed[-len(PARTS) :]
    assert {row["kernel"] for row in parts} == {f"part: {name}" for name in PARTS}
    assert {row["calls a step"] for row in parts} == {1}
    assert len(listed) == kernels.LONGEST
    assert [row["ms a step"] for row in listed] == sorted(
        (row["ms a step"] for row in listed), reverse=True
    )
    for row in listed:
        assert row["share"] == pytest.approx(row["ms a step"] / whole["ms a step"])


def test_a_median_lap_leaves_the_warm_up_out():
    calls = []
    median_lap(lambda: calls.append(None), CPU, warmup=4, seconds=0.0, least=3)
    assert len(calls) == 7


def test_card_tests_are_counted_and_a_failure_fails_the_section(monkeypatch, tmp_path):
    monkeypatch.setattr(card_tests, "ROOT", tmp_path)
    context = Context("cpu", True, tmp_path)
    with pytest.raises(NothingToMeasureError, match="no tests in"):
        card_tests.measure(context, print)
    folder = tmp_path / card_tests.FOLDER
    folder.mkdir(parents=True)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    marked = "import pytest\npytestmark = pytest.mark.gpu\n"
    (folder / "test_card.py").write_text(
        f"{marked}def test_good(): pass\ndef test_bad(): assert 1 == 2\n"
        "def test_left_out(): pytest.skip('no card')\n"
    )
    monkeypatch.chdir(tmp_path)
    rows = []
    with pytest.raises(RuntimeError, match="TESTS_FAILED"):
        card_tests.measure(context, rows.append)
    assert {row["test"].split("::")[-1]: row["outcome"] for row in rows} == {
        "test_good": "passed", "test_bad": "failed",
        "all": "1 passed, 1 failed, 1 skipped",
    }  # fmt: skip
