"""Writes the page of a training, from the files of its OUT and nothing else."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shared.commands import called
from shared.errors import LvdError
from shared.pages.page import render_page
from shared.storage.files import reraise_disk_full, written_whole
from train.monitoring.look_files import PICTURES, kept_steps, look_file
from train.monitoring.metrics import METRICS, read_metrics
from train.monitoring.status import State, state_of
from train.report.charts import Group, draw_groups
from train.report.history import History, read_history
from train.report.verdict import verdict

PAGE = "report.html"
_SHOWN = ("attention", "patches")


@dataclass(frozen=True)
class Look:
    """The pictures of one step, `(what they show, JPEG)`."""

    title: str
    images: list[tuple[str, bytes]]


def write_page(out: Path) -> Path:
    """Write the page of the run in `out` and return its path; a run at work may go on meanwhile.

    The same files give the same bytes. Raises LvdError where `out` is no run of lvd-train, and
    where it has measured nothing yet.
    """
    history = History()
    if (out / METRICS).exists():
        history = read_history(read_metrics(out / METRICS))
    state = state_of(out, history.last)
    if not history:
        raise LvdError(
            f"{out} has measured nothing yet, so there is nothing to draw: let it come to its first "
            "lines of metrics.jsonl (log.every says how often)"
        )
    with reraise_disk_full(out), written_whole(out / PAGE) as beside:
        beside.write_text(_page(state, history), encoding="utf-8")
    return out / PAGE


def _page(state: State, history: History) -> str:
    recipe = state.run.get("recipe", {})
    origin = state.run.get("origin") or {}
    groups, looks = draw_groups(history, recipe), list(_looks(state.out))
    own = origin.get("name") == origin.get("parent")
    return render_page(
        Path(__file__).with_name("report.html"),
        title=f"Training of {origin.get('name', state.out.absolute().name)}",
        figures=[],
        contents=_contents(groups, looks),
        verdict=verdict(state, history),
        groups=groups,
        pictures=_bytes(state.out / PICTURES),
        looks=looks,
        note=recipe.get("note", ""),
        origin=origin,
        parent=f"{origin.get('parent')} in the configuration file" if own else origin.get("parent"),
        changes=[(key, _word(a), _word(b)) for key, (a, b) in origin.get("changes", {}).items()],
        settings=yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).splitlines(),
        about=_about(state.run),
        commands=_commands(state),
    )


def _contents(groups: list[Group], looks: list[Look]) -> list[tuple[str, str]]:
    return [
        ("verdict", "Verdict"),
        *((group.id, group.title) for group in groups),
        *([("looks", "Over time")] if looks else []),
        ("recipe", "Recipe"),
        ("next", "Where to go on"),
    ]


def _looks(out: Path) -> Iterator[Look]:
    steps = sorted({step for what in _SHOWN for step in kept_steps(out, what)})
    for step in steps:
        found = [(what, _bytes(out / look_file(what, step))) for what in _SHOWN]
        images = [(what, image) for what, image in found if image]
        yield Look("untrained" if step == 0 else f"after step {step:,}", images)


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _word(value: Any) -> str:
    return "not said" if value is None else str(value)


def _about(run: dict[str, Any]) -> list[str]:
    versions = [f"{name} {version}" for name, version in run.get("versions", {}).items()]
    return [*versions, f"images {run['data']}"] if "data" in run else versions


def _commands(state: State) -> list[tuple[str, str]]:
    out, train = shlex.quote(str(state.out)), called("lvd-train")
    commands = [("how far it is", f"{train} status {out}")]
    if state.saved is not None:
        look = f"{train} visualise --model {out} --images PICTURES"
        score = f"{train} eval knn --model {out} --model pixels --train A --test B"
        commands += [("what it sees, head by head", look), ("how good it is", score)]
    if (state.out / "model").exists():
        judge = f"--set retrieve.embedder={out}/model --crawl CRAWL --seed SEED"
        commands.append(("curate with it", f"{called('lvd-curate')} run {judge}"))
    return commands
