"""Whole runs with several seeds: who wants an image, who bars it, and what is said of both."""

import hashlib
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from pictures import encoded, picture, write_tar
from result_content import content

from curate.catalogue.collection import Collection
from curate.catalogue.keyed_order import keyed_hash
from curate.cli import main
from curate.redraw import redraw
from curate.report.contact_sheets import tiles_of
from curate.report.explain import explain, life
from curate.report.samples import brought_in
from curate.report.tables import open_tables
from curate.written_cosine import rounded_down

CONFIG = """
datasets:
  crawl: {path: ROOT/crawl}
  seed: {path: ROOT/seed}
  other: {path: ROOT/other}
  bad: {path: ROOT/bad}
  held: {path: ROOT/held}
  many: {path: ROOT/many}
  own: {path: ROOT/own}
  also: {path: ROOT/also}
embedders:
  descriptor: {kind: descriptor}
pipelines:
  default:
    crawl: crawl
SEEDS
    holdouts: [held]
    embedder: descriptor
    calibrate: {originals: 8, crawl_sample: 8}
    cluster: {clusters: 2}
    dedup: {threshold: 0.95}
    retrieve: {threshold: -1}
    export: {shard_size: 8}
"""
SEEDS = """    seeds:
      seed: {strategy: knn, threshold: null, knn: {neighbours: 2}}
      other: {threshold: 0.5}
      bad: {negative: true, threshold: 0.9}
"""
LISTED = ("irrelevant", "over_budget", "kept")


OWN = encoded(picture(40))
DATASETS = {
    "seed": range(20, 24),
    "other": [22, *range(30, 32)],
    "bad": [5, 12],  # of the crawl
    "held": [3],
    "many": range(50, 60),
}


class Site:
    """The data, and where commands leave their results."""

    def __init__(self, root: Path) -> None:
        self.root, self.data, self.work = root, root / "data", root / "work"
        for part in range(2):
            members = {
                f"{number:03d}.jpg": encoded(picture(number))
                for number in range(10 * part, 10 * part + 10)
            }
            write_tar(self.data / "crawl" / f"{part:05d}.tar", members)
        for name, numbers in DATASETS.items():
            (self.data / name).mkdir()
            for number in numbers:
                (self.data / name / f"{number}.jpg").write_bytes(encoded(picture(number)))
        # a copy of a crawled image, one of the holdout, one of the other's, and what is no image
        own = {
            "7": encoded(picture(7), "PNG"),
            "3": encoded(picture(3)),
            "40": OWN,
            "no": b"JPEG",
        }
        (self.data / "own").mkdir()
        for name, data in own.items():
            (self.data / "own" / f"{name}.jpg").write_bytes(data)
        also = {"40.jpg": OWN, "41.png": encoded(picture(41), "PNG")}
        write_tar(self.data / "also" / "00000.tar.gz", also, "w:gz")
        write_config(self.data, "pipelines.yaml", "    seed: seed")

    def __call__(self, command: str, *words: str) -> tuple[int, list[str]]:
        """Return the status of a command, and the lines that it says."""
        asked = [command, *map(str, words)]
        if command == "run":
            asked += ["--executor=inline", "--set=report.pictures=false"]
        if command == "run" and not any(word.startswith("--work") for word in asked):
            asked.append(f"--work={self.work}")
        result = CliRunner().invoke(main, asked)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output.splitlines()


