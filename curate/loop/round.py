"""A round of the loop: curate, and train on what was kept.

The files of the steps tell which are done: a curation's run.json, a training's done.json.
`round.json` adds the inputs of each step (the model that judged meaning, the curation that was
trained on), so that a step begins anew when the one before it changed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from curate.execution.output import RUN
from curate.export.selection_list import list_files
from curate.loop.children import RESUMES, run_child
from curate.loop.request import LoopRequest
from curate.report.tables import read_funnel
from shared.errors import LvdError
from shared.progress import say
from shared.storage.files import digest_file, read_json, read_optional, set_aside, write_json

RECORD = "round.json"


@dataclass(frozen=True)
class Round:
    """One round, in its folder."""

    request: LoopRequest
    number: int
    before: Round | None
    """The round whose model judges meaning in this one; None in the first."""
    hold: int | None
    """File descriptor of the lock that a child keeps while it lives, even if we are killed."""
    inputs: str = ""
    """Fingerprint of crawl, seed, holdouts and the first embedder."""

    @property
    def folder(self) -> Path:
        """Everything of the round, its logs too."""
        return self.request.out / f"round-{self.number}"

    @property
    def curation(self) -> Path:
        """The OUT of `lvd-curate run`."""
        return self.folder / "curate"

    @property
    def training(self) -> Path:
        """The OUT of `lvd-train run`."""
        return self.folder / "train"

    @property
    def model(self) -> Path:
        """What judges meaning in the next round."""
        return self.training / "model"

    @property
    def weights(self) -> str:
        """The sha256 of the model's weights."""
        return digest_file(self.model / "model.safetensors")

    @property
    def embedder(self) -> str:
        """Name of the embedder that judges meaning in this round, for readers."""
        first = self.request.curation.embedders["retrieve"].name
        return f"model of round {self.before.number}" if self.before else first

    @property
    def seconds(self) -> dict[str, float]:
        """Duration of each step, over all its tries that were not killed."""
        return self._record.get("seconds", {})

    def run(self) -> bool:
        """Run the steps that are not done; return whether there were any."""
        worked, reused = False, []
        for step, is_done, work in (
            ("curate", self._is_curated, self._curate),
            ("train", self._is_trained, self._train),
        ):
            if is_done():
                reused.append(step)
                continue
            self._report_reused(reused)
            worked, reused = True, []
            with self._timed(step):
                work()
            if not is_done():
                raise LvdError(
                    f"{self._title(step)} ended early, its log is {self._log(step)}{RESUMES}"
                )
        self._report_reused(reused)
        return worked

    def _report_reused(self, steps: list[str]) -> None:
        if steps:
            say(self._title(f"{', '.join(steps)}: done before{self._kept()}"))

    def _is_curated(self) -> bool:
        done = (self.curation / RUN).exists()
        known = (self._record.get("judged_by"), self._record.get("inputs", ""))
        return done and known == (self._judged_by, self.inputs)

    def _curate(self) -> None:
        model = self.before.model if self.before else None
        command = self.request.curate_command(self.curation, model)
        self._run("curate", f"curate; {self.embedder} judges meaning", command)
        self._update(judged_by=self._judged_by, inputs=self.inputs)
        say(self._title(f"curated{self._kept()}"))

    def _is_trained(self) -> bool:
        marks = (self.training / "done.json", self.model / "model.safetensors")
        return (
            all(mark.exists() for mark in marks) and self._record.get("trained_on") == self._address
        )

    def _train(self) -> None:
        if not read_funnel(self.curation)["decisions"]["kept"]:
            raise LvdError(
                f"{self._title('nothing was kept')} to train on: see "
                f"{self.curation / 'reports' / 'index.html'}, and begin another --out with other "
                "settings (--curate-set retrieve.threshold=...)"
            )
        if self._record.get("trained_on") != self._address:
            if self.training.exists():
                aside = set_aside(self.training)
                say(self._title(f"what was trained on another curation is now in {aside}"))
            self._update(trained_on=self._address)
        images = ["--shards", str(self.curation / "shards")]
        if list_files(self.curation):
            images = ["--select", str(self.curation)]
        command = self.request.train_command(images, self.training)
        self._run("train", f"train {self.request.recipe} on them", command)

    @cached_property
    def _judged_by(self) -> str:
        """Weights of the model that has to judge meaning in this round; "" in the first."""
        return self.before.weights if self.before else ""

    @property
    def _address(self) -> str:
        """Identity of the round's curation."""
        return read_json(self.curation / RUN)["address"]

    @property
    def _record(self) -> dict[str, Any]:
        return read_optional(self.folder / RECORD)

    def _update(self, **values: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / RECORD, {**self._record, **values})

    def _run(self, step: str, what: str, command: list[str]) -> None:
        log = self._log(step)
        run_child(command, log=log, title=self._title(what), hold=[self.hold], note=RESUMES)

    def _log(self, step: str) -> Path:
        return self.folder / f"{step}.log"

    def _title(self, what: str) -> str:
        return f"round {self.number} of {self.request.rounds} · {what}"

    def _kept(self) -> str:
        funnel = read_funnel(self.curation)
        return f", {funnel['decisions']['kept']:,} of {funnel['images']:,} images kept"

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            took = self.seconds.get(step, 0.0) + time.monotonic() - began
            self._update(seconds={**self.seconds, step: took})
