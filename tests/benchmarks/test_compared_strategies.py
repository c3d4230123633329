"""What benchmarks/strategies.py counts is right, and what it makes equal is equal."""

from __future__ import annotations

import tarfile
from collections import Counter

import pytest

from benchmarks import lvd142m, planted
from benchmarks.labelled import Labelled, Runs
from benchmarks.proof.drawn import drawn_classes
from benchmarks.proof.pool import HELD_OUT, read_labelled, write_tar
from benchmarks.strategies import STRATEGIES, _score_groups, find_number
from benchmarks.truth import count_copies, count_pairs, read_images, read_truth, root_of

KINDS = ("animal", "animal", "animal", "object", "object", "chart")
TRUTH = {
    str(number): {
        "kind": kind,
        "label": label,
        "copy_of": "0" if number == 1 else "",
        "transform": "crop" if number == 1 else "",
    }
    for number, (kind, label) in enumerate(zip(KINDS, "aabcd-", strict=True))
}


def _images(kept, groups=()):
    """Return images of TRUTH, of which some are kept, and some in groups of two."""
    of_group = {stem: number for number, pair in enumerate(groups) for stem in pair}
    return {
        stem: {"decision": "kept" if stem in kept else "irrelevant", "group": of_group.get(stem)}
        for stem in TRUTH
    }


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """A pool and a seed of drawn pictures: 4 classes of animals, 2 of them shown, and 4 of objects."""
    folder = tmp_path_factory.mktemp("planted")
    data = folder / "data"
    data.mkdir()
    names = [f"n0{1 + 2 * (label > 3)}{label:06d}\tdrawn" for label in range(8)]
    (data / "classes.txt").write_text("\n".join(names) + "\n")
    pictures = drawn_classes(8, HELD_OUT.stop, seed=5)
    for shard in range(HELD_OUT.stop):
        members = (
            (f"{label:03d}.{end}", content)
            for label in pictures
            for end, content in (("jpg", pictures[label][shard]), ("cls", str(label).encode()))
        )
        write_tar(data / f"train-{shard:05d}.tar", members)
    planted.write_pool(data, folder / "pool", 9, 2, 6, limit=8)
    return folder / "pool"


@pytest.fixture(scope="module")
def runs(pool, tmp_path_factory):
    words = ("--pipeline=sample", f"--crawl={pool}/crawl", f"--seed={pool}/seed")
    quick = ("--embedder=descriptor", "--set=dedup.threshold=0.6", "--set=calibrate.originals=8")
    return Runs(tmp_path_factory.mktemp("runs"), (*words, *quick))


def test_precision_and_recall_are_of_what_is_wanted():
    kept = Labelled("", TRUTH, "kind", "animal").score(_images({"0", "1", "3", "5"}))
    assert (kept.images, kept.precision) == (4, 0.5)
    assert kept.recall == 0.5  # a picture, its copy, and not the other one
    assert kept.kinds == {"wanted": 2, "object": 1, "chart": 1}
    assert kept.classes == pytest.approx(1)
    both = Labelled("", TRUTH, "kind", "object").score(_images({"3", "4"}))
    assert (both.precision, both.recall, both.classes) == (1, 1, pytest.approx(2))


def test_copies_and_pairs_are_counted_by_their_groups():
    photographs = ("animal", "object")
    found, total = count_copies(TRUTH, _images((), [("0", "1")]), photographs)
    assert (found.total(), total.total()) == (1, 1)
    found, total = count_copies(TRUTH, _images((), [("1", "2"), ("3", "4")]), photographs)
    assert (found.total(), total.total()) == (0, 1)
    assert count_pairs(TRUTH, _images((), [("0", "1"), ("3", "4")]), photographs) == (1, 2)
    assert count_pairs(TRUTH, _images((), [("3", "5")]), photographs) == (0, 0)


def test_planted_truth_names_originals_classes_and_what_the_seed_shows(pool):
    truth = read_truth(pool / "truth.csv")
    copies = [row for row in truth.values() if row["copy_of"]]
    assert (len(truth), len(copies)) == (8 * 8 + 9, 9)
    shown = read_labelled(sorted((pool / "seed").glob("*.tar")))
    assert [len(pictures) for pictures in shown.values()] == [6, 6]
    for stem, row in truth.items():
        assert (row["shown"] == "yes") == (int(row["label"]) in shown)
        assert truth[root_of(truth, stem)]["label"] == row["label"]
    with tarfile.open(pool / "crawl" / "00000.tar") as tar:
        assert {name.removesuffix(".jpg") for name in tar.getnames()} == truth.keys()


def test_shown_classes_have_a_long_tail_where_it_is_asked_for(pool, tmp_path):
    planted.write_pool(pool.parent / "data", tmp_path / "pool", 9, 2, 6, limit=8, tail=3)
    truth = read_truth(tmp_path / "pool" / "truth.csv")
    numbers = Counter(row["label"] for row in truth.values() if not row["copy_of"])
    shown = {row["label"] for row in truth.values() if row["shown"]}
    assert sorted(numbers.pop(label) for label in shown) == [3, 8]
    assert set(numbers.values()) == {8}
    assert all(row["copy_of"] in truth for row in truth.values() if row["copy_of"])


def test_the_number_of_a_strategy_is_the_least_that_retrieves_so_many(pool, runs):
    size, [strategy] = 14, [each for each in STRATEGIES if each.name == "knn"]
    number, retrieved = find_number(strategy, size, runs)  # of 12 seed images
    labelled = Labelled.read(pool, "shown=yes")
    assert labelled.score(runs.images(*strategy.ask(number, size))).images == size <= retrieved
    assert labelled.score(runs.images(*strategy.ask(number - 1, size))).images < size


def test_groups_are_scored_against_the_planted_copies(pool, runs):
    labelled = Labelled.read(pool, "shown=yes")
    out = runs.run("retrieve.threshold=-1")
    found, _, groups, largest, *_, kept = _score_groups(labelled, out)
    images = read_images(out)
    together = [stem for stem, row in labelled.truth.items() if row["copy_of"]
                and images[stem]["group"] is not None
                and images[stem]["group"] == images[row["copy_of"]]["group"]]  # fmt: skip
    share, _, total = found.partition(" of ")
    assert float(share) == pytest.approx(len(together) / int(total), abs=0.001)
    assert together
    sizes = Counter(row["group"] for row in images.values() if row["group"] is not None)
    assert (int(groups), int(largest)) == (len(sizes), max(sizes.values()))
    assert int(kept) == sum(row["decision"] == "kept" for row in images.values())


def test_seeds_of_the_pipeline_share_the_classes(pool, tmp_path):
    labels = lvd142m.write_seeds(pool, tmp_path)
    assert list(labels) == list(lvd142m.SEEDS)
    shown = read_labelled(sorted((pool / "seed").glob("*.tar")))
    assert sorted(label for own in labels.values() for label in own) == sorted(shown)
    for name, own in labels.items():
        assert len(list((tmp_path / name).glob("*.jpg"))) == sum(len(shown[n]) for n in own)
