"""The loop: what a model selects trains the model that selects the next round. Read this first.

Every step is a whole command of one of the two stages, in a process of its own: each goes on after
a kill by itself, and what an earlier round left in the work folder is used again.
"""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from curate.loop.children import run_child
from curate.loop.request import CHECKED, LoopRequest
from curate.loop.round import GO_ON, Round
from curate.loop.table import Finished, check_truth, read_table, write_table
from curate.loop.text import as_text
from curate.plan import make_plan, writable
from curate.report.tables import read_optional
from shared import bundled
from shared.datasets import DatasetSettings, list_parts
from shared.embedders import BUNDLED, identity, in_folder, local_folder, weights_digest
from shared.progress import say
from shared.storage import disk_full_is_said, fingerprint, locked, write_json

SAMPLE = "builtin:crawl"
SCORED = "scored.json"


def loop(asked: LoopRequest) -> str:
    """Do what is left to do of the loop in `asked.out`, and return its table as text.

    Raises LvdError, in one line, for what the user can mend; the same command goes on from there.
    """
    _check_labels(asked)
    writable(asked.out, "--out")
    with disk_full_is_said(asked.out), _alone(asked.out) as hold:
        if not asked.is_begun():
            _check(asked, hold)
        asked.begin()
        rounds, inputs = [], _inputs(asked)
        worked = False
        for number in range(1, asked.rounds + 1):
            rounds.append(Round(asked, number, rounds[-1] if rounds else None, hold, inputs))
            worked = rounds[-1].run() or worked
        try:
            worked = _score(asked, rounds, hold) or worked
        finally:
            text = _table(asked, rounds)
    if not worked:
        say(f"{asked.out} is complete and up to date: nothing to do")
    return text


def _inputs(asked: LoopRequest) -> str:
    """Return what tells the images and the first embedder from those of another call."""
    plan = make_plan(asked.request, asked.work.absolute())
    network = identity(plan.embedder)
    for machine in ("device", "precision"):
        network.pop(machine, None)
    parts = [[part.fingerprint for part in data.parts] for data in plan.datasets]
    return fingerprint([network, parts])


@contextmanager
def _alone(out: Path) -> Iterator[int]:
    """Keep other loops from `out`; yield a lock for children to hold, free when they have ended.

    A killed loop's child may be saving still: it is waited for.
    """
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".lock", out), (out / ".step.lock").open("w") as step:
        try:
            fcntl.flock(step, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say(f"waiting for what a killed loop left at work in {out}")
            fcntl.flock(step, fcntl.LOCK_EX)
        yield step.fileno()


def _check_labels(asked: LoopRequest) -> None:
    """Find out now what would be found wrong only when the table is made."""
    if asked.truth:
        check_truth(asked.truth)
    for option, path in (("--knn-train", asked.knn_train), ("--knn-test", asked.knn_test)):
        if path is not None:
            list_parts(option, DatasetSettings(path=path))


def _check(asked: LoopRequest, hold: int) -> None:
    """Find out now what would be found wrong only when the first training starts."""
    make_plan(asked.request, asked.work.absolute())
    with tempfile.TemporaryDirectory() as folder:
        Image.new("RGB", (1, 1)).save(Path(folder) / "0.png")
        run_child(
            asked.train(folder, asked.out / "round-1" / "train", "--dry-run"),
            log=asked.out / CHECKED,
            title=f"check recipe {asked.recipe}",
            hold=[hold],
        )
    _score(asked, [], hold)  # says what is wrong with the labelled images, if it can score one


def _score(asked: LoopRequest, rounds: Sequence[Round], hold: int) -> bool:
    """Score every round's model, and a first embedder that is a folder, by k-NN on labelled images.

    Returns whether there was anything to do.
    """
    if asked.knn_train is None or asked.knn_test is None:
        return False
    first = asked.request.embedder.settings
    models = {_first_model(asked): weights_digest(first)} if in_folder(first) else {}
    models |= {str(of.model): of.weights for of in rounds}
    if not models:
        return False
    labelled = {"--knn-train": asked.knn_train, "--knn-test": asked.knn_test}
    parts = {option: list_parts(option, DatasetSettings(path=p)) for option, p in labelled.items()}
    wanted = {
        "models": models,
        **labelled,
        "parts": {option: [part.fingerprint for part in of] for option, of in parts.items()},
    }
    place = asked.out / "knn"
    if read_optional(place / SCORED) == wanted:
        return False
    run_child(
        [
            *("lvd-train", "eval", "knn", "--train", asked.knn_train, "--test", asked.knn_test),
            *(word for model in models for word in ("--model", model)),
            *("--out", str(place), "--cache", str(asked.work.parent / "features")),
        ],
        log=asked.out / "knn.log",
        title="score the models by k-NN",
        hold=[hold],
        note=GO_ON,
    )
    write_json(place / SCORED, wanted)
    return True


def _first_model(asked: LoopRequest) -> str:
    settings = asked.request.embedder.settings
    return bundled.NAME if settings.model == BUNDLED else str(local_folder(settings))


def _table(asked: LoopRequest, rounds: Sequence[Round]) -> str:
    """Write the loop's table and return it as text."""
    scores: dict[str, dict[str, float]] = {}
    if asked.knn_train is not None:
        for figure in read_optional(asked.out / "knn" / "table.json").get("figures", []):
            scores.setdefault(figure["model"], {})[figure["setting"]] = figure["value"]
    first = asked.request.embedder.settings
    table = read_table(
        [
            Finished(of.embedder, of.curation, of.seconds, scores.get(str(of.model), {}))
            for of in rounds
        ],
        recipe=asked.recipe,
        truth=asked.truth or _sample_truth(asked),
        first_knn=scores.get(_first_model(asked)) if in_folder(first) else None,
    )
    text = as_text(table)
    write_table(table, text, asked.out)
    return text


def _sample_truth(asked: LoopRequest) -> Path | None:
    """Return the truth of the built-in sample, where that is the crawl."""
    truth = asked.work / "sample" / "truth.csv"
    built_in = asked.request.crawl.settings.path == SAMPLE
    return truth if built_in and truth.exists() else None
