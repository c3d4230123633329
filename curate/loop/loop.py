"""The loop: each round trains a model on its selection, and that model selects the next round.

Every step is a whole command of one of the two stages in a process of its own. Each goes on after a
kill by itself, and reuses the results of earlier rounds in the work folder. Read this module first.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from curate.loop.children import RESUMES, run_child
from curate.loop.request import CHECKED, LoopRequest
from curate.loop.round import Round
from curate.loop.table import Finished, check_truth, read_table, write_table
from curate.loop.text import as_text
from curate.plan import check_export, make_plan
from shared.datasets.dataset import DatasetSettings, list_parts
from shared.embedders.embedder import identity, local_folder, weights_digest
from shared.embedders.settings import BUILT_IN, in_folder
from shared.progress import say
from shared.storage.files import fingerprint, read_optional, reraise_disk_full, write_json
from shared.storage.locks import busy, locked
from shared.storage.places import check_writable

SAMPLE = "builtin:crawl"
SCORED = "scored.json"


def loop(request: LoopRequest) -> str:
    """Run the steps of the loop in `request.out` that are not done, and return its table as text.

    Raises LvdError, in one line, for mistakes of the user; the same command goes on from there.
    """
    _check_labels(request)
    check_writable(request.out, "--out")
    with reraise_disk_full(request.out), _alone(request.out) as hold:
        if not request.is_begun():
            _check(request, hold)
        request.record()
        rounds: list[Round] = []
        inputs = _inputs(request)
        worked = False
        for number in range(1, request.rounds + 1):
            rounds.append(Round(request, number, rounds[-1] if rounds else None, hold, inputs))
            worked = rounds[-1].run() or worked
        try:
            worked = _score(request, rounds, hold) or worked
        finally:
            text = _table(request, rounds)
    if not worked:
        say(f"{request.out} is complete and up to date: nothing to do")
    return text


def _inputs(request: LoopRequest) -> str:
    """Return a fingerprint of the images and the first embedder."""
    plan = make_plan(request.curation, request.work.absolute())
    network = [identity(each) for each in plan.embedders.values()]
    parts = [[part.fingerprint for part in data.parts] or data.texts for data in plan.datasets]
    return fingerprint([network, parts])


@contextmanager
def _alone(out: Path) -> Iterator[int | None]:
    """Keep other loops from `out`; yield a lock for children to hold, free when they have ended.

    A killed loop's child may be saving still: it is waited for.
    """
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".lock", busy(out)):
        waiting = f"waiting for what a killed loop left at work in {out}"
        with locked(out / ".step.lock", None, waiting) as step:
            yield step


def _check_labels(request: LoopRequest) -> None:
    """Raise now the errors in labels that would otherwise come when the table is made."""
    if request.truth:
        check_truth(request.truth)
    for option, path in (("--knn-train", request.knn_train), ("--knn-test", request.knn_test)):
        if path is not None:
            list_parts(option, DatasetSettings(path=path))


def _check(request: LoopRequest, hold: int | None) -> None:
    """Raise now the errors that would otherwise come when the first training starts."""
    check_export(make_plan(request.curation, request.work.absolute()))
    with tempfile.TemporaryDirectory() as folder:
        Image.new("RGB", (1, 1)).save(Path(folder) / "0.png")
        run_child(
            request.train_command(
                ["--shards", folder], request.out / "round-1" / "train", "--dry-run"
            ),
            log=request.out / CHECKED,
            title=f"check recipe {request.recipe}",
            hold=[hold],
        )
    _score(request, [], hold)  # raises errors in the labelled images, if it can score a model


def _score(request: LoopRequest, rounds: Sequence[Round], hold: int | None) -> bool:
    """Score every round's model, and a first embedder that is a folder, by k-NN on labelled images.

    Returns whether there was anything to do.
    """
    if request.knn_train is None or request.knn_test is None:
        return False
    first = request.curation.embedders["retrieve"].settings
    models = {_first_model(request): weights_digest(first)} if in_folder(first) else {}
    models |= {str(of.model): of.weights for of in rounds}
    if not models:
        return False
    labelled = {"--knn-train": request.knn_train, "--knn-test": request.knn_test}
    parts = {option: list_parts(option, DatasetSettings(path=p)) for option, p in labelled.items()}
    wanted = {
        "models": models,
        **labelled,
        "parts": {option: [part.fingerprint for part in of] for option, of in parts.items()},
    }
    place = request.out / "knn"
    if read_optional(place / SCORED) == wanted:
        return False
    run_child(
        [
            *("lvd-train", "eval", "knn", "--train", request.knn_train, "--test", request.knn_test),
            *(word for model in models for word in ("--model", model)),
            *("--out", str(place), "--cache", str(request.work.parent / "features")),
        ],
        log=request.out / "knn.log",
        title="score the models by k-NN",
        hold=[hold],
        note=RESUMES,
    )
    write_json(place / SCORED, wanted)
    return True


def _first_model(request: LoopRequest) -> str:
    settings = request.curation.embedders["retrieve"].settings
    if settings.model.startswith(BUILT_IN):
        return settings.model.removeprefix(BUILT_IN)
    return str(local_folder(settings))


def _table(request: LoopRequest, rounds: Sequence[Round]) -> str:
    """Write the loop's table and return it as text."""
    scores: dict[str, dict[str, float]] = {}
    if request.knn_train is not None:
        for figure in read_optional(request.out / "knn" / "table.json").get("figures", []):
            scores.setdefault(figure["model"], {})[figure["setting"]] = figure["value"]
    first = request.curation.embedders["retrieve"].settings
    table = read_table(
        [
            Finished(of.embedder, of.curation, of.seconds, scores.get(str(of.model), {}))
            for of in rounds
        ],
        recipe=request.recipe,
        truth=request.truth or _sample_truth(request),
        first_knn=scores.get(_first_model(request)) if in_folder(first) else None,
    )
    text = as_text(table)
    write_table(table, text, request.out)
    return text


def _sample_truth(request: LoopRequest) -> Path | None:
    """Return the truth of the built-in sample, where that is the crawl."""
    truth = request.work / "sample" / "truth.csv"
    built_in = request.curation.crawl.settings.path == SAMPLE
    return truth if built_in and truth.exists() else None
