import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finished_run import HOSTILE, finished_run

from curate.filters.decisions import DECISIONS
from curate.report.explain import explain, life
from curate.report.tables import open_tables
from curate.written_cosine import rounded_down
from shared.errors import LvdError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("run") / "out", folder=True)


@pytest.fixture(scope="module")
def one_of(run):
    with open_tables(run) as tables:
        return {
            decision: tables.execute(
                "SELECT key FROM images WHERE decision = ? ORDER BY key LIMIT 1", [decision]
            ).fetchone()[0]
            for decision in DECISIONS
        }


@pytest.mark.parametrize("decision", DECISIONS)
def test_every_decision_is_explained(run, one_of, decision):
    told = life(run, one_of[decision])
    assert told["decision"] == decision
    assert told["why"]
    json.dumps(told, allow_nan=False)
    text = explain(run, one_of[decision])
    assert text.splitlines()[0].endswith(f": {decision}")
    assert told["why"] in text
    assert ("Written to shards/" in text) == (decision == "kept")
    assert ("Nearest seed images" in text) == (decision in ("irrelevant", "over_budget", "kept"))


def test_a_copy_tells_what_stands_for_it(run, one_of):
    told = life(run, one_of["duplicate"])
    group = told["group"]
    assert group["size"] == len(group["members"])
    assert group["members"][0]["key"] == group["representative"]["key"] == one_of["kept"]
    assert group["members"][1]["key"] == one_of["duplicate"]
    assert told["why"] == (
        f"the same bytes as {one_of['kept']}, which stands for its group and was kept"
    )
    near = next(member for member in group["members"] if member["method"] == "near")
    assert "a near copy of" in life(run, group["members"][-1]["key"])["why"]
    assert f"{rounded_down(near['similarity'])}" in explain(run, one_of["duplicate"])


def test_a_large_group_is_cut_but_holds_the_image(tmp_path):
    out = finished_run(tmp_path / "out", images=600)
    with open_tables(out) as tables:
        key = tables.execute(
            "SELECT key FROM duplicates WHERE NOT representative ORDER BY similarity LIMIT 1"
        ).fetchone()[0]
    group = life(out, key)["group"]
    assert (len(group["members"]), group["members"][1]["key"]) == (20, key)
    assert f"and {group['size'] - 20} more" in explain(out, key)


def test_what_the_crawl_says_cannot_steer_the_terminal(run):
    text = explain(run, HOSTILE)
    assert "\x1b" not in text
    assert "\\x1b[2J\\u202e" in text


def test_an_unknown_key_names_the_nearest(run, one_of):
    with pytest.raises(LvdError, match="no crawled image has the key '00000/i0001x'") as error:
        life(run, "00000/i0001x")
    assert "'00000/i0001'" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("with_folder", [False, True])
@pytest.mark.parametrize("column", ["member", "output_key", "url"])
def test_an_image_is_found_by_its_other_names(run, one_of, column, with_folder):
    told = life(run, one_of["kept"])
    other, folder = {
        "member": (told["facts"]["member"], told["facts"]["part"]),
        "url": (told["facts"]["url"], None),
        "output_key": (told["written"]["key"], told["written"]["key"][:5]),
    }[column]
    assert life(run, f"{folder}/{other}" if with_folder and folder else other) == told


def test_a_name_of_several_images_lists_their_keys(tmp_path):
    out = finished_run(tmp_path / "out")
    path = out / "reports" / "images.parquet"
    table = pq.read_table(path)
    members = pa.array(["same.jpg"] * len(table))
    pq.write_table(table.set_column(table.column_names.index("member"), "member", members), path)
    with pytest.raises(LvdError, match="what several images are called: '00000/") as error:
        life(out, "same.jpg")
    assert str(error.value).endswith(", ...")
    assert life(out, "00001/i0030")["key"] == "00001/i0030"


def test_the_nearest_seeds_of_a_copy_are_asked_for_and_of_no_other(run, one_of):
    seeds = [{"seed": "animals", "seed_key": "s.jpg", "similarity": 0.25, "strategy": None}]
    asked = []

    def find(key):
        asked.append(key)
        return seeds

    for decision in DECISIONS:
        told = life(run, one_of[decision], find)
        assert (told["seeds"] == seeds) == (decision == "duplicate")
    assert asked == [one_of["duplicate"]]
    said = explain(run, one_of["duplicate"], find)
    assert "Nearest seed images, by the vector of this copy (threshold 0.5)" in said
    assert "0.2500  s.jpg" in said
