"""The proof's loop: each round's model judges the next one, done rounds stay, its table adds up."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.proof import loop, table
from benchmarks.proof.pool import TRUTH
from benchmarks.proof.trainings import Training
from shared.storage.files import write_json

FIGURES = dict.fromkeys(table.FIGURES, 0.5)
KINDS = ["wanted", "wanted", "distractor", "junk"]


def write_run(out: Path, kept: list[str], similarity: list[float]) -> None:
    (out / "reports").mkdir(parents=True)
    images = {"key": kept, "decision": ["kept"] * len(kept), "seed_similarity": similarity}
    pq.write_table(pa.table(images), out / "reports" / "images.parquet")


@pytest.fixture
def proof(tmp_path):
    (tmp_path / "data").mkdir()
    with (tmp_path / "data" / TRUTH).open("w", newline="") as file:
        truth = csv.writer(file)
        truth.writerow(["key", "kind", "copy_of"])
        truth.writerows([[str(n), kind, ""] for n, kind in enumerate(KINDS)])
    arms = {name: {"images": 4, "precision": 0.5} for name in (table.RANDOM, loop.BUNDLED)}
    write_json(tmp_path / "arms.json", {"arms": arms})
    write_run(tmp_path / "runs" / "near-dedup-+-retrieve", list("0213"), [0.9, 0.8, 0.7, 0.6])
    return tmp_path


@pytest.fixture
def calls(proof, monkeypatch):
    """Curations, by the judge that they name, and trainings, by their shards, in their order."""
    seen: list[str] = []

    def command(name: str, *words: object) -> None:
        [judge] = [str(word) for word in words if str(word).startswith("retrieve.embedder=")]
        out = Path(str(words[words.index("--out") + 1]))
        seen.append(f"{out.parent.name} by {Path(judge.split('=')[1].strip(chr(34))).parts[-3:-1]}")
        if not out.exists():
            write_run(out, list("0123"), [0.9, 0.8, 0.7, 0.6])

    def finish(training: Training) -> dict:
        seen.append(f"train {training.out.name}")
        (training.out / "model").mkdir(parents=True)
        return {**training.about, **FIGURES}

    monkeypatch.setattr(loop, "command", command)
    monkeypatch.setattr(loop, "finish", finish)
    return seen


def random_training(proof: Path) -> Training:
    about = {"arm": table.RANDOM, "length": table.STEPS, "seed": 0, "images": 4, "seen": 8}
    return Training(about, proof / "arms" / "random", proof / "data", proof / "random-0", ())


def test_each_round_is_judged_by_the_model_before_and_a_done_one_stays(proof, calls):
    rounds = loop.add_rounds(proof, random_training(proof), ())
    assert [next(rounds), next(rounds)] == [0, 1]
    text = (proof / loop.TEXT).read_text()
    assert "| 1: the model of round 0 | 4 | 50.0 | 100.0 | 1 | 50.0 |" in text
    assert "| `bundled` | 4 | 50.0 | 50.0 | 0 |" in text
    del calls[:]
    assert list(loop.add_rounds(proof, random_training(proof), ())) == [2, 3]
    assert calls == [
        "round-2 by ('round-1', 'train')",
        "train train",
        "round-3 by ('round-2', 'train')",
        "train train",
    ]
    assert list(loop.add_rounds(proof, random_training(proof), ())) == []


def test_a_random_arm_that_is_trained_is_not_trained_again(proof, calls):
    row = {**random_training(proof).about, **FIGURES, "knn": 0.25}
    table.add(proof, row)
    (proof / "random-0" / "model").mkdir(parents=True)
    assert next(loop.add_rounds(proof, random_training(proof), ())) == 0
    assert calls == []
    assert "| 0: chance | 4 | 50.0 |  | 1 | 25.0 |" in (proof / loop.TEXT).read_text()


def test_gains_are_those_over_the_first_round_of_the_same_seed():
    rounds = [
        {"round": number, "seed": seed, "images": 4, "precision": value, **FIGURES}
        for number, seed, value in (
            (1, 0, 0.4),
            (1, 1, 0.5),
            (2, 0, 0.5),
            (2, 1, 0.62),
            (3, 1, 0.4),
        )
    ]
    text = loop.as_text(rounds, [{"images": 4, "precision": 0.7}])
    assert "| 2: the model of round 1 | 4 | 56.0 ± " in text
    expected = table.interval([0.1, 0.12])
    assert f"Round 2 less round 1, in points: wanted and new {expected}, k-NN 0.0 ± 0.0" in text
    assert "Round 3 less round 1, in points: wanted and new -10.0, k-NN 0.0," in text
