"""Runs with lists: what they name is `unsafe`, and another list embeds nothing again."""

import json
from collections import Counter

import pyarrow.parquet as pq
from made_collection import files_of

EMBEDDED = ("facts", "scores", "vectors")


def images(out):
    table = pq.read_table(out / "reports/images.parquet").to_pylist()
    return {row["key"]: row for row in table}


def embedded(work):
    return {
        path.relative_to(work): (path.stat().st_ino, path.stat().st_mtime_ns)
        for stage in EMBEDDED
        for path in (work / stage).glob("*/*/unit.json")
    }


def test_listed_images_are_unsafe_with_the_lists_name_and_nothing_is_embedded_again(small_run):
    run = small_run
    rows = images(run.out)
    before = embedded(run.work)
    known = next(key for key, row in rows.items() if row["decision"] == "kept")
    bad, keys = run.root / "bad.txt", run.root / "keys.txt"
    bad.write_text(rows[known]["sha256"] + "\n")
    keys.write_text("00000/003\n")
    lists = f"{{bad: {{kind: sha256, path: {bad}}}, optout: {{kind: key, path: {keys}}}}}"
    crawl = f"--crawl={run.data / 'crawl/00000.tar'}"
    words = crawl, f"--set=lists={lists}", "--set=report.pictures=false"
    first, second = run.root / "listed", run.root / "longer"
    status, said = run("run", *words, f"--out={first}", "--dry-run")
    assert status == 0
    assert "list       bad: 1 of kind sha256" in said
    assert run("run", *words, f"--out={first}")[0] == 0
    listed = images(first)
    unsafe = {key: row["reason"] for key, row in listed.items() if row["decision"] == "unsafe"}
    assert unsafe == {
        known: "sha256 is on the list bad",
        "00000/003": "key is on the list optout",
    }
    for key in unsafe:
        assert {listed[key][name] for name in ("cluster", "group", "output_key")} == {None}
    counts = json.loads((first / "reports/funnel.json").read_text())["decisions"]
    assert {k: n for k, n in counts.items() if n} == Counter(
        row["decision"] for row in listed.values()
    )
    keys.write_text("00000/003\n00000/004\n")
    assert run("run", *words, f"--out={second}")[0] == 0
    assert images(second)["00000/004"]["reason"] == "key is on the list optout"
    assert embedded(run.work) == before
    assert run("verify", run.work)[0] == 0
    assert run("gc", second)[0] == 0
    assert len(list((run.work / "lists").glob("*/*"))) == 2
    assert run("run", *words, f"--out={second}")[1][-1].endswith("nothing to do")


def test_a_wrong_list_fails_in_one_line_before_anything_is_embedded(small_run):
    run = small_run
    (run.root / "bad.txt").write_text("# known\nnot-a-hash\n")
    before = files_of(run.work)
    for path, said in (
        (
            run.root / "bad.txt",
            "line 2: 'not-a-hash': a hash (sha256 or pdq) is 64 hexadecimal digits",
        ),
        (run.root / "nowhere.txt", "is not there"),
        ("${LVD_NO_SUCH_VARIABLE}", "needs the environment variable LVD_NO_SUCH_VARIABLE"),
    ):
        words = f"--set=lists={{bad: {{kind: sha256, path: '{path}'}}}}"
        status, lines = run("run", words, "--crawl=other", f"--out={run.root / 'new'}")
        assert (status, len(lines)) == (2, 1)
        assert "lists.bad" in lines[0]
        assert said in lines[0]
    assert files_of(run.work) == before
