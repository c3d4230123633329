"""Evaluates frozen models: each model in each task, from features to one table of scores."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import cache as once
from pathlib import Path

from shared.errors import LvdError
from shared.progress import say
from train.evaluation import protocol
from train.evaluation.classification.holdout import check_common
from train.evaluation.classification.knn import knn
from train.evaluation.classification.linear import linear_probe
from train.evaluation.classification.logistic import logistic
from train.evaluation.dense.attention import attention
from train.evaluation.dense.depth import depth
from train.evaluation.dense.segmentation import segment
from train.evaluation.features import Bank, bank
from train.evaluation.retrieval.ranking import retrieval
from train.evaluation.scores import Score
from train.evaluation.settings import EvalSettings
from train.evaluation.table import Row, Table
from train.evaluation.tasks import LABELLED, named
from train.frozen.loading import load_models
from train.frozen.model import JoinedModel

Banks = Callable[[], tuple[Bank, Bank]]


def evaluate(
    names: Sequence[str],
    tasks: Sequence[str],
    places: Mapping[str, str | None],
    settings: EvalSettings,
    *,
    cache: Path,
    size: int | None = None,
    after_each: Callable[[Table], None] = lambda _: None,
) -> Table:
    """Return the scores of every named model in every task, in the order they are asked for.

    `places` are the options train, test and data, which `check_request` and `check_data` have seen.
    `size` in pixels stands for the models' own; `after_each` model gets what has been found by then.
    Raises LvdError where a model cannot be loaded,
    before anything is computed; a task that fails for a model leaves the others as they are.
    """
    models = load_models(
        names, size=size, precision=settings.precision, device=settings.device, seed=settings.seed
    )
    given = named(places)
    notes: dict[str, None] = {}
    rows = []
    for model in models:
        say(f"{model.name}: {', '.join(tasks)}")
        banks = _labelled(model, given, settings, cache)
        scores: list[Score] = []
        failures: dict[str, str] = {}
        for task in tasks:
            try:
                if task in LABELLED:
                    notes[_about(*banks())] = None
                found = _scores(task, model, banks, given, settings, cache)
                if task in LABELLED:
                    differs = protocol.classification(task, model.parts, settings.resize)
                    found = [score.with_sentences(differs) for score in found]
                scores += found
            except LvdError as error:
                failures[task] = str(error)
            except Exception as error:  # what others have computed is worth more than an early end
                traceback.print_exc()
                failures[task] = " ".join(f"{type(error).__name__}: {error}".split())
        rows.append(Row(model.name, model.fingerprint, model.notes, scores, failures))
        table = Table(tasks, rows, places, list(notes), settings.model_dump(mode="json"))
        after_each(table)
    return table


def _scores(
    task: str,
    model: JoinedModel,
    banks: Banks,
    places: Mapping[str, str],
    settings: EvalSettings,
    cache: Path,
) -> list[Score]:
    device = model.parts[0].device
    match task:
        case "knn":
            return knn(*banks(), settings.knn, device)
        case "linear":
            return linear_probe(*banks(), settings.linear, device)
        case "logreg":
            return logistic(*banks(), settings.logreg)
        case "retrieval":
            return retrieval(model, places["data"], settings.retrieval, cache)
        case "segment":
            return segment(model, places["train"], places["test"], settings.segment, cache)
        case "depth":
            return depth(model, places["train"], places["test"], settings.depth, cache)
        case "attention":
            return attention(model, places["data"], settings.attention)
    raise ValueError(f"no task {task!r}")


def _labelled(
    model: JoinedModel, places: Mapping[str, str], settings: EvalSettings, cache: Path
) -> Banks:
    """Return what gives the labelled images of train and test as the model sees them.

    They are read when they are first wanted, once for all tasks.
    """

    @once
    def banks() -> tuple[Bank, Bank]:
        train, test = (
            bank(
                model,
                places[option],
                role=f"--{option}",
                cache=cache,
                batch_size=settings.batch_size,
                workers=settings.workers,
                resize=settings.resize,
            )
            for option in ("train", "test")
        )
        return train, test

    return banks


def _about(train: Bank, test: Bank) -> str:
    check_common(train.labels, test.labels)
    classes = len(set(train.labels))
    return f"{len(train):,} training images of {classes:,} classes, {len(test):,} test images"
