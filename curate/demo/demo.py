"""The first minute: curate the built-in sample, train on what was kept, and look at both models.

Each step is a whole command in a process of its own, which goes on after a kill by itself. A second
call reuses the results of the first; `demo.json` records which curation they belong to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from curate.demo.picture import choose_pictures, draw_picture
from curate.demo.summary import Places, summary
from curate.execution.output import RUN
from curate.loop.children import RESUMES, run_child
from curate.loop.request import recipe_as_written
from curate.report.tables import read_funnel
from shared import bundled
from shared.errors import LvdError
from shared.progress import say
from shared.storage.files import (
    digest_file,
    fingerprint,
    read_json,
    read_optional,
    reraise_disk_full,
    set_aside,
    write_json,
)
from shared.storage.locks import busy, locked
from shared.storage.places import check_writable

RECIPE = "tiny"
FINER = 3
"""Pictures are shown at so many times the bundled model's own input size, for finer maps."""


def demo(root: Path, config: Path, steps: int | None = None) -> str:
    """Run the steps of the demo below `root` that are not done, and return its closing text.

    `steps` shortens or lengthens the training. Raises LvdError, in one line, where a step fails.
    """
    made = Demo(root, config, steps)
    check_writable(root, "--out-root")
    with reraise_disk_full(root):
        made.folder.mkdir(parents=True, exist_ok=True)
        with locked(made.folder / ".lock", busy(made.folder)):
            made.curate()
            made.train()
            made.look()
    return summary(made.places)


@dataclass(frozen=True)
class Demo:
    """The demo's folders, and its three steps."""

    root: Path
    config: Path
    steps: int | None

    @property
    def folder(self) -> Path:
        """Folder of the logs, and of the pictures that the models are shown."""
        return self.root / "demo"

    @property
    def places(self) -> Places:
        """Where the results are."""
        return Places(
            curation=self.root / "curate" / "sample",
            training=self.root / "train" / "sample",
            look=self.root / "look" / "sample",
            sample=self.root / "work" / "sample",
        )

    def curate(self) -> None:
        """Curate the sample; `lvd-curate run` skips what is done."""
        out = self.places.curation
        more = ["--replace"] if (out / RUN).exists() else []  # of other settings: OUT is the demo's
        self._run(
            "curate",
            "1 of 3 · curate a made-up crawl: no copies, nothing unlike the seed",
            [
                *("lvd-curate", "run", "--config", str(self.config), "--pipeline", "sample"),
                *("--out", str(out), "--work", str(self.root / "work"), *more),
                *("--executor", "inline"),  # sooner done than Ray and its processes have started
            ],
        )
        if not read_funnel(out)["decisions"]["kept"]:
            raise LvdError(f"nothing was kept to train on: see {out / 'reports' / 'index.html'}")

    def train(self) -> None:
        """Train on what was kept; a model of another curation or recipe is set aside."""
        out = self.places.training
        length = [] if self.steps is None else ["--set", f"steps={self.steps}"]
        if self._record.get("trained") != self._training:
            if out.exists():
                say(f"what was trained on other pictures, or otherwise, is now in {set_aside(out)}")
            self._update(trained=self._training)
        title = "2 of 3 · train a small vision transformer on what was kept, without labels"
        self._run(
            "train",
            title,
            [
                *("lvd-train", "run", "--config", str(self.config), "--recipe", RECIPE, *length),
                *("--shards", str(self.places.curation / "shards"), "--out", str(out)),
            ],
        )
        if not (out / "done.json").exists():  # it was stopped: it has saved, and its status is 0
            raise LvdError(f"{title}: ended early{RESUMES}")

    def look(self) -> None:
        """Draw features of some kept pictures, by the bundled model and by the new one."""
        places, pictures = self.places, self.folder / "pictures"
        command = ["lvd-train", "visualise", "--model", f"{bundled.NAME}+{places.training}"]
        command += ["--images", str(pictures), "--size", str(FINER * _own_size())]
        weights = digest_file(places.training / "model" / "model.safetensors")
        wanted = fingerprint([self._address, weights, command])
        title = "3 of 3 · look at what the bundled model and the new one see"
        if self._record.get("drawn") == wanted and places.picture.exists():
            for line in ("", title, f"{places.look} is complete and up to date: nothing to do"):
                say(line)
            return
        choose_pictures(places.curation, places.sample, pictures)
        self._run("look", title, [*command, "--out", str(places.look)])
        draw_picture(places.curation, places.sample, places.overview, places.picture)
        self._update(drawn=wanted)

    def _run(self, step: str, title: str, command: Sequence[str]) -> None:
        run_child(command, log=self.folder / f"{step}.log", title=title, note=RESUMES)

    @property
    def _address(self) -> str:
        """Identity of the curation."""
        return read_json(self.places.curation / RUN)["address"]

    @cached_property
    def _training(self) -> str:
        """Fingerprint of the training: the pictures, the recipe, its length."""
        written = recipe_as_written(self.config, RECIPE)
        return fingerprint([self._address, written, self.steps])

    @property
    def _record(self) -> dict[str, Any]:
        return read_optional(self.folder / "demo.json")

    def _update(self, **values: str) -> None:
        write_json(self.folder / "demo.json", {**self._record, **values})


def _own_size() -> int:
    """Return the side of the bundled model's input in pixels."""
    return read_json(bundled.FOLDER / "config.json")["pretrained_cfg"]["input_size"][-1]