def write_config(data: Path, name: str, seeds: str) -> str:
    text = CONFIG.replace("SEEDS", seeds.rstrip()).replace("ROOT", str(data))
    (data / name).write_text(text)
    return f"--config={data / name}"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Two seeds, and a negative one that shows two pictures of the crawl."""
    root = tmp_path_factory.mktemp("seeds")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield Site(root)


def run(site, config, *words, out="out"):
    status, said = site("run", f"--out={site.root / out}", config, *words)
    assert status == 0, "\n".join(said[-3:])
    return site.root / out


@pytest.fixture(scope="module")
def several(site):
    return run(site, write_config(site.data, "several.yaml", SEEDS))


def images_of(out):
    return pq.read_table(out / "reports" / "images.parquet").to_pylist()


def funnel_of(out):
    return json.loads((out / "reports" / "funnel.json").read_text())


def cosines(site, out, keys):
    """Return of each seed its keys, and the cosines of crawled images with its images."""
    about = json.loads((out / "run.json").read_text())["datasets"]
    sets = {
        role: Collection(site.work / "catalogue" / each["content"] / "all")
        for role, each in about.items()
    }

    def vectors(data, keys):
        numbers = np.array([data.find(key) for key in keys])
        stored = data.vectors(data.canonical[numbers]).astype(np.float64)
        return stored / np.linalg.norm(stored, axis=1, keepdims=True)

    crawl, found = vectors(sets["crawl"], keys), {}
    for role, data in sets.items():
        if role != "crawl":
            own = data.keys(data.open_by_key)
            found[role.removeprefix("seed ")] = (own, crawl @ vectors(data, own).T)
    return found


def test_every_image_has_the_seeds_that_want_it_and_what_bars_it(site, several):
    rows = [row for row in images_of(several) if row["decision"] in LISTED]
    found = cosines(site, several, [row["key"] for row in rows])
    by_knn = {
        int(image)
        for column in found["seed"][1].T
        for image in np.lexsort((np.arange(len(rows)), -column))[:2]
    }
    wants = {"seed": by_knn, "other": set(np.flatnonzero(found["other"][1].max(1) >= 0.5).tolist())}
    barred = set(np.flatnonzero(found["bad"][1].max(1) >= 0.9).tolist())
    assert barred & (wants["seed"] | wants["other"])
    assert wants["seed"] & wants["other"] - barred
    assert wants["seed"] ^ wants["other"]
    for place, row in enumerate(rows):
        wanted_by = [name for name in sorted(wants) if place in wants[name] - barred]
        assert row["seeds"] == wanted_by
        assert row["decision"] == ("kept" if wanted_by else "irrelevant")
        if place in barred:
            best = found["bad"][1][place].argmax()
            assert row["reason"] == (
                f"cosine {rounded_down(found['bad'][1][place, best])} with {found['bad'][0][best]} of "
                "negative seed bad reaches 0.9000"
            )
        elif not wanted_by:
            assert "no other seed retrieves it" in row["reason"]
    assert all(row["seeds"] is None for row in images_of(several) if row["decision"] not in LISTED)
    told = funnel_of(several)["seeds"]
    for name, mine in wants.items():
        assert told[name]["retrieved"] == len(mine - barred)
        others = set().union(*(wants[other] for other in wants if other != name))
        assert told[name]["alone"] == len(mine - barred - others)
    assert told["bad"]["retrieved"] == told["bad"]["alone"] == len(barred)
    assert {name: each["strategy"] for name, each in told.items()} == {
        "seed": "knn",
        "other": "threshold",
        "bad": "threshold",
    }
    assert [told[name]["images"] for name in ("seed", "other", "bad")] == [4, 3, 2]


def test_the_nearest_images_are_those_over_all_wanted_seeds(site, several):
    rows = [row for row in images_of(several) if row["decision"] in LISTED]
    listed = pq.read_table(several / "reports" / "retrieval.parquet").to_pylist()
    found = cosines(site, several, [row["key"] for row in rows])
    strategies = {"seed": "knn", "other": "threshold"}
    for place, row in enumerate(rows):
        pooled = [
            (-round(float(cosine), 6), name, key)
            for name in ("other", "seed")
            for key, cosine in zip(found[name][0], found[name][1][place], strict=True)
        ]
        mine = [each for each in listed if each["key"] == row["key"]]
        assert [(each["seed"], each["seed_key"]) for each in mine] == [
            (name, key) for _, name, key in sorted(pooled)[:5]
        ]
        assert [each["rank"] for each in mine] == list(range(5))
        assert all(each["strategy"] == strategies[each["seed"]] for each in mine)
        assert (row["nearest_seed"], row["seed_similarity"]) == (
            mine[0]["seed_key"],
            mine[0]["similarity"],
        )


def test_explain_and_the_summary_tell_of_seeds(site, several):
    rows = images_of(several)
    barred = next(row for row in rows if "negative seed" in row["reason"])
    assert barred["reason"] in " ".join(site("explain", str(several), barred["key"])[1])
    both = next(row for row in rows if row["seeds"] == ["other", "seed"])
    told = site("explain", str(several), both["key"])[1]
    assert "Wanted by other, seed" in told
    assert any(line.endswith(" of other") for line in told)
    assert "Wanted by" not in " ".join(site("explain", str(several), barred["key"])[1])


def test_pictures_of_a_seed_image_are_read_from_its_own_seed(site, several, monkeypatch):
    readers = {}
    monkeypatch.setattr(
        "curate.redraw.pictures",
        lambda out, crawl, seeds, timed: readers.update(seeds, crawl=crawl),
    )
    redraw(several, site.work)
    with open_tables(several) as tables:
        tiles = [tile for tile in tiles_of([brought_in(tables)]) if tile.seed]
    assert {tile.seed for tile in tiles} == {"seed", "other"}
    for tile in tiles:  # 22.jpg is in both
        assert readers[tile.seed](tile.key) == (site.data / tile.seed / tile.key).read_bytes()
    assert readers["crawl"]("00000/000")


def test_seeds_in_another_order_give_the_same_bytes(site, several):
    first, second, third = SEEDS.splitlines()[1:]
    turned = "\n".join(["    seeds:", third, second, first, ""])
    again = run(site, write_config(site.data, "turned.yaml", turned), out="turned")
    assert content(again) == content(several)


def test_one_of_several_is_the_one_seed(site, several):
    alone = run(site, write_config(site.data, "alone.yaml", "    seed: seed\n"), out="alone")
    config = write_config(site.data, "among.yaml", "    seeds: {seed: null}\n")
    among = run(site, config, out="among")
    shards = sorted(path.name for path in (alone / "shards").iterdir())
    assert shards
    for name in shards:
        assert (among / "shards" / name).read_bytes() == (alone / "shards" / name).read_bytes()
    assert images_of(among) == images_of(alone)
    assert funnel_of(among)["seeds"] == funnel_of(alone)["seeds"]


def test_one_seed_more_embeds_and_searches_no_other_again(site, several):
    def units(stage):
        found = (site.work / stage).glob("*/*/unit.json")
        return {path: path.stat().st_mtime_ns for path in found}

    stages = ("vectors", "retrieve")
    before = {stage: units(stage) for stage in stages}
    more = SEEDS + "      held: {threshold: 0.4}\n"
    run(site, write_config(site.data, "more.yaml", more), out="more")
    for stage in stages:
        after = units(stage)
        assert before[stage].items() <= after.items()
        assert len(after) - len(before[stage]) <= 1
    assert len(units("retrieve")) == len(before["retrieve"]) + 1


def test_budgets_are_for_each_seed_and_for_all(site, several):
    config = f"--config={site.data / 'several.yaml'}"
    before = {row["key"]: row for row in images_of(several)}
    found = cosines(site, several, [key for key, row in before.items() if row["seeds"]])
    keys = [key for key, row in before.items() if row["seeds"]]
    near = dict(zip(keys, np.round(found["other"][1].max(1), 6), strict=True))
    own = run(site, config, "--set=seeds.other.max_images=2", out="own")
    mine = sorted((k for k in keys if "other" in before[k]["seeds"]), key=lambda k: (-near[k], k))
    for row in images_of(own):
        if row["key"] in keys:
            wanted_by = [
                name
                for name in before[row["key"]]["seeds"]
                if name != "other" or row["key"] in mine[:2]
            ]
            assert row["seeds"] == wanted_by
            assert row["decision"] == ("kept" if wanted_by else "over_budget")
            if not wanted_by:
                assert row["reason"].endswith("not among the 2 most similar to other")
    everyone = sorted(keys, key=lambda k: (-before[k]["seed_similarity"], k))
    limited = run(site, config, "--set=retrieve.max_images=3", out="limited")
    kept = [row["key"] for row in images_of(limited) if row["decision"] == "kept"]
    assert kept == sorted(everyone[:3])
    for row in images_of(limited):
        if row["decision"] == "over_budget":
            assert row["reason"].endswith("is not among the 3 most similar")


def test_auto_takes_the_strategy_of_the_seed_s_size(site, several):
    words = [
        *("--set=retrieve.strategy=auto", "--set=retrieve.large_seed=3"),
        *("--set=retrieve.threshold=null", "--seed=seed", "--seed=other"),
        *("--set=retrieve.cluster.more_than=0", "--set=retrieve.cluster.images=2"),
    ]
    config = f"--config={site.data / 'pipelines.yaml'}"  # no `seeds`: `retrieve` counts for both
    dry = site("run", config, *words, "--dry-run", f"--out={site.root / 'dry'}")[1]
    lines = [line for line in dry if line.startswith("retrieve ")]
    assert [line.split()[1:3] for line in lines] == [["other:", "cluster:"], ["seed:", "knn:"]]
    out = run(site, config, *words, out="auto")
    told = funnel_of(out)["seeds"]
    assert {name: each["strategy"] for name, each in told.items()} == {
        "other": "cluster",
        "seed": "knn",
    }
    unseen = [f"--work={site.root / 'no-work'}", "--dry-run", f"--out={site.root / 'dry'}"]
    dry = site("run", config, *words, *unseen)[1]
    assert sum("for a seed of more than 3 images, else cluster" in line for line in dry) == 2


def test_a_negative_threshold_can_be_measured(site):
    seeds = "    seeds: {other: {threshold: -1}, many: {negative: true, threshold: auto}}\n"
    out = run(site, write_config(site.data, "measured.yaml", seeds), out="measured")
    threshold = funnel_of(out)["seeds"]["many"]["threshold"]
    assert threshold["source"] == "calibrated"
    measured = json.loads((out / "run.json").read_text())["calibration"]["seeds.many"]
    assert measured["threshold"] == threshold["value"]
    rows = [row for row in images_of(out) if row["decision"] in LISTED]
    near = cosines(site, out, [row["key"] for row in rows])["many"][1].max(1)
    for row, cosine in zip(rows, near, strict=True):
        assert (row["decision"] == "irrelevant") == (cosine >= threshold["value"])


def test_what_a_seed_does_not_say_comes_from_retrieve(site, several):
    config = f"--config={site.data / 'several.yaml'}"
    words = ["--set=retrieve.knn={neighbours: 7, collisions: deeper}", "--dry-run"]
    words += ["--set=seeds.other={strategy: knn, threshold: 0.25}", f"--out={site.root / 'dry'}"]
    status, said = site("run", config, *words)
    assert status == 0, said
    lines = [line.split(maxsplit=1)[1] for line in said if line.startswith("retrieve ")]
    assert lines == [
        "bad: negative: threshold 0.9 (inclusive)",
        "other: knn: the 7 nearest images of its own of each seed image; floor: cosine 0.25 "
        "(inclusive)",
        "seed: knn: the 2 nearest images of its own of each seed image",
    ]


WRONG = {
    "seed and seeds": (
        ["--set=seed=seed"],
        ["seed and seeds exclude each other", "--set seed=null"],
    ),
    "an unknown seed": (["--set=seeds.sed={}"], ["no dataset 'sed'", "did you mean 'seed'"]),
    "one dataset twice": (["--seed=seed", "--seed=seed"], ["seed seed", "twice"]),
    "the same data": (["--seed=seed", "--seed=DATA/seed"], ["seed", "DATA/seed", "twice"]),
    "only negative ones": (["--seed=bad"], ["bad: negative seeds only"]),
    "nothing of any": (
        ["--seed=bad", "--seed=seed", "--set=seeds.seed.strategy=none"],
        ["bad, seed: strategy none retrieves nothing", "include: true"],
    ),
    "settings that do not fit": (
        ["--set=dedup.keep=centrality", "--set=dedup.seed=3"],
        ["pipelines.default.dedup in --set dedup.keep=centrality is wrong"],
    ),
    "settings of two sections that do not fit": (
        ["--set=balance.target=5", "--set=top_up={target: 5}"],
        ["in --set balance.target=5 and --set top_up={target: 5} is wrong"],
    ),
    "a strategy of a negative one": (
        ["--set=seeds.bad.strategy=knn"],
        ["seeds.bad", "strategy is not for a negative seed"],
    ),
    "a negative one without a threshold": (
        ["--set=seeds.bad.threshold=null"],
        ["seeds.bad", "needs a threshold"],
    ),
    "a wrong name": (["--set=seeds.other.treshold=1"], ["seeds.other.treshold", "'threshold'"]),
    "an embedder of its own": (["--set=seeds.other.embedder=x"], ["seeds.other.embedder"]),
    "what does not fit with retrieve": (
        ["--set=retrieve.threshold=null", "--set=retrieve.target=5"],
        ["pipelines.default.seeds.", "target"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_seeds_are_refused_in_one_line(site, several, case):
    words, told = WRONG[case]
    words = [word.replace("DATA", str(site.data)) for word in words]
    config = f"--config={site.data / 'several.yaml'}"
    status, said = site("run", config, *words, f"--out={site.root / 'wrong'}", "--dry-run")
    assert status == 2
    [line] = said
    for text in told:
        assert text.replace("DATA", str(site.data)) in line


def test_a_seed_on_the_command_line_keeps_its_own_settings(site, several):
    config = f"--config={site.data / 'several.yaml'}"
    words = ["--seed=seed", "--seed=held", "--dry-run", f"--out={site.root / 'dry'}"]
    status, said = site("run", config, *words)
    assert status == 0, "\n".join(said[-3:])
    lines = [line for line in said if line.startswith("retrieve ")]
    assert lines[0].split()[1:] == ["held:", "threshold", "-1.0", "(inclusive)"]
    assert "seed: knn: the 2 nearest images" in lines[1]


INCLUDED = """    seeds:
      seed: {strategy: knn, threshold: null, knn: {neighbours: 4}}
      own: {threshold: 0.9, include: true}
      also: {strategy: none, threshold: null, include: true}
