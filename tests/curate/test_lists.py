"""Lists of images that must not be kept: how they are read, and which images they name."""

import hashlib
import random
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_collection import Made, made_collection
from pydantic import ValidationError

from curate.catalogue.part_files import COLUMNS
from curate.filters.decisions import CODE, OPEN
from curate.filters.judge import judge
from curate.filters.lists import ListSettings, compile_lists
from shared.errors import LvdError


@pytest.fixture
def compiled(tmp_path):
    """Return a function that compiles one list of a kind, of text or of a file."""

    def compile_one(kind, content="", name="optout", **more):
        path = more.pop("path", tmp_path / f"{name}.txt")
        if content:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        settings = ListSettings(kind=kind, path=str(path), **more)
        [made] = compile_lists({name: settings}, tmp_path / "work", tmp_path / "scratch")
        return made

    return compile_one


def facts(rows, **more):
    table = pa.Table.from_pylist(
        [dict.fromkeys(COLUMNS.names) | {"problem": ""} | more | row for row in rows], COLUMNS
    )
    return table.append_column("key", pa.array([row.get("key", "k") for row in rows]))


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_hashes_are_found_as_in_a_set(compiled):
    random.seed(0)
    known = [digest(str(number)) for number in range(3_000)]
    asked = random.sample([digest(str(number)) for number in range(6_000)], 2_000)
    lines = [text.upper() if at % 3 else text for at, text in enumerate(known + known[:9])]
    made = compiled("sha256", "\n".join(lines))
    assert made.entries == 3_000
    found = made.find(facts([{"sha256": sha256} for sha256 in asked]))
    assert found == [sha256 if sha256 in set(known) else None for sha256 in asked]


def test_hashes_that_begin_alike_are_told_apart(compiled):
    ends = ["00" * 24, "00" * 23 + "01", "ff" * 24, "80" + "00" * 23]
    made = compiled("sha256", "\n".join("ab" * 8 + end for end in ends))
    asked = ["ab" * 8 + end for end in [*ends, "00" * 22 + "0100", "7f" * 24]] + ["ac" * 32]
    found = made.find(facts([{"sha256": sha256} for sha256 in asked]))
    assert [entry is not None for entry in found] == [True] * 4 + [False] * 3


CASES = [
    ("sha256", digest("a"), {"sha256": digest("a")}, "sha256 is on the list optout"),
    ("sha256", digest("a"), {"sha256": digest("b")}, ""),
    ("sha256", digest("a"), {"sha256": None}, ""),
    ("key", "a/b c#2", {"key": "a/b c#2"}, "key is on the list optout"),
    ("key", "a/b", {"key": "a/b c"}, ""),
    ("url", "HTTP://A.org:80/x#y", {"url": "http://a.ORG/x"}, "url is on the list optout"),
    ("url", "http://a.org/x", {"url": "http://a.org/X"}, ""),
    ("url", "http://a.org/x", {"url": "http://[a"}, ""),
    ("domain", "A.org.", {"url": "https://b.A.org:8/x"}, "domain a.org is on the list optout"),
    ("domain", "a.org", {"url": "https://a.org"}, "domain a.org is on the list optout"),
    ("domain", "b.a.org", {"url": "https://a.org"}, ""),
    ("domain", "a.org", {"url": "https://aa.org"}, ""),
    ("domain", "a.org", {"url": "https://a.org.uk/a.org"}, ""),
    ("domain", "a.org", {"url": None}, ""),
    ("domain", "bücher.de", {"url": "https://www.BÜCHER.de/"}, "domain xn--bcher-kva.de"),
]


@pytest.mark.parametrize(("kind", "entry", "row", "reason"), CASES)
def test_what_a_list_names_is_unsafe(compiled, kind, entry, row, reason):
    made = compiled(kind, f"# asked in May\n\n  {entry}\n")
    [code], [said] = judge(facts([row]), None, np.array([True]), None, lists=[made])
    assert code == (CODE["unsafe"] if reason else OPEN)
    assert said.startswith(reason)
    assert bool(said) == bool(reason)


def test_what_is_broken_stays_corrupt_and_two_lists_give_the_first_reason(compiled):
    lists = [compiled("key", "k", name="one"), compiled("key", "k", name="two")]
    codes, reasons = judge(
        facts([{"problem": "cut off"}, {}]), None, np.array([False, True]), None, lists=lists
    )
    assert codes.tolist() == [CODE["corrupt"], CODE["unsafe"]]
    assert reasons == ["cut off", "key is on the list one"]


