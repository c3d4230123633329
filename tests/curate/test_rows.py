"""The tables tell of every crawled image what became of it, and agree with brute force."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_collection import (
    Made,
    blocks_of,
    candidates_of,
    chosen_by_threshold,
    clumps,
    clustered,
    exact_cosines,
    grouped,
    made_collection,
    searched,
)

from curate.calibration.thresholds import Threshold
from curate.dedup.near import DedupSettings
from curate.export.bounds import ShardBounds, cut
from curate.filters.decisions import DECISIONS
from curate.filters.quality import QualitySettings
from curate.filters.scores import FilterSettings
from curate.report.rows import Decided, tables
from curate.report.schemas import DUPLICATES, IMAGES, RETRIEVAL
from curate.retrieval.answers import Answer, Answers
from curate.retrieval.candidates import Candidates
from curate.retrieval.nearest_seeds import Retrieved
from curate.retrieval.question import Chosen
from curate.retrieval.settings import SeedSettings
from curate.retrieval.threshold import misses_of
from curate.selection.decide import select
from curate.selection.include import Included
from curate.selection.wishes import Wish
from curate.written_cosine import rounded_down, rounded_up

DEDUP, RETRIEVE, HOLDOUT = 0.95, 0.5, 0.97
FILTERS = (FilterSettings(column="nsfw", max=0.5),)
VECTORS = clumps(0, 25, 8, 8, 0.4)
SEEDS = clumps(1, 8, 5, 8, 0.4)


def crawled():
    """Return images of all kinds: near copies, exact ones, broken, unsafe and small ones."""
    rng = np.random.default_rng(0)
    images = []
    for row, vector in enumerate(VECTORS):
        size = tuple(rng.integers(50, 60, 2).tolist())
        image = Made(f"{'ba'[row % 2]}/{row:04d}", vector, size, scores={"nsfw": 0.1})
        if row % 9 == 0:
            copy = replace(image, key=f"c/{row:04d}", content=image.key)
            images.append(copy)
        if row % 11 == 0:
            image = replace(image, problem="truncated", vector=None, scores={})
        elif row % 13 == 0:
            image = replace(image, scores={"nsfw": 0.8 if row % 2 else None})
        elif row % 17 == 0:
            image = replace(image, size=(20, 50))
        images.append(image)
    return images


class Finished:
    """All stages up to the tables, on a crawl of all kinds of images."""

    def __init__(self, work, block=10**6, **options):
        most, target = options.pop("max_images", 20), options.pop("target", None)
        settings = DedupSettings(groups=options.pop("groups", "greedy"))
        seeds = [Made(f"s/{row:02d}", vector) for row, vector in enumerate(SEEDS)]
        held = [Made("h/0", VECTORS[3] + 0.01), Made("h/1", VECTORS[40])]
        with blocks_of(block):
            quality = QualitySettings()
            self.crawl = made_collection(work, crawled(), quality=quality, filters=FILTERS)
            self.seed = made_collection(work, seeds, name="seed")
            holdout = made_collection(work, held, name="held")
            clusters, assigned = clustered(self.crawl, work, block=block)
            groups, _ = grouped(self.crawl, clusters, work, DEDUP, settings)
            dropped, retrieved = searched(
                *(self.crawl, groups, self.seed, [holdout], work), threshold=HOLDOUT, dedup=DEDUP
            )
            chosen = work / "select"
            chosen.mkdir()
            candidates = candidates_of(self.crawl, groups, dropped, retrieved, work)
            taken, self.reached = chosen_by_threshold(candidates, RETRIEVE, target, work)
            wishes = [Wish(candidates, taken, None)]
            select(self.crawl, groups, dropped, wishes, [], [], most, 0, out=chosen)
            answer = Answer(
                SeedSettings(),
                len(seeds),
                Threshold(self.reached["threshold"], "pipeline"),
                Retrieved("animals", self.seed, tuple(retrieved), "r", self.crawl.block),
                Candidates(candidates, 0, "c"),
                Chosen(taken, misses_of(**self.reached), "t"),
            )
            kept = len(np.load(chosen / "order.npy"))
            np.save(bounds := work / "bounds.npy", cut(kept, 7))
            decided = Decided(
                crawl=self.crawl,
                answers=Answers((answer,), (), 5),
                holdouts=(("evaluation", holdout),),
                assigned=tuple(assigned),
                groups=groups,
                grouping=settings.groups,
                shapes=(),
                dropped=dropped,
                included=Included(),
                removed=(),
                selected=chosen,
                quality=quality,
                filters=FILTERS,
                lists=(),
                dedup_threshold=DEDUP,
                max_images=most,
                bounds=ShardBounds(bounds),
            )
            folders = []
            for number, (start, stop) in enumerate(self.crawl.blocks()):
                folders.append(work / f"tables-{number}")
                folders[-1].mkdir()
                tables(decided, start, stop, out=folders[-1])
        self.tables = {
            name: pa.concat_tables(
                [pq.read_table(folder / f"{name}.parquet") for folder in folders]
            )
            for name in ("images", "retrieval", "duplicates")
        }
        self.images = self.tables["images"].to_pylist()
        self.by_key = {row["key"]: row for row in self.images}
        self.by_id = dict(enumerate(self.images))
        self.made = {image.key: image for image in crawled()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Finished(tmp_path_factory.mktemp("run"))


def test_every_crawled_image_has_one_row_in_key_order(run):
    keys = [row["key"] for row in run.images]
    assert keys == sorted(run.made)
    for name, schema in (("images", IMAGES), ("retrieval", RETRIEVAL), ("duplicates", DUPLICATES)):
        assert run.tables[name].schema.equals(schema)
    assert {row["decision"] for row in run.images} == set(DECISIONS)
    for key, row in run.by_key.items():
        made = run.made[key]
        assert (row["part"], row["sha256"]) == (key[0], made.sha256)
        assert row["width"] == (None if made.problem else made.size[0])


def test_columns_are_set_exactly_where_the_contract_says(run):
    for row in run.images:
        decision = row["decision"]
        listed = decision in ("irrelevant", "over_budget", "kept")
        assert (row["reason"] == "") == (decision == "kept")
        assert row["reason"] is not None
        assert "\n" not in row["reason"]
        unclustered = decision in ("corrupt", "unsafe", "low_quality")
        assert (row["cluster"] is None) == unclustered
        if unclustered:
            assert row["group"] is None
        for column in ("duplicate_of", "duplicate_similarity"):
            assert (row[column] is not None) == (decision == "duplicate")
        for column in ("nearest_seed", "seed_similarity", "seeds"):
            assert (row[column] is not None) == listed
        for column in ("output_shard", "output_key"):
            assert (row[column] is not None) == (decision == "kept")


def test_a_group_is_the_number_of_its_representative(run):
    sizes = {}
    for row in run.images:
        if row["group"] is not None:
            sizes.setdefault(row["group"], []).append(row["key"])
    assert sizes
    assert all(len(keys) > 1 for keys in sizes.values())
    for group, keys in sizes.items():
        assert run.by_id[group]["key"] in keys
        representative = run.made[run.by_id[group]["key"]]
        for key in keys:
            row, made = run.by_key[key], run.made[key]
            if row["decision"] == "duplicate":
                assert row["duplicate_of"] == representative.key
                cosine = exact_cosines(made.vector[None], representative.vector[None])[0, 0]
                if made.sha256 == representative.sha256:
                    assert row["duplicate_similarity"] == 1.0
                    assert row["reason"] == f"the same bytes as {representative.key}"
                else:
                    assert row["duplicate_similarity"] == pytest.approx(cosine, abs=1e-6)
                    assert row["duplicate_similarity"] >= np.float32(DEDUP)
                    assert row["reason"].endswith(f"with {representative.key}")


def test_the_table_of_duplicates_lists_every_member_of_every_group(run):
    rows = run.tables["duplicates"].to_pylist()
    assert [row["key"] for row in rows] == [
        row["key"] for row in run.images if row["group"] is not None
    ]
    for row in rows:
        image = run.by_key[row["key"]]
        assert row["group"] == image["group"]
        assert row["representative"] == (run.by_id[row["group"]]["key"] == row["key"])
        if row["representative"]:
            assert row["similarity"] == 1.0
        representative = run.by_id[row["group"]]
        same = image["sha256"] == representative["sha256"]
        assert row["method"] == ("exact" if same else "near")
        assert row["similarity"] == 1.0 if same else row["similarity"] <= 1
    assert {row["method"] for row in rows} == {"exact", "near"}


def test_the_nearest_seeds_are_those_of_brute_force(run):
    rows = run.tables["retrieval"].to_pylist()
    listed = [row["key"] for row in run.images if row["seed_similarity"] is not None]
    assert [(row["key"], row["rank"]) for row in rows] == [
        (key, rank) for key in listed for rank in range(5)
    ]
    assert {(row["strategy"], row["seed"]) for row in rows} == {("threshold", "animals")}
    exact = exact_cosines(np.array([run.made[key].vector for key in listed]), SEEDS)
    for place, key in enumerate(listed):
        mine = rows[5 * place : 5 * place + 5]
        said = [row["similarity"] for row in mine]
        np.testing.assert_allclose(said, -np.sort(-exact[place])[:5], atol=1e-6)
        there = [exact[place, int(row["seed_key"][2:])] for row in mine]
        np.testing.assert_allclose(said, there, atol=1e-6)
        image = run.by_key[key]
        assert (image["nearest_seed"], image["seed_similarity"]) == (mine[0]["seed_key"], said[0])
        assert (image["decision"] == "irrelevant") == (said[0] < np.float32(RETRIEVE))


def test_reasons_name_what_decided(run):
    for row in run.images:
        reason, made = row["reason"], run.made[row["key"]]
        match row["decision"]:
            case "corrupt":
                assert reason == "truncated"
            case "unsafe":
                score = made.scores["nsfw"]
                assert reason == ("nsfw has no value" if score is None else "nsfw 0.8 is above 0.5")
            case "low_quality":
                assert reason == "shorter side 20 px is below 32"
            case "irrelevant":
                assert row["nearest_seed"] in reason
                assert "is below 0.5000" in reason
            case "over_budget":
                assert "not among the 20 most similar" in reason


def test_a_dropped_image_names_the_holdout_image_or_the_next_copy_on_the_way_to_it(run):
    held = {row["key"]: row["reason"] for row in run.images if row["decision"] == "holdout"}
    wanted = np.array([VECTORS[3] + 0.01, VECTORS[40]])
    lengths = set()
    for key, reason in held.items():
        own = run.made[key].vector[None]
        to_holdouts = exact_cosines(own, wanted)[0]
        said = f"cosine {rounded_down(to_holdouts.max())} with h/{to_holdouts.argmax()} of holdout evaluation"
        if to_holdouts.max() >= HOLDOUT:
            assert reason == said
            lengths.add(0)
            continue
        step, _, rest = reason.partition(", ")
        following = step.rpartition(" ")[2]
        cosine = exact_cosines(own, run.made[following].vector[None])[0, 0]
        assert step == f"cosine {rounded_down(cosine)} with {following}"
        assert cosine >= DEDUP
        if rest.startswith("which has "):
            assert rest.removeprefix("which has ") == held[following]
            lengths.add(1)
        else:
            ends = [text.partition("which has ")[2] for text in (rest, held[following])]
            assert ends[0] == ends[1]
            last = rest.removeprefix("a copy of copies up to ").partition(",")[0]
            assert held[last] == ends[0]
            lengths.add(2)
    assert {0, 1} <= lengths


def test_kept_images_fill_the_shards_without_a_gap(run):
    kept = [row for row in run.images if row["decision"] == "kept"]
    assert len(kept) == 20
    assert sorted(row["output_key"] for row in kept) == [
        f"{place // 7:05d}{place % 7:04d}" for place in range(20)
    ]
    assert all(row["output_key"].startswith(row["output_shard"]) for row in kept)


@pytest.mark.parametrize("block", [5, 13])
def test_blocks_change_no_row(tmp_path, run, block):
    parted = Finished(tmp_path, block)
    for name, table in parted.tables.items():
        assert table.equals(run.tables[name])


def test_components_say_where_a_copy_is_one_through_others(tmp_path):
    run = Finished(tmp_path, groups="components")
    copies = [row for row in run.images if row["decision"] == "duplicate"]
    said = [row["reason"].endswith(", through others") for row in copies]
    below = [row["duplicate_similarity"] < np.float32(DEDUP) for row in copies]
    assert said == below
    assert any(said)


def test_an_image_that_misses_the_target_says_so(tmp_path):
    run = Finished(tmp_path, target=6, max_images=None)
    decisions = [row["decision"] for row in run.images]
    assert decisions.count("kept") == 6
    threshold = run.reached["threshold"]
    missed = [row for row in run.images if row["decision"] == "irrelevant"]
    assert missed
    for row in missed:
        assert row["seed_similarity"] <= np.float32(threshold)
        assert "the target of 6 images" in row["reason"]
        tied = row["seed_similarity"] == np.float32(threshold)
        assert ("whose key comes first" in row["reason"]) == tied
        assert (f"is below {rounded_up(threshold)}" in row["reason"]) != tied