"""


@pytest.fixture(scope="module")
def included(site):
    return run(site, write_config(site.data, "included.yaml", INCLUDED), out="included")


def samples_of(out):
    found = []
    for path in sorted((out / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            members = {entry.name: tar.extractfile(entry).read() for entry in tar}
        for name, data in members.items():
            if name.endswith(".jpg"):
                found.append((json.loads(members[name.replace(".jpg", ".json")]), data))
    return found


def test_images_of_included_seeds_are_explained_with_their_crawled_copies(included):
    table = pq.read_table(included / "reports" / "seed_images.parquet").to_pylist()
    crawled = images_of(included)
    names = {row[column] for row in crawled for column in ("key", "member")}
    copies = {}
    for row in crawled:
        for seed in {x["seed"] for x in table}:
            if row["reason"].endswith(f" of seed {seed}, which is included"):
                copies.setdefault((seed, row["duplicate_of"]), set()).add(row["key"])
    assert copies
    explained = 0
    for row in table:
        if row["key"] in names or len([x for x in table if x["key"] == row["key"]]) > 1:
            continue
        explained += 1
        told = life(included, row["key"])
        assert (told["of_seed"], told["decision"]) == (row["seed"], row["decision"])
        assert told["why"] == (row["reason"] or "its seed is included")
        mine = copies.get((row["seed"], row["key"]), set())
        assert {one["key"] for one in told["copies"]["most_similar"]} == mine
        assert told["copies"]["size"] == len(mine)
        text = explain(included, row["key"])
        assert text.startswith(f"{row['key']} (an image of seed {row['seed']}): {row['decision']}")
        if row["output_key"]:
            assert f"as {row['output_key']}" in text
            assert life(included, row["output_key"])["key"] == row["key"]
        assert ("Crawled copies of it" in text) == bool(mine)
    assert explained >= 4
    assert life(included, crawled[0]["key"])["of_seed"] is None


def test_images_of_included_seeds_are_in_the_shards_and_in_a_table_of_their_own(site, included):
    table = pq.read_table(included / "reports" / "seed_images.parquet").to_pylist()
    assert [(row["seed"], row["key"], row["decision"]) for row in table] == [
        ("also", "00000/40", "kept"),
        ("also", "00000/41", "kept"),
        ("own", "3.jpg", "holdout"),
        ("own", "40.jpg", "duplicate"),
        ("own", "7.jpg", "kept"),
        ("own", "no.jpg", "corrupt"),
    ]
    assert all((row["reason"] == "") == (row["decision"] == "kept") for row in table)
    assert table[2]["reason"].endswith(" with 3.jpg of holdout held")
    samples = {row["key"]: (row, data) for row, data in samples_of(included)}
    for row in table:
        assert (row["output_key"] is not None) == (row["decision"] == "kept")
        if row["decision"] == "kept":
            said, data = samples[row["output_key"]]
            assert (said["source_key"], said["sha256"]) == (row["key"], row["sha256"])
            assert row["output_key"].startswith(row["output_shard"])
            if row["format"] == "jpeg":
                assert hashlib.sha256(data).hexdigest() == row["sha256"]
    images = images_of(included)
    kept = {row["output_key"]: row["key"] for row in images if row["decision"] == "kept"}
    kept |= {row["output_key"]: row["key"] for row in table if row["output_key"]}
    assert kept == {name: said["source_key"] for name, (said, _) in samples.items()}
    in_order = [row["source_key"] for row, _ in samples_of(included)]
    assert in_order == sorted(in_order, key=lambda key: keyed_hash(key, 0))
    funnel = funnel_of(included)
    assert funnel["seeds"]["own"]["included"] == {
        **dict.fromkeys(("corrupt", "holdout", "duplicate", "kept"), 1)
    }
    assert funnel["seeds"]["also"]["included"] == {"kept": 2}
    assert "included" not in funnel["seeds"]["seed"]
    assert sum(funnel["decisions"].values()) == funnel["images"] == len(images)
    assert funnel["seeds"]["also"]["retrieved"] == 0


@pytest.mark.parametrize("hit", ["seed", "crawl"])
def test_chains_of_a_holdout_lead_from_an_included_image_to_a_crawled_one_and_back(
    site, included, hit
):
    near = next(row for row in images_of(included) if row["key"] == "00000/007")
    similarity = near["duplicate_similarity"]
    held = site.data / f"held-{hit}"
    held.mkdir()
    data = encoded(picture(7), "PNG") if hit == "seed" else encoded(picture(7))
    (held / "h.jpg").write_bytes(data)
    words = (f"--holdout={held}", f"--set=holdout.threshold={(1 + similarity) / 2}")
    out = run(site, f"--config={site.data / 'included.yaml'}", *words, out=held.name)
    images = {row["key"]: row for row in images_of(out)}
    table = pq.read_table(out / "reports" / "seed_images.parquet").to_pylist()
    own = next(row for row in table if row["key"] == "7.jpg")
    assert images["00000/007"]["decision"] == own["decision"] == "holdout"
    direct = f"cosine 1.0000 with h.jpg of holdout {held}"
    through = f"cosine {rounded_down(similarity)} with"
    if hit == "seed":
        assert own["reason"] == direct
        expected = f"{through} 7.jpg of included seed own, which has {direct}"
        assert images["00000/007"]["reason"] == expected
    else:
        assert images["00000/007"]["reason"] == direct
        assert own["reason"] == f"{through} 00000/007, which has {direct}"
    dropped = [row["key"] for row in (*images.values(), *table) if row["decision"] == "holdout"]
    assert sorted(dropped) == ["00000/007", "7.jpg"]
    assert all(said["source_key"] not in dropped for said, _ in samples_of(out))


def test_a_crawled_copy_of_an_included_image_is_a_duplicate_of_it(site, included, several):
    before = {row["key"]: row for row in images_of(several)}
    for row in images_of(included):
        if row["key"] != "00000/007":
            assert row["duplicate_of"] == before[row["key"]]["duplicate_of"]
            continue
        assert row["decision"] == "duplicate"
        assert row["duplicate_of"] == "7.jpg"
        assert 0.95 <= row["duplicate_similarity"] <= 1
        assert row["reason"] == (
            f"cosine {rounded_down(row['duplicate_similarity'])} with 7.jpg of seed own, which is included"
        )
        assert row["reason"] in " ".join(site("explain", str(included), row["key"])[1])
        assert row["seed_similarity"] is None
        assert before[row["key"]]["decision"] in LISTED
