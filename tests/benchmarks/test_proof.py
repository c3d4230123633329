"""The proof's pool is composed as it says, its arms keep what they say, its table adds up."""

from __future__ import annotations

import csv
import importlib
import io
from collections import Counter

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from scipy import stats
from skimage import data

from benchmarks.proof import table
from benchmarks.proof.arms import (
    ARMS,
    HASH_DISTANCE,
    difference_hash,
    precision,
    without_hash_copies,
)
from benchmarks.proof.drawn import drawn_classes
from benchmarks.proof.pool import TRUTH, Composition, compose, key_of, write
from benchmarks.proof.trainings import Length
from shared.datasets.dataset import DatasetSettings, list_parts
from shared.datasets.parts import PartReader
from shared.storage.files import write_json

SETTINGS = Composition(wanted=5, seeds=4, head=40, tail=5, most_copies=30)


@pytest.fixture(scope="module")
def pictures():
    return drawn_classes(14, 60, seed=3)


@pytest.fixture(scope="module")
def pool(pictures):
    return compose(pictures, SETTINGS)


def test_about_half_of_the_pool_is_unwanted(pool):
    kinds = Counter(item.kind for item in pool.items)
    assert kinds["wanted"] / len(pool.items) == pytest.approx(0.5, abs=0.02)
    assert kinds["junk"] / len(pool.items) == pytest.approx(SETTINGS.junk, abs=0.02)
    assert kinds["distractor"] > kinds["junk"]


def test_wanted_classes_have_a_long_tail_and_distractors_are_of_other_classes(pool):
    originals = [item for item in pool.items if item.copy_of < 0]
    numbers = Counter(item.label for item in originals if item.kind == "wanted")
    assert [numbers[label] for label in pool.wanted] == sorted(numbers.values(), reverse=True)
    assert (max(numbers.values()), min(numbers.values())) == (SETTINGS.head, SETTINGS.tail)
    others = {item.label for item in originals if item.kind == "distractor"}
    assert others
    assert not others & set(pool.wanted)


