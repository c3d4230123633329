"""The loop on the proof's pool: does a model that was trained on a selection select better than before?

Round 0 is the arm of a random sample. Each round curates the pool with the model of the round before
as the judge of meaning, keeps as many images as that sample has, and trains on them for as many
steps, so that rounds differ in the judge alone. What finds copies stays. Beside them stands the arm
that `bundled` selects.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.proof import table
from benchmarks.proof.arms import precision
from benchmarks.proof.pool import POOL, SEED, TRUTH
from benchmarks.proof.trainings import Training, command, finish
from shared.storage.files import read_json, write_json

FILE, TEXT = "loop.json", "loop.md"
ROUNDS = 3
SELECTIONS = ("precision", "precision_half")
"""Shares of what is kept, and of the half of it that is most similar to the seed, that are wanted and
no copy of another."""
BUNDLED = "near dedup + retrieve"

Row = dict[str, Any]


def add_rounds(out: Path, random: Training, curation: Sequence[str]) -> Iterator[int]:
    """Do the rounds of one seed that are not done; yield each when it stands in the table.

    `random` is the training of the random sample, which may be done; `curation` are settings of
    `lvd-curate run`. Raises FailedError where a command fails.
    """
    before = random
    for number in range(ROUNDS + 1):
        about = {"round": number, "seed": random.about["seed"]}
        folder = out / "loop" / f"seed-{about['seed']}" / f"round-{number}"
        now = random
        if number:
            shards, trained = folder / "curate" / "shards", folder / "train"
            now = replace(random, about=about, shards=shards, out=trained)
        if not (any(_is(row, about) for row in read(out)) and (now.out / "model").exists()):
            if number:
                judge = (
                    f"retrieve.embedder={json.dumps(str(before.out / 'model'))}"  # quoted, as YAML
                )
                _curate(out, folder / "curate", judge, random.about["images"], curation)
                selected = _selection(folder / "curate", out)
                scored = finish(now)
            else:
                selected = {"precision": _arm(out, table.RANDOM)["precision"]}
                scored = _random_row(out, random)
            figures = {name: scored[name] for name in table.FIGURES}
            _add(out, {**about, "images": random.about["images"], **selected, **figures})
            yield number
        before = now


def _curate(out: Path, into: Path, judge: str, target: int, curation: Sequence[str]) -> None:
    sets = (*curation, judge, "retrieve.threshold=null", f"retrieve.target={target}")
    command(
        *("lvd-curate", "run", "--pipeline", "sample", "--crawl", out / "data" / POOL),
        *("--seed", out / "data" / SEED, "--out", into, "--work", out / "work", "--replace"),
        *("--executor", "inline", *(word for text in sets for word in ("--set", text))),
    )


def _random_row(out: Path, random: Training) -> Row:
    """Return the row of the random arm; trains it where its model is not there."""
    name = {key: random.about[key] for key in ("arm", "length", "seed")}
    if not (table.has(out, name) and (random.out / "model").exists()):
        table.add(out, finish(random))
    [row] = [row for row in table.read(out) if name.items() <= row.items()]
    return row


def _selection(curated: Path, out: Path) -> dict[str, float]:
    """Return the `SELECTIONS` of a finished run."""
    columns = ["key", "decision", "seed_similarity"]
    images = pq.read_table(curated / "reports" / "images.parquet", columns=columns).to_pylist()
    kept = [image for image in images if image["decision"] == "kept"]
    kept.sort(key=lambda image: (-image["seed_similarity"], image["key"]))
    keys = [image["key"] for image in kept]
    found = (precision(some, out / "data" / TRUTH) for some in (keys, keys[: len(keys) // 2]))
    return dict(zip(SELECTIONS, found, strict=True))


def _arm(out: Path, name: str) -> Row:
    arm: Row = read_json(out / "arms.json")["arms"][name]
    return arm


def read(out: Path) -> list[Row]:
    """Return the finished rounds."""
    file = out / FILE
    return list(read_json(file)) if file.exists() else []


def _add(out: Path, row: Row) -> None:
    rows = [each for each in read(out) if not _is(each, row)] + [row]
    write_json(out / FILE, rows)
    (out / TEXT).write_text(as_text(rows, _bundled_rows(out)))


def _is(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(row[name] == other[name] for name in ("round", "seed"))


def _bundled_rows(out: Path) -> list[Row]:
    """Return what is known of the selection by `bundled`: a row for each training of that arm."""
    selected = {"images": _arm(out, BUNDLED)["images"]}
    selected |= _selection(out / "runs" / BUNDLED.replace(" ", "-"), out)
    name = {"arm": BUNDLED, "length": table.STEPS}
    trained = [row for row in table.read(out) if name.items() <= row.items()]
    return [{**row, **selected} for row in trained] or [selected]


def as_text(rounds: Sequence[Row], bundled: Sequence[Row]) -> str:
    """Return a Markdown table: a line for each round, means over seeds with 95 % intervals.

    Below it, what each later round adds to the first, by the seeds that have both.
    """
    heads = ("images", "wanted and new", "of the nearer half", "trainings", *table.HEADS)
    lines = [f"| selected by | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for number in sorted({row["round"] for row in rounds}):
        name = f"{number}: the model of round {number - 1}" if number else "0: chance"
        lines.append(_line(name, [row for row in rounds if row["round"] == number]))
    lines += [_line("`bundled`", bundled), ""]
    for number in range(2, ROUNDS + 1):
        lines += _gain(rounds, number)
    return "\n".join(lines) + "\n"


def _line(name: str, rows: Sequence[Row]) -> str:
    trainings = sum("knn" in row for row in rows)
    first = [_figure(rows, figure) for figure in SELECTIONS]
    rest = [_figure(rows, figure) for figure in table.FIGURES]
    return f"| {name} | {rows[0]['images']:,} | {' | '.join([*first, str(trainings), *rest])} |"


def _figure(rows: Sequence[Row], name: str) -> str:
    values = [row[name] for row in rows if name in row]
    if not values:
        return ""
    return table.interval(values[:1] if len(set(values)) == 1 else values)


def _gain(rounds: Sequence[Row], number: int) -> Iterator[str]:
    first = {row["seed"]: row for row in rounds if row["round"] == 1}
    pairs = [(row, first[row["seed"]]) for row in rounds if row["round"] == number]
    if not pairs:
        return
    names = ("precision", *table.FIGURES)
    gains = [table.interval([row[name] - one[name] for row, one in pairs]) for name in names]
    heads = ("wanted and new", *table.HEADS)
    told = ", ".join(f"{head} {gain}" for head, gain in zip(heads, gains, strict=True))
    yield f"Round {number} less round 1, in points: {told}."
