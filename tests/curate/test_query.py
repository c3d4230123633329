"""SQL over the reports: right answers, every format, and nothing within reach but the tables."""

import csv
import io
from importlib import import_module

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from finished_run import HOSTILE, finished_run

from curate.cli import main
from curate.report.named_queries import QUERIES
from curate.report.query import asked
from shared.errors import LvdError


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("run") / "out", folder=True)


@pytest.fixture(scope="module")
def images(out):
    return pq.read_table(out / "reports" / "images.parquet").to_pylist()


@pytest.fixture
def ask(out):
    def ask(*words, status=0):
        result = CliRunner().invoke(main, ["query", str(out), *map(str, words)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == status, result.output
        return result.stdout if status == 0 else result.output

    return ask


def test_answers_are_those_of_the_tables(ask, images):
    said = ask("select key, bytes from images where decision = 'kept' order by key", "--format=csv")
    rows = list(csv.DictReader(io.StringIO(said)))
    assert [(row["key"], int(row["bytes"])) for row in rows] == [
        (row["key"], row["bytes"]) for row in images if row["decision"] == "kept"
    ]
    joined = "select count(*) as n from copies join images using (key) join retrieval using (key)"
    assert int(ask(joined).split()[-1]) == int(
        ask(joined.replace("copies", "duplicates")).split()[-1]
    )


def test_kept_by_source_counts_hosts(ask, images):
    rows = csv.DictReader(io.StringIO(ask("--named=kept-by-source", "--format=csv")))
    found = {row["source"]: (int(row["images"]), int(row["kept"])) for row in rows}
    hosts = [(row["url"].split("/")[2] if row["url"] else row["part"], row) for row in images]
    assert found == {
        host: (
            sum(one == host for one, _ in hosts),
            sum(one == host and row["decision"] == "kept" for one, row in hosts),
        )
        for host in {host for host, _ in hosts}
    }


@pytest.mark.parametrize("name", QUERIES)
def test_every_named_question_has_an_answer(ask, name):
    assert len(ask(f"--named={name}").splitlines()) > 1
    assert QUERIES[name].sql in ask("--list")
    assert CliRunner().invoke(main, ["query", "--list"]).output == ask("--list")


def test_parquet_holds_what_the_table_cuts(ask, tmp_path, monkeypatch, images):
    file = tmp_path / "answer.parquet"
    ask("select key, similarity from retrieval", "--format=parquet", f"--to={file}")
    assert pq.read_schema(file).names == ["key", "similarity"]
    monkeypatch.setattr(import_module("curate.cli.query"), "SHOWN", 5)
    assert len(ask("select key from images").splitlines()) == 7
    assert "and more" in ask("select key from images")
    assert "and more" not in ask("select key from images limit 5")


def test_what_the_crawl_says_cannot_steer_the_terminal(ask):
    said = ask("select key from images where key like '%script%'")
    assert "\x1b" not in said
    assert "\\x1b[2J" in said
    assert HOSTILE in ask("select key from images where key like '%script%'", "--format=csv")


OUTSIDE = [
    "from '{file}'",
    "from read_parquet('{file}')",
    "from parquet_metadata('{file}')",
    "from read_text('{file}')",
    "from glob('{folder}/*')",
    "from read_csv('https://example.org/x.csv')",
    "from 's3://bucket/x.parquet'",
    "copy images to '{folder}/copied.csv'",
    "attach '{folder}/x.db'",
    "install httpfs",
    "load httpfs",
    "set enable_external_access = true",
    "create table x as from images",
    "drop view copies",
    "select 1; select 2",
    "from secret",
    "",
]


@pytest.mark.parametrize("sql", OUTSIDE)
def test_nothing_but_the_tables_is_within_reach(ask, tmp_path, sql, images):
    secret = images  # a table in Python's reach that DuckDB would scan by its name
    assert secret
    file = tmp_path / "other.parquet"
    pq.write_table(pq.read_table(io.BytesIO(parquet(images))), file)
    before = sorted(tmp_path.iterdir())
    said = ask(sql.format(file=file, folder=tmp_path), status=2)
    assert said.startswith("lvd-curate: query: ")
    assert said.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def parquet(rows):
    import pyarrow as pa

    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{"key": row["key"]} for row in rows]), stream)
    return stream.getvalue()


WRONG = {
    "nothing": ((), "say SQL, or --named NAME"),
    "both": (("select 1", "--named=sizes"), "say SQL, or --named NAME"),
    "a wrong name": (("--named=kept-by-sorce",), "did you mean 'kept-by-source'?"),
    "a wrong column": (("select nothing from images",), "(tables: balance, copies, duplicates"),
    "a wrong value": (("select key::int from images",), "Conversion Error"),
    "no file": (("select 1", "--format=parquet"), "say --to FILE"),
    "a folder": (("select 1", "--to=/tmp"), "--to /tmp is a folder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_one_line_and_leaves_no_file(ask, case):
    words, told = WRONG[case]
    said = ask(*words, status=2)
    assert told in said
    assert said.count("\n") == 1


def test_an_answer_that_fails_midway_leaves_no_file(ask, tmp_path):
    ask("select key::int from images", "--format=csv", f"--to={tmp_path / 'a.csv'}", status=2)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(LvdError, match="holds no finished run"), asked(tmp_path, "select 1"):
        pass
