"""Images that are taken out of a finished result are gone, with their bytes and vectors."""

import base64
import json
import shutil
import signal
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from curated_site import Site, content, leftovers
from killed_runs import run_killed

from curate.catalogue.collection import Collection
from curate.cli import main
from curate.report.thumbnails import _thumbnail

NAMED = {
    "00001/twin0": "duplicate",  # of the same bytes as three others
    "00001/near1": "duplicate",  # whose representative stays, alone
    "00000/wave02": "kept",  # stands for near2
    "00003/held1": "holdout",  # stands for held1copy
    "00003/unsafe": "unsafe",
    "00000/chart0": "irrelevant",
}
SAME = ["00000/wave00", "00001/twin1", "00003/twin2"]
COPIES_OF = {"00001/near2": "00000/wave02", "00003/held1copy": "00003/held1"}
GONE = {*NAMED, *SAME, *COPIES_OF}
BEHIND = ("cluster", "group", "duplicate_of", "duplicate_similarity", "nearest_seed")
BEHIND += ("seed_similarity", "seeds", "weight", "balance_cluster", "output_shard", "output_key")
WORDS = ("--set=retrieve.max_images=null",)


@pytest.fixture(scope="module")
def finished(drawn, tmp_path_factory):
    """A run without pictures, and a list of keys."""
    root = tmp_path_factory.mktemp("finished")
    site = Site(root, drawn, root / "work")
    site.run(*WORDS)
    lines = ["# asked in May", *NAMED, "00003/cut", "no such key"]
    (root / "keys.txt").write_text("\n".join(lines))
    return site


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the run, to take images out of."""
    for name in ("work", "out"):
        shutil.copytree(finished.root / name, tmp_path / name, copy_function=shutil.copy2)
    shutil.copy(finished.root / "keys.txt", tmp_path)
    return Site(tmp_path, finished.data, tmp_path / "work")


def arguments(site, *words, path="keys.txt", kind="key"):
    place = [str(site.root / "out"), "--list", str(site.root / path), "--kind", kind]
    return ["remove", *place, "--work", str(site.work), *words]


def remove(site, *words, status=0, **more):
    result = CliRunner().invoke(main, arguments(site, *words, **more))
    assert result.exit_code == status, f"{result.output}\n{result.exception!r}"
    return result.output.splitlines()


def table(out: Path, name: str) -> list[dict]:
    return pq.read_table(out / "reports" / f"{name}.parquet").to_pylist()


def members(out: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted((out / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    return found


def originals(data: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted((data / "crawl").glob("*.tar*")):
        with tarfile.open(path) as tar:
            for member in tar:
                trunk, _, extension = member.name.partition(".")
                if extension not in ("json", "txt"):
                    found[f"{path.name[:5]}/{trunk}"] = tar.extractfile(member).read()
    return found


def vectors(site) -> dict[str, bytes]:
    """Return the stored vectors, as bytes, of the images that have one."""
    address = json.loads((site.root / "out/run.json").read_text())["datasets"]["crawl"]["content"]
    crawl = Collection(site.work / "catalogue" / address / "all")
    numbers = np.arange(len(crawl))
    stored = dict(zip(crawl.keys(numbers), crawl.vectors(numbers), strict=True))
    return {key: vector.tobytes() for key, vector in stored.items() if vector.any()}


def holding(site, wanted: dict[str, bytes]) -> dict[str, set[str]]:
    """Return which of some bytes stand in which files of the result and of the work folder."""
    files = [path for path in site.root.rglob("*") if path.is_file()]
    data = {str(path.relative_to(site.root)): path.read_bytes() for path in files}
    found = {
        name: {key for key, some in wanted.items() if some in all_} for name, all_ in data.items()
    }
    return {name: keys for name, keys in found.items() if keys}


def unlocked(site) -> dict[str, bytes]:
    """Return all files but the locks, which stay when nobody holds them."""
    return {name: data for name, data in content(site.root).items() if not name.endswith(".lock")}


def test_what_is_removed_leaves_no_byte_and_no_vector(copied):
    out = copied.root / "out"
    rows = {row["key"]: row for row in table(out, "images")}
    exported = members(out)
    wanted = {key: data for key, data in originals(copied.data).items() if key in GONE}
    wanted |= {
        f"{key}, exported": data
        for key in GONE
        for name, data in exported.items()
        if name.startswith(rows[key]["output_key"] or "-") and not name.endswith(".txt")
    }
    stored = {key: vector for key, vector in vectors(copied).items() if key in GONE}
    page = {
        key: base64.b64encode(_thumbnail(wanted[key])) for key in wanted if "exported" not in key
    }
    (out / "reports/index.html").write_bytes(b" ".join(page.values()))  # as a drawn one has them
    before = holding(copied, wanted), holding(copied, stored), holding(copied, page)
    assert {"00000/wave02", "00000/wave00"} <= set.union(*before[0].values())
    assert {name.split("/")[1] for name in before[1]} >= {"vectors", "cluster"}
    assert list(before[2]) == ["out/reports/index.html"]
    said = remove(copied)
    assert len(said) == len(GONE) + 2
    assert b"unsafe: not shown" in (out / "reports/index.html").read_bytes()
    assert holding(copied, wanted) == holding(copied, stored) == holding(copied, page) == {}
    for place in (out, copied.work):
        result = CliRunner().invoke(main, ["verify", str(place)])
        assert result.exit_code == 0, result.output
    assert leftovers(copied) == []


def test_reports_and_shards_say_what_is_left(copied, finished):
    remove(copied)
    out, was = copied.root / "out", finished.root / "out"
    before, after = table(was, "images"), table(out, "images")
    reasons = {row["key"]: row["reason"] for row in after if row["key"] in GONE}
    twin = "the same bytes as 00001/twin0: key is on the list keys"
    assert reasons == {
        **dict.fromkeys(NAMED, "key is on the list keys"),
        **dict.fromkeys(SAME, twin),
        **{key: f"a copy of {of}: key is on the list keys" for key, of in COPIES_OF.items()},
    }
    for old, new in zip(before, after, strict=True):
        if old["key"] in GONE:
            expected = {"decision": "unsafe", "reason": new["reason"], **dict.fromkeys(BEHIND)}
        else:  # the group of wave01 has no other member
            expected = {"group": None} if old["key"] == "00000/wave01" else {}
        assert new == {**old, **expected}
    assert {row["key"] for row in after if row["decision"] == "corrupt"} >= {"00003/cut"}

    groups = Counter(row["group"] for row in after if row["group"] is not None)
    assert min(groups.values()) > 1
    assert {row["key"] for row in table(out, "duplicates")} == {
        row["key"] for row in after if row["group"] is not None
    }
    listed = [row["key"] for row in after if row["nearest_seed"] is not None]
    assert list(dict.fromkeys(row["key"] for row in table(out, "retrieval"))) == listed
    pairs = [row for row in table(was, "pairs") if not {row["key"], row["better"]} & GONE]
    assert table(out, "pairs") == pairs != table(was, "pairs")
    assert not (out / "reports" / "regrouped.parquet").exists()
    removed = table(out, "removed")
    assert {row["key"]: row["decision"] for row in removed} == {
        row["key"]: row["decision"] for row in before if row["key"] in GONE
    }
    funnel = json.loads((out / "reports/funnel.json").read_text())
    counts = Counter(row["decision"] for row in after)
    assert {name: count for name, count in funnel["decisions"].items() if count} == counts
    told = table(out, "groups")
    assert {row["group"]: row["size"] for row in told} == groups
    chains = sum(row["chain"] or False for row in told)
    assert funnel["groups"] == {
        "count": len(groups),
        "members": sum(groups.values()),
        "chains": chains,
    }
    sizes = {row["group"]: row["size"] for row in table(finished.root / "out", "groups")}
    assert all((row["diameter"] is None) == (row["size"] < sizes[row["group"]]) for row in told)
    assert funnel["removed"] == {"images": len(GONE), "lists": {"keys": len(GONE)}}

    kept = {row["output_key"]: row for row in after if row["decision"] == "kept"}
    old, new = members(was), members(out)
    assert new == {name: data for name, data in old.items() if name[:9] in kept}
    for path in sorted((out / "shards").glob("*.tar")):
        own = [key for key in kept if key.startswith(path.stem)]
        rows = pq.read_table(path.with_suffix(".parquet"))
        assert sorted(own) == rows["key"].to_pylist()
        assert rows.schema == pq.read_schema(was / "shards" / path.with_suffix(".parquet").name)
        stats = json.loads(path.with_name(f"{path.stem}_stats.json").read_text())
        assert (stats["count"], stats["bytes"]) == (len(own), path.stat().st_size)
    for command, *words in (["explain", "00001/near2"], ["status"]):
        result = CliRunner().invoke(main, [command, str(out), *words])
        assert result.exit_code == 0, result.output


def test_tables_of_several_files_lose_the_same_rows(copied, finished):
    out = copied.root / "out"
    for name in ("images", "retrieval", "duplicates"):
        path = out / "reports" / f"{name}.parquet"
        whole = pq.read_table(path)
        path.unlink()
        path.mkdir()
        third = -(-len(whole) // 3)
        for number in range(3):
            some = whole.slice(number * third, third)
            pq.write_table(some, path / f"{number:05d}.parquet", compression="zstd")
    remove(copied)
    single = Site(copied.root / "single", copied.data, copied.root / "single/work")
    shutil.copytree(finished.root, single.root)
    remove(single)
    for name in ("images", "retrieval", "duplicates", "removed"):
        assert table(out, name) == table(single.root / "out", name)
    assert CliRunner().invoke(main, ["verify", str(out)]).exit_code == 0


def test_an_image_of_a_seed_that_was_written_goes_like_a_crawled_one(copied):
    out = copied.root / "out"
    path = out / "reports/images.parquet"
    rows = table(out, "images")
    chosen = next(row for row in rows if row["decision"] == "kept" and row["group"] is None)
    rest = [row for row in rows if row["key"] != chosen["key"]]
    names = ("key", "sha256", "url", "decision", "reason", "output_shard", "output_key")
    schema = pa.schema([("seed", pa.string()), *(pq.read_schema(path).field(n) for n in names)])
    pq.write_table(pa.Table.from_pylist(rest, pq.read_schema(path)), path)
    seeds = [{"seed": "animals", **{name: chosen[name] for name in names}}]
    pq.write_table(pa.Table.from_pylist(seeds, schema), out / "reports/seed_images.parquet")
    (copied.root / "hashes.txt").write_text(chosen["sha256"])
    said = remove(copied, path="hashes.txt", kind="sha256")
    assert said[1].startswith("1 images, 1 of them kept, in 1 shards")
    [row] = table(out, "seed_images")
    assert (row["decision"], row["reason"]) == ("unsafe", "sha256 is on the list hashes")
    assert (row["output_shard"], row["output_key"]) == (None, None)
    assert table(out, "images") == rest
    assert not any(name.startswith(chosen["output_key"]) for name in members(out))
    [removed] = table(out, "removed")
    assert (removed["seed"], removed["key"]) == ("animals", chosen["key"])
    assert remove(copied, path="hashes.txt", kind="sha256")[0].startswith("0 images")


def test_a_dry_run_says_what_a_removal_does_and_changes_nothing(copied):
    before = unlocked(copied)
    dry = remove(copied, "--dry-run")
    assert unlocked(copied) == before
    real = remove(copied)
    assert [line.replace("would be", "were") for line in dry] == real
    assert remove(copied)[0].startswith("0 images")


def test_the_same_run_leaves_the_result_and_another_one_does_not_bring_images_back(copied):
    remove(copied)
    after = content(copied.root / "out")
    assert copied.run(*WORDS).strip().endswith("nothing to do")
    assert content(copied.root / "out") == after
    said = copied.run(*WORDS, "--crawl", str(copied.data / "crawl" / "00000.tar"), status=2)
    assert "--replace" in said


def test_a_run_with_the_list_decides_anew_who_stands_for_copies(copied):
    remove(copied)
    keys = copied.root / "keys.txt"
    lists = f"--set=lists={{optout: {{kind: key, path: {keys}}}}}"
    copied.run(*WORDS, lists, "--replace", "--set=calibrate.originals=10")
    decided = {row["key"]: row["decision"] for row in table(copied.root / "out", "images")}
    assert {key for key, decision in decided.items() if decision == "unsafe"} >= set(NAMED)
    assert decided["00001/near2"] == "kept"


def test_a_whole_domain_by_its_url_empties_shards(copied):
    (copied.root / "domains.csv").write_text("id,domain\n1,ORG\n")
    remove(copied, "--name", "gone", path="domains.csv", kind="domain")
    out = copied.root / "out"
    kept = [row for row in table(out, "images") if row["decision"] == "kept"]
    assert all(row["url"] is None for row in kept)
    assert {path.stem for path in (out / "shards").glob("*.tar")} == {
        row["output_shard"] for row in kept
    }
    assert CliRunner().invoke(main, ["verify", str(out)]).exit_code == 0


MOMENTS = (
    ("out.partial/shards/*", 1),
    (".out.replaced", 1),
    ("out", 1),
    ("work/scratch/*/discarded-*", 3),
)
"""What a removal is about to make or to name when it is killed."""


def test_a_removal_that_is_killed_leaves_one_state_and_the_same_call_finishes(copied, finished):
    keys = str(finished.root / "keys.txt")
    undisturbed = Site(copied.root / "undisturbed", copied.data, copied.root / "undisturbed/work")
    shutil.copytree(finished.root, undisturbed.root)
    remove(undisturbed, path=keys)
    old, new = content(finished.root / "out"), content(undisturbed.root / "out")
    for place, count in MOMENTS:
        status = run_killed(arguments(copied, path=keys), copied.root, at=place, count=count)
        assert status == -signal.SIGKILL, place
        if (copied.root / "out").exists():
            assert content(copied.root / "out") in (old, new), place
    remove(copied, path=keys)
    assert content(copied.root / "out") == new
    units = {place for place in content(copied.work) if place.split("/")[0] != "scratch"}
    assert units == {p for p in content(undisturbed.work) if p.split("/")[0] != "scratch"}
    shutil.rmtree(undisturbed.root)
    assert leftovers(copied) == []


def test_what_is_no_result_list_or_work_folder_is_refused(copied):
    before = unlocked(copied)
    for words, said in (
        (["--kind", "sha256"], "a hash (sha256 or pdq) is 64 hexadecimal digits"),
        (["--work", str(copied.data)], "--no-work"),
        (["--list", str(copied.root / "nowhere")], "is not there"),
        (["--column", "key"], "column is for a .csv or .parquet"),
    ):
        lines = remove(copied, *words, status=2)
        assert len(lines) == 1
        assert said in lines[0]
    result = CliRunner().invoke(main, ["remove", str(copied.root / "no"), "--list", "x"])
    assert result.exit_code == 2
    assert unlocked(copied) == before
    assert remove(copied, "--no-work")[-1].endswith(f"taken out of {copied.root / 'out'}")
