"""The demo's closing text: what happened, in plain English, from the files of its steps."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curate.demo.truth import check_decisions, read_truth
from curate.report.tables import read_funnel
from shared.embedders.settings import BUNDLED
from shared.progress import WIDTH, duration, printable
from shared.storage.files import read_optional

REASONS = {
    "corrupt": "broken",
    "unsafe": "unsafe",
    "low_quality": "too small or blank",
    "holdout": "held out for tests",
    "duplicate": "copies of others",
    "irrelevant": "unlike the seed",
    "over_budget": "over the budget",
}
"""Decisions in plain words, to follow a number."""
FIRST = ("duplicate", "irrelevant")
"""Reasons that are named first; the others follow in the order above."""
KINDS = {
    "photograph": "photographs of what the seed shows",
    "object": "photographs of other things",
    "texture": "close-ups of surfaces",
    "chart": "drawn charts and pages",
    "screenshot": "drawn charts and pages",
    "document": "drawn charts and pages",
    "placeholder": "placeholders",
}
"""Kinds in the sample's truth, in plain words."""
ONE = {
    "photographs of other things": "photograph of another thing",
    "close-ups of surfaces": "close-up of a surface",
    "drawn charts and pages": "drawn chart or page",
    "placeholders": "placeholder",
    "others": "other",
}
"""The same of one picture."""
WANTED = "photograph"
"""The kind of the seed's pictures."""


@dataclass(frozen=True)
class Places:
    """Folders of the demo's results."""

    curation: Path
    training: Path
    look: Path
    sample: Path

    @property
    def picture(self) -> Path:
        """The one picture that shows it all."""
        return self.look / "picture.png"

    @property
    def overview(self) -> Path:
        """What both models see, side by side, as `lvd-train visualise` draws it."""
        return self.look / "overview-01.png"


def summary(places: Places) -> str:
    """Return what happened and where the results are, in lines of at most 100 columns.

    Only a path may be longer. Raises LvdError where the curation has not finished.
    """
    funnel = read_funnel(places.curation)
    paragraphs = [
        _curated(funnel, read_optional(places.curation / "run.json")),
        _truth(places),
        _trained(places.training / "metrics.jsonl", funnel["decisions"]["kept"]),
    ]
    lines = ["", "What happened", *(line for text in paragraphs for line in _wrapped(text))]
    lines += ["", "Look at", *_listed(_files(places))]
    lines += ["", "Next", *_listed(NEXT)]
    return "\n".join(lines) + "\n"


NEXT = (
    ("make loop", "let the new model choose, and train the next one"),
    ("make curate SEED=my_photos CRAWL='crawl/*.tar'", "the same with pictures of your own"),
    ("make train RECIPE=tiny", "then learn from those; pipelines.yaml has recipes"),
)


def _curated(funnel: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    counts = funnel["decisions"]
    names = [*FIRST, *(name for name in REASONS if name not in FIRST)]
    dropped = [f"{counts[name]:,} were {REASONS[name]}" for name in names if counts.get(name)]
    judge = f"by {run['embedder']}"
    if BUNDLED.keys() & set(run["embedder"].split(" and ")):
        judge += "; what is bundled this project trained itself, without labels"
    return (
        f"From {funnel['images']:,} pictures, made up here to look like a crawl, "
        f"{counts['kept']:,} were kept: {_and(dropped)}. What is alike was judged {judge}."
    )


def _truth(places: Places) -> str:
    """Return how right the run was; "" where the truth is not there."""
    truth = read_truth(places.sample)
    if truth is None:
        return ""
    findings = check_decisions(places.curation, truth)
    kept = Counter[str]()
    for kind, count in findings.kept.items():
        kept[KINDS.get(kind, "others")] += count
    wanted = kept.pop(KINDS[WANTED], 0)
    others = _and(
        [f"{count:,} {ONE[kind] if count == 1 else kind}" for kind, count in kept.most_common()]
    )
    be = "the other is" if kept.total() == 1 else "the others are"
    return (
        f"What is true of them is known here. Of {findings.planted:,} planted copies, "
        f"{findings.found:,} were found; of {findings.called:,} pictures that were called copies, "
        f"{findings.found:,} are. Of {findings.kept.total():,} that were kept, {wanted:,} are "
        f"{KINDS[WANTED]}{others and f'; {be} {others}'}."
    )


def _trained(path: Path, pictures: int) -> str:
    metrics = _metrics(path)
    known = [line["recognition"] for line in metrics if isinstance(line.get("recognition"), float)]
    text = (
        f"A small vision transformer then learned from these {pictures:,}, without labels"
        f"{_for_how_long(metrics)}."
    )
    if len(known) < 2:
        return text
    return (
        f"{text} Shown one of them twice, cut out and coloured differently, it finds it again among "
        f"the others in {known[-1]:.0%} of cases; untrained, in {known[0]:.0%}. That is a first "
        "look: a model that is good for something learns for an hour or more, as the bundled one did."
    )


def _metrics(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []


def _for_how_long(metrics: Iterable[Mapping[str, Any]]) -> str:
    """Return the time of all steps; a line of metrics has their mean time since the line before."""
    seconds, before = 0.0, -1
    for line in metrics:
        if "step_seconds" in line:
            seconds += line["step_seconds"] * (line["step"] - before)
            before = line["step"]
    if not seconds:
        return ""
    return f", for {seconds:.0f} seconds" if seconds < 100 else f", for {duration(seconds)}"


def _files(places: Places) -> Sequence[tuple[str, str]]:
    curation, look = places.curation, places.look
    return (
        (str(places.picture), "what was dropped, and what both models see in the rest"),
        (str(look / "index.html"), "the same of both models, in detail"),
        (str(curation / "reports" / "index.html"), "what became of the pictures, and why"),
        (str(curation / "shards"), "the kept pictures, to train on (WebDataset)"),
        (str(places.training / "model"), "the new model, for timm or as an embedder"),
    )


def _and(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  ")


def _listed(entries: Sequence[tuple[str, str]]) -> list[str]:
    """Return names and what they are: side by side, or below one another where that is too wide."""
    width = max(len(name) for name, _ in entries)
    if width + max(len(meaning) for _, meaning in entries) + 4 <= WIDTH:
        return [f"  {printable(name):<{width}}  {meaning}" for name, meaning in entries]
    return [
        line for name, meaning in entries for line in (f"  {printable(name)}", f"      {meaning}")
    ]
