"""A flipped bit, a missing file and a foreign one are found and named, and can be made again."""

import json

import pytest
from made_collection import files_of
from result_content import content

from curate.execution.output import FILES
from curate.execution.verify import STAGES
from curate.report.timings import TIMED
from shared.storage.commits import MANIFEST


def flip(path):
    """Flip a bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def of_each_kind(files):
    """Return one of the files for each stage and name."""
    kinds = {(path.parts[-4], path.name): path for path in files}
    assert len(kinds) > 20
    return sorted(kinds.values())


def units(work):
    return [path for stage in STAGES for path in sorted((work / stage).glob("*/*"))]


def files(work):
    return [path for unit in units(work) for path in sorted(unit.iterdir())]


def test_of_a_sound_result_and_work_folder_nothing_is_said(small_run):
    for folder, count in (
        (small_run.out, len(content(small_run.out)) - 1),  # its list
        (small_run.work, len(files(small_run.work))),
    ):
        assert small_run("verify", folder) == (0, [f"{count:,} files looked at, 0 problems"])


def test_a_flipped_bit_of_each_kind_of_file_of_a_work_folder_is_found(small_run):
    damaged = [path for path in of_each_kind(files(small_run.work)) if path.name != MANIFEST]
    for path in damaged:
        flip(path)
    status, said = small_run("verify", small_run.work)
    assert status == 1
    assert {path.parts[-4] for path in damaged} >= {"facts", "scores", "vectors", "select"}
    expected = {f"{path}: its content has changed: say --discard" for path in damaged}
    assert set(said[:-1]) == expected
    assert said[-1].endswith(f" {len(damaged)} problems")


def test_a_flipped_bit_of_any_file_of_a_result_is_found(small_run):
    remedy = "run its command again with --replace"
    for name in files_of(small_run.out):
        path = small_run.out / name
        if name == FILES or name in TIMED:
            continue
        whole = path.read_bytes()
        flip(path)
        status, said = small_run("verify", small_run.out)
        assert (status, said[:-1]) == (1, [f"{path}: its content has changed: {remedy}"])
        path.write_bytes(whole)


def test_a_damaged_list_of_a_result_is_found(small_run):
    (small_run.out / FILES).write_text("{")
    status, said = small_run("verify", small_run.out)
    assert status == 1
    assert f"{small_run.out / FILES}: damaged" in said[0]


def test_missing_and_foreign_files_and_a_changed_size_are_found(small_run):
    [shard, *_] = sorted((small_run.out / "shards").glob("*.tar"))
    unit = units(small_run.work)[0]
    manifest = json.loads((unit / MANIFEST).read_text())
    name = min(manifest["files"])
    for folder, path in ((small_run.out, shard), (small_run.work, unit / name)):
        whole = path.read_bytes()
        for change, what in (
            (path.unlink, "missing"),
            (lambda path=path, whole=whole: path.write_bytes(whole[:-1]), "bytes, not"),
        ):
            change()
            status, said = small_run("verify", folder)
            assert status == 1
            [line] = said[:-1]
            assert line.startswith(f"{path}: ")
            assert what in line
        path.write_bytes(whole)
        (path.parent / "a stranger").touch()
        assert f"{path.parent / 'a stranger'}: foreign" in small_run("verify", folder)[1][0]
        (path.parent / "a stranger").unlink()
        assert small_run("verify", folder)[0] == 0
    unit.with_name("b stranger").mkdir()
    assert f"{unit.with_name('b stranger')}: foreign" in small_run("verify", small_run.work)[1][0]


@pytest.mark.parametrize("what", ["data", "manifest", "no manifest"])
def test_what_is_discarded_is_made_again_to_the_same_bytes(small_run, what):
    before, out = files_of(small_run.work), files_of(small_run.out)
    damaged = 0
    for unit in units(small_run.work):
        data = [path for path in sorted(unit.iterdir()) if path.name != MANIFEST]
        if what == "no manifest":
            (unit / MANIFEST).unlink()
        elif what == "manifest" or data:
            flip(unit / MANIFEST if what == "manifest" else data[-1])
        else:
            continue
        damaged += 1
    status, said = small_run("verify", small_run.work, "--discard")
    assert (status, len(said) - 1) == (1, damaged)
    assert all("removed, the next run makes it again" in line for line in said[:-1])
    assert small_run("verify", small_run.work)[0] == 0
    small_run.run()
    after = files_of(small_run.work)
    made = {name for name in before if name.partition("/")[0] in STAGES}
    assert {name: after[name] for name in made} == {name: before[name] for name in made}
    assert files_of(small_run.out) == out
    assert small_run("verify", small_run.work)[0] == 0


def test_the_units_of_every_stage_are_known(small_run):
    status, _ = small_run(
        *("run", f"--out={small_run.root / 'even'}", f"--holdout={small_run.data / 'seed'}"),
        "--set=balance.target=0.5",
    )
    assert status == 0
    made = {path.parts[-4] for path in small_run.work.glob(f"*/*/*/{MANIFEST}")}
    assert {"balance", "overlap"} <= made <= set(STAGES)


@pytest.mark.parametrize("pictures", ["true", "false"])
def test_pictures_that_are_drawn_again_are_known(small_run, pictures):
    out = small_run.root / "drawn"
    assert small_run("run", f"--out={out}", f"--set=report.pictures={pictures}")[0] == 0
    assert small_run("report", out, f"--work={small_run.work}")[0] == 0
    assert small_run("verify", out)[0] == 0


def test_a_page_stays_as_it_is_where_the_work_folder_is_not_that_of_the_run(small_run):
    out, none = small_run.root / "drawn-once", small_run.root / "none"
    assert small_run("run", f"--out={out}", "--set=report.pictures=true")[0] == 0
    page = out / "reports" / "index.html"
    before = page.read_bytes()
    status, said = small_run("report", out, f"--work={none}")
    assert status == 0
    assert f"{page} stays as it is" in said[0]
    assert "--work names the work folder of the run" in said[0]
    assert page.read_bytes() == before
    assert not none.exists()
    page.unlink()
    assert small_run("report", out, f"--work={none}")[0] == 0
    assert page.exists()
    assert page.read_bytes() != before


def test_a_damaged_manifest_is_one_line_in_a_run(small_run):
    path = next((small_run.work / "vectors").glob(f"*/*/{MANIFEST}"))
    flip(path)
    status, said = small_run("run", f"--out={small_run.root / 'other'}")
    assert status == 2
    assert f"{path} is damaged" in said[-1]
    assert "verify" in said[-1]
    assert small_run("verify", small_run.work, "--discard")[0] == 1
    small_run.run()


def test_what_is_neither_a_result_nor_a_work_folder_is_refused(small_run):
    status, said = small_run("verify", small_run.data)
    assert (status, len(said)) == (2, 1)
    status, said = small_run("verify", small_run.out, "--discard")
    assert (status, len(said)) == (2, 1)
    assert "--replace" in said[0]