def test_text_and_tables_give_the_same_list(compiled, tmp_path):
    entries = ["a/1", "b, with comma", 'c "quoted"', "ä"]
    text = compiled("key", b"\xef\xbb\xbf" + "\r\n".join(["# keys", *entries, ""]).encode())
    csv = tmp_path / "list.csv"
    csv.write_text('n,key\n1,a/1\n2,"b, with comma"\n3,"c ""quoted"""\n4,\n5,ä\n')
    one = tmp_path / "one.csv"
    one.write_text('image\na/1\n"b, with comma"\n"c ""quoted"""\nä\n')
    table = tmp_path / "list.parquet"
    pq.write_table(pa.table({"n": [1, 2, 3, 4, 5], "id": [*entries, None]}), table)
    asked = facts([{"key": key} for key in [*entries, "A/1", "n", "# keys"]])
    expected = [*entries, None, None, None]
    assert text.find(asked) == expected
    for made in (
        compiled("key", path=csv),
        compiled("key", path=one),
        compiled("key", path=table, column="id"),
        compiled("key", path=f"file://{table}", column="id"),
    ):
        assert made.find(asked) == expected
        assert made.entries == 4


def test_an_empty_list_names_nothing(compiled):
    made = compiled("domain", "# nobody yet\n")
    assert made.entries == 0
    assert made.find(facts([{"url": "https://a.org"}])) == [None]


def test_the_content_of_a_list_tells_it_from_others_and_its_name_does_not(compiled):
    one, same, other = (compiled("key", text) for text in ("a\nb", "a\nb", "a\nc"))
    assert one.content == same.content != other.content
    assert compiled("url", "http://a.org").content != compiled("domain", "a.org").content


WRONG = [
    (
        "sha256",
        "# x\n" + "a" * 63,
        "line 2: '" + "a" * 63 + "': a hash (sha256 or pdq) is 64 hexadecimal digits",
    ),
    ("sha256", "g" * 64, "line 1: "),
    ("url", "http://a.org\n\na.org/x", "line 3: 'a.org/x': a URL is like"),
    ("domain", "a.org\nhttps://b.org", "line 2: 'https://b.org': a domain is like"),
    ("domain", "a.org # asked", "line 1: "),
    ("key", b"a\n\xff\xfe", "line 2: it is no UTF-8 text"),
]


@pytest.mark.parametrize(("kind", "content", "said"), WRONG)
def test_a_wrong_entry_is_one_line_with_list_path_and_line(compiled, tmp_path, kind, content, said):
    with pytest.raises(LvdError) as error:
        compiled(kind, content)
    line = str(error.value)
    assert line.startswith(f"lists.optout: {tmp_path / 'optout.txt'}, {said}")
    assert "\n" not in line


def test_what_is_wrong_with_tables_and_paths_is_said(compiled, tmp_path):
    table, csv = tmp_path / "list.parquet", tmp_path / "list.csv"
    pq.write_table(pa.table({"sha256": [digest("a"), "b"], "sha": [1, 2]}), table)
    csv.write_text(f"n,sha256\n1,{digest('a')}\n2,b\n")
    (tmp_path / "no.parquet").write_text("text")
    for path, more, said in (
        (table, {}, f"{table}, row 2: 'b': a hash"),
        (csv, {}, f"{csv}, line 3: 'b': a hash"),
        (table, {"column": "sha25"}, "no column 'sha25' (did you mean 'sha256'?)"),
        (table, {"column": "sha"}, "its column 'sha' holds int64, not text"),
        (tmp_path / "no.parquet", {}, "no Parquet"),
        (
            tmp_path / "nowhere.txt",
            {},
            "nowhere.txt is not there (No such file or directory): correct",
        ),
        (tmp_path, {}, "lists.optout"),
    ):
        with pytest.raises(LvdError) as error:
            compiled("sha256", path=path, **more)
        assert said in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(ValidationError, match="column is for a"):
        ListSettings(kind="key", path="list.txt", column="key")


def test_a_crawl_without_urls_refuses_lists_of_domains(compiled, tmp_path):
    images = [Made("a/1", (1, 0, 0, 0), url=None), Made("a/2", (0, 1, 0, 0), url=None)]
    with pytest.raises(LvdError, match=r"lists\.optout: no image of the crawl has a url"):
        made_collection(tmp_path, images, lists=[compiled("domain", "a.org")])
    collection = made_collection(tmp_path, images, lists=[compiled("key", "a/2")])
    assert collection.decision[:].tolist() == [OPEN, CODE["unsafe"]]


def test_a_list_is_compiled_in_bounded_memory_and_a_task_holds_none_of_it(compiled):
    text = "\n".join(digest(str(number)) for number in range(20_000))
    asked = facts([{"sha256": digest("7")}])
    tracemalloc.start()
    made = compiled("sha256", text)
    _, most = tracemalloc.get_traced_memory()
    assert most < 20_000 * 120 + 2 * len(text)  # the text itself is here too
    tracemalloc.reset_peak()
    now, _ = tracemalloc.get_traced_memory()
    assert made.find(asked) == [digest("7")]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most - now < 100_000  # the list is 640 kB
