"""Follows a run: the bar, the metrics files, the scores, and every warning."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import monotonic

import torch
from torch import Tensor

from shared.config import flat
from shared.errors import LvdError
from shared.progress import say, stage_bar, warn
from train.data.crops import GLOBAL_VIEWS
from train.data.index import SampleIndex
from train.data.loader import Batch
from train.distributed.agreement import Agreement
from train.distributed.parallelise import autocast
from train.distributed.ranks import any_rank
from train.monitoring.collapse import CollapseWatch
from train.monitoring.indicators import indicators
from train.monitoring.knn import Knn
from train.monitoring.looks import Looks
from train.monitoring.metrics import METRICS, MetricsWriter, read_metrics
from train.monitoring.pace import Pace, pace_of
from train.monitoring.recognition import recognition
from train.monitoring.speed import Speed, speed_of
from train.optimisation.schedules import Values
from train.persistence.run_folder import RunFolder
from train.step import Report
from train.system import System

MOST_SKIPPED = 5
"""Steps in a row that may be skipped for what is not finite before the run is stopped."""

MOST_NAMED = 8
"""Keys and broken images that a warning names."""


@dataclass(frozen=True)
class _Taken:
    """A step whose figures the host has not read yet."""

    step: int
    keys: list[str]
    agreement: Agreement


class Watch:
    """Says and writes what happens in a run. Only the first process writes; all must call it.

    The figures of a step are read one step late, when a device has long had the next one to do, or
    at once where they are logged or saved. So all processes learn of a skip and a stop together.
    """

    def __init__(self, system: System, folder: RunFolder, index: SampleIndex, steps: int) -> None:
        self.counts: Counter[str] = Counter(skipped=0, broken=0)
        """What is counted over the whole run, interruptions included."""
        self._system, self._recipe, self._ranks = system, system.recipe, system.ranks
        self._folder, self._index, self._steps = folder, index, steps
        self._collapse = CollapseWatch(
            self._recipe.collapse,
            prototypes=self._recipe.heads.dino.prototypes if self._recipe.heads else None,
            images=self._recipe.batch_size,
            dim=system.student.backbone.dim,
            features=GLOBAL_VIEWS * self._recipe.micro_batch(system.ranks.world),
        )
        knn = self._recipe.knn
        self._knn = (
            Knn(knn, size=self._recipe.crops.global_size, scratch=folder.out, ranks=self._ranks)
            if knn.taken
            else None
        )
        self._pace = Pace()
        self.asked = False
        """Whether any process was asked to stop, as far as the steps are read."""
        self._unread: _Taken | None = None
        self._speed: Speed | None = None
        self._looks = Looks(self._recipe.looks, system, index, folder.out, steps)
        self._skipped_in_a_row = 0
        self._named = 0
        self._waited = self._worked = 0.0
        self._logged = self._timed = 0
        """The steps behind the last line of metrics, and those behind which times count."""
        self._is_started = False

    @contextmanager
    def following(self, start: int) -> Iterator[None]:
        """Open the metrics files and the bar of a run that begins behind `start` steps.

        The first score comes before the bar, whose rate and time left it would spoil.
        """
        batch = self._recipe.batch_size
        self._logged = self._timed = start
        if not self._ranks.first:
            self.score(start)
            yield
            return
        if self._steps > start + 1:  # a single step has no rate
            self._speed = speed_of(self._system)
        recipe = flat(self._recipe.model_dump(mode="json"))
        self._writer = MetricsWriter(self._folder.out, self._recipe.log, start, recipe)
        self._pace = pace_of(read_metrics(self._folder.out / METRICS))
        try:
            self.score(start)
            with stage_bar("train", self._steps * batch) as self._bar:
                self._bar.skip(start * batch)
                yield
        finally:
            self._writer.close()

    def waiting(self, batches: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        """Yield the batches, and count the time that they are waited for."""
        while True:
            asked = monotonic()
            following = next(batches, None)
            self._began = monotonic()
            self._waited += self._began - asked
            if following is None:
                return
            yield following

    def record(self, step: int, batches: Sequence[Batch], values: Values, report: Report) -> None:
        """Note one step; LvdError, on every process, where too many in a row were not finite."""
        done = step + 1
        report.agreement.fetch()
        self.settle()
        self._unread = _Taken(step, [k for batch in batches for k in batch.keys], report.agreement)
        self._name_broken(batches)
        logged = done == self._steps or not done % self._recipe.log.every
        if logged:
            self.settle()
        self._worked += monotonic() - self._began
        if self._ranks.first:
            self._bar.advance(self._recipe.batch_size)
        if not self._is_started:
            self._is_started = True
            self._begin_timing(done)
        if not logged:
            return
        metrics = {
            "epoch": batches[0].epoch,
            **report.losses,
            **asdict(values),
            **{f"gradient_norm/{name}": norm for name, norm in report.norms.items()},
            **indicators(report.targets, report.features),
            **self.counts,
        }
        metrics |= self._timings(done)
        if self._ranks.first:
            metrics["collapse"] = self._collapse.look(step, metrics)
            self._writer.write(step, metrics)
            self._bar.note(self._short(metrics))

    def settle(self) -> None:
        """Read the last step that was recorded, if it is not read yet, and wait for it if need be."""
        if self._unread is None:
            return
        taken, self._unread = self._unread, None
        self.asked |= taken.agreement.counts["asked"] > 0
        self.counts["broken"] += int(taken.agreement.counts["broken"])
        self._note_skipped(taken)

    def score(self, done: int) -> None:
        """Score the teacher behind `done` steps, where that is due: every process must call it.

        By k-NN and a linear probe where the recipe names labelled images, else, at both ends of the
        run, by how often the network knows two views for the same picture.
        """
        self._looks.take(done)
        ends = done in (0, self._steps)
        if self._knn and (ends or self._score_is_due(done)):
            began = monotonic()
            scores = self._knn.scores(self._features, self._autocast())
            seconds = monotonic() - began
            self._pace.score(seconds)
            self._tell(done, {**scores, "knn_seconds": seconds})
        elif ends and self._recipe.knn.every is not None:
            known = recognition(
                lambda images: self._features(images)[0],
                self._index,
                self._recipe.crops,
                self._recipe.seed,
                self._ranks.device,
                self._autocast(),
            )
            if known is not None:
                self._tell(done, {"recognition": known})

    def _score_is_due(self, done: int) -> bool:
        """Tell, on every process what the first one's clock says, whether to score between the ends."""
        every = self._recipe.knn.every
        if every != "auto":
            return every is not None and done % every == 0
        if done % self._recipe.log.every or done != self._logged:
            return False
        return any_rank(self._ranks.first and self._pace.affords)

    def _tell(self, done: int, scores: dict[str, float]) -> None:
        if not self._ranks.first:
            return
        self._writer.write(done, scores)
        if "knn" in scores:
            linear = f"linear {scores['linear']:.1%}"
            say(f"k-NN top-1 {scores['knn']:.1%}, {linear} after {done:,} steps")

    def _features(self, images: Tensor) -> tuple[Tensor, None]:
        # Called as a whole: the parts of a sharded network cannot be called by themselves.
        return self._system.teacher_called(images).cls, None

    def _autocast(self) -> torch.autocast:
        return autocast(self._system.precision, self._ranks.device)

    def _name_broken(self, batches: Sequence[Batch]) -> None:
        broken = [f"{key} ({reason})" for batch in batches for key, reason in batch.broken]
        known = max(self.counts["broken"], self._named)
        for image in broken[: max(0, MOST_NAMED - known)]:
            warn(f"broken image left out, another takes its place: {image}")
        self._named += len(broken)
        if broken:
            self._folder.note_broken(self._ranks.rank, broken)

    def _note_skipped(self, taken: _Taken) -> None:
        step, keys, figures = taken.step, taken.keys, taken.agreement
        if not figures.skipped:
            self._skipped_in_a_row = 0
            return
        self._skipped_in_a_row += 1
        self.counts["skipped"] += 1
        odd = [name for name, value in {**figures.losses, **figures.norms}.items() if value - value]
        self._folder.note_skipped(self._ranks.rank, step, odd, keys)
        if self._ranks.first:
            named = ", ".join(keys[:MOST_NAMED]) + (", ..." if len(keys) > MOST_NAMED else "")
            warn(f"step {step} skipped: not finite: {', '.join(odd)}; its images: {named}")
        if self._skipped_in_a_row >= MOST_SKIPPED:
            raise LvdError(
                f"{MOST_SKIPPED} steps in a row were not finite, the last one {step}: stopped "
                f"(their images are in {self._folder.skipped}): lower optimiser.base_lr, or try "
                "parallel.precision=float32"
            )

    def _timings(self, done: int) -> dict[str, float]:
        """Return the largest memory and the rates since the last line of metrics.

        The first step of a process enters no rate, and has none by itself: its batch waits for the
        loader to start, and it compiles.
        """
        steps, seconds = done - self._timed, self._waited + self._worked
        timings = {"memory_gib": _largest_memory(self._ranks.device) / 2**30}
        if steps:
            rate = steps * self._recipe.batch_size / seconds
            timings |= {
                "images_per_second": rate,
                **({} if self._speed is None else self._speed.rates(rate)),
                "step_seconds": seconds / steps,
                "data_wait": self._waited / seconds,
            }
            self._pace.train((done - self._logged) * seconds / steps)
        self._logged = done
        self._begin_timing(done)
        return timings

    def _begin_timing(self, done: int) -> None:
        self._timed, self._waited, self._worked = done, 0.0, 0.0

    def _short(self, metrics: dict[str, float]) -> str:
        names = ("loss", "dino", "ibot", "infonce", "koleo")
        return "  ".join(f"{name} {metrics[name]:.3f}" for name in names if name in metrics)


def _largest_memory(device: torch.device) -> int:
    """Return the most bytes this process has held: of a GPU since the last call, else ever."""
    if device.type == "cuda":
        held = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return held
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