def test_copies_are_of_pictures_in_the_pool_and_few_pictures_have_most_of_them(pictures):
    pool = compose(pictures, SETTINGS)
    copies = [item for item in pool.items if item.copy_of >= 0]
    for item in copies:
        source = pool.items[item.copy_of]
        assert (source.kind, source.label, source.copy_of) == (item.kind, item.label, -1)
        assert item.data != source.data
    sizes = sorted(Counter(item.copy_of for item in copies).values(), reverse=True)
    assert sum(sizes[: max(1, len(sizes) // 5)]) > 0.45 * len(copies)
    assert sizes[len(sizes) // 2] <= 2
    wanted = sum(item.kind == "wanted" for item in copies)
    originals = sum(item.kind == "wanted" and item.copy_of < 0 for item in pool.items)
    assert wanted == round(SETTINGS.copies * originals)


def test_the_seed_is_of_the_wanted_classes_and_not_in_the_pool(pool):
    assert Counter(label for label, _ in pool.seeds) == dict.fromkeys(pool.wanted, SETTINGS.seeds)
    assert not {data for _, data in pool.seeds} & {item.data for item in pool.items}


def test_the_same_seed_composes_the_same_pool(pictures, pool):
    assert compose(pictures, SETTINGS) == pool
    other = compose(pictures, Composition(**vars(SETTINGS) | {"seed": 1}))
    assert other.items != pool.items


def test_too_few_pictures_are_refused(pictures):
    with pytest.raises(ValueError, match="are needed"):
        compose(pictures, Composition(wanted=5, seeds=30, head=40, tail=5))
    with pytest.raises(ValueError, match="too few to want"):
        compose(pictures, Composition(wanted=14))


def test_keys_are_those_of_stage_one_and_the_truth_names_each(pool, tmp_path):
    write(pool, tmp_path / "out")
    [part] = list_parts("pool", DatasetSettings(path=str(tmp_path / "out" / "pool")))
    with PartReader(part, tmp_path, ()) as reader:
        keys = [member.key for member in reader.members]
    assert sorted(keys) == [key_of(n) for n in range(len(pool.items))]
    with (tmp_path / "out" / TRUTH).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == [key_of(n) for n in range(len(pool.items))]
    assert [row["copy_of"] for row in rows] == [
        key_of(item.copy_of) if item.copy_of >= 0 else "" for item in pool.items
    ]
    keys = [row["key"] for row in rows]
    whole = precision(keys, tmp_path / "out" / TRUTH)
    originals = [item for item in pool.items if item.kind == "wanted" and item.copy_of < 0]
    assert whole == pytest.approx(len(originals) / len(keys))


def test_hashes_find_what_was_only_compressed_anew():
    pictures = {}
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        image = Image.fromarray(getattr(data, name)())
        for quality in (95, 40):
            stream = io.BytesIO()
            image.save(stream, "JPEG", quality=quality)
            pictures[f"{name}-{100 - quality}"] = stream.getvalue()
    pictures["twice"] = pictures["coffee-5"]
    kept = without_hash_copies(pictures)
    assert kept == ["astronaut-5", "chelsea-5", "coffee-5", "rocket-5"]
    one, other = (difference_hash(pictures[f"coffee-{n}"]) for n in (5, 60))
    assert np.bitwise_count(one ^ other) <= HASH_DISTANCE


def test_lengths_are_steps_or_passes_over_an_arm():
    assert Length("equal steps", 70).steps(1000, 8) == 70
    assert Length("equal epochs", 4, passes=True).steps(1000, 8) == 500


def test_intervals_are_those_of_students_t():
    values = [0.31, 0.35, 0.36]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert table.interval(values) == f"{50 * (low + high):.1f} ± {50 * (high - low):.1f}"


def test_a_finished_training_stands_in_the_table_at_once_and_is_not_made_again(tmp_path):
    figures = dict.fromkeys(table.FIGURES, 0.5)
    row = {"arm": "oracle", "length": "equal steps", "seed": 0, "images": 10, "seen": 80, **figures}
    assert not table.has(tmp_path, row)
    table.add(tmp_path, row)
    table.add(tmp_path, row | {"seed": 1, "knn": 0.7})
    assert table.has(tmp_path, row)
    assert "| oracle | 10 | equal steps | 80 | 2 | 60.0 ± " in (tmp_path / table.TEXT).read_text()
    table.add(tmp_path, row | {"knn": 0.7})
    assert len(table.read(tmp_path)) == 2


def test_other_steps_and_some_arms_stand_beside_what_the_proof_trains(tmp_path, monkeypatch):
    proof = importlib.import_module("benchmarks.proof.__main__")
    arms = {arm: {"images": 10, "digest": arm, "precision": 0.5} for arm in ARMS}
    asked = proof.asked_of(proof.FULL)
    write_json(tmp_path / proof.ARM_SIZES, {"asked": asked, "arms": arms})
    figures = dict.fromkeys(table.FIGURES, 0.5)
    monkeypatch.setattr(proof, "finish", lambda each: {**each.about, **figures})
    measured = {"arm": "random", "length": "equal steps", "seed": 0, "digest": "random"}
    measured |= {"steps": 600, "images": 10, "seen": 38400, **figures}
    write_json(tmp_path / "measured.json", [measured])
    words = ["--out", str(tmp_path), "--measured", str(tmp_path / "measured.json")]
    longer = [*words, "--steps", "2400", "--arm", "oracle", "--arm", "random", "--most", "3"]
    assert CliRunner().invoke(proof.main, longer).exit_code == 0
    found = [(row["arm"], row["length"], row["seed"], row["steps"]) for row in table.read(tmp_path)]
    assert found == [
        ("random", "equal steps", 0, 600),
        ("oracle", "2,400 steps", 0, 2400),
        ("random", "2,400 steps", 0, 2400),
        ("oracle", "2,400 steps", 1, 2400),
    ]
    refused = CliRunner().invoke(proof.main, [*words, "--loop", "--arm", "random"])
    assert refused.exit_code == 2
    assert "leave out --steps and --arm" in refused.output


def test_arms_are_compared_with_the_random_sample_of_their_own_seed(tmp_path):
    def add(arm, length, seed, knn):
        figures = dict.fromkeys(table.FIGURES, 0.5) | {"knn": knn}
        about = {"arm": arm, "length": length, "seed": seed}
        table.add(tmp_path, {**about, "images": 10, "seen": 80, **figures})

    def lines():
        return (tmp_path / table.TEXT).read_text().splitlines()

    def line(length, gains):
        told = table.interval(gains)
        return f"| oracle | {length} | {len(gains)} | {told}" + " | 0.0 ± 0.0" * 3 + " |"

    add("oracle", table.STEPS, 0, 0.35)
    assert not any("more than" in text for text in lines())
    for seed, random, oracle in ((0, 0.30, 0.35), (1, 0.50, 0.57), (2, 0.10, 0.13)):
        add("random", table.STEPS, seed, random)
        add("oracle", table.STEPS, seed, oracle)
    add("hash dedup", table.STEPS, 5, 0.9)
    assert lines()[-1] == line(table.STEPS, [0.05, 0.07, 0.03])
    for seed, random, oracle in ((0, 0.30, 0.31), (1, 0.50, 0.52)):
        add("random", table.EPOCHS, seed, random)
        add("oracle", table.EPOCHS, seed, oracle)
    assert lines()[-2] == line(table.EPOCHS, [0.01, 0.02])
    assert lines()[-1] == line("both", [0.05, 0.07, 0.03, 0.01, 0.02])
