"""Says out loud when a run collapses, which otherwise only a curve would show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from shared.progress import say, warn
from train.monitoring.settings import CollapseSettings

RECOVERED = 1.2
"""A figure this many times above its threshold is well again; in between, nothing new is said."""


@dataclass(frozen=True)
class Words:
    """What a sign of collapse means in plain words, and what to try against it."""

    meaning: str
    remedy: str


WORDS = {
    "low_rank": Words(
        "the features of all images lie in a few directions",
        "raise objectives.koleo or batch_size, or lower optimiser.base_lr",
    ),
    "peaked": Words(
        "the teacher's targets are almost one prototype each",
        "raise teacher.temperature, or set objectives.centering.kind=sinkhorn",
    ),
    "uniform": Words(
        "the teacher's targets say almost nothing of the images",
        "lower teacher.temperature or optimiser.base_lr",
    ),
    "few_prototypes": Words(
        "almost all images have the same few prototypes",
        "set objectives.centering.kind=sinkhorn, raise objectives.koleo or lower optimiser.base_lr",
    ),
}
"""By the names of the signs, which metrics.jsonl has."""


@dataclass(frozen=True)
class Sign:
    """A figure beside its threshold, and both in words."""

    name: str
    value: float
    threshold: float
    figure: str

    @property
    def words(self) -> Words:
        """What it means."""
        return WORDS[self.name]

    @property
    def shows(self) -> bool:
        """Whether it is a sign of collapse; a figure that is not a number is none."""
        return self.value < self.threshold


def signs(
    metrics: Mapping[str, float],
    settings: CollapseSettings,
    *,
    prototypes: int | None,
    images: int,
    dim: int,
    features: int,
) -> list[Sign]:
    """Return what the indicators of one step are held against, collapsed or not.

    The targets are those of `images` images over `prototypes` prototypes, None where there are no
    targets, and the rank is that of `features` vectors of width `dim`. The two ways of the teacher's output, uniform or one
    prototype, are those of DINO (arXiv 2104.14294, section 5.3).
    """
    of_targets = [] if prototypes is None else _of_targets(metrics, settings, prototypes, images)
    return [
        *of_targets,
        Sign(
            "low_rank",
            metrics["feature_rank"],
            max(1.5, settings.rank * min(dim, features)),
            f"an effective rank of {{value:.1f}} in {dim:,} dimensions, under {{threshold:.1f}}",
        ),
    ]


def _of_targets(
    metrics: Mapping[str, float], settings: CollapseSettings, prototypes: int, images: int
) -> list[Sign]:
    return [
        Sign(
            "peaked",
            metrics["teacher_entropy"],
            settings.entropy,
            "an entropy of {value:.3f} nats, under {threshold:.3f}",
        ),
        Sign(
            "uniform",
            metrics["kl_to_uniform"],
            settings.divergence,
            "KL(teacher || uniform) of {value:.3f} nats, under {threshold:.3f}",
        ),
        Sign(
            "few_prototypes",
            metrics["prototypes_won"],
            settings.prototypes * min(prototypes, images),
            f"{{value:.0f}} of {prototypes:,} come first for {images:,} images, under "
            "{threshold:.1f}",
        ),
    ]


class CollapseWatch:
    """Speaks once when a sign appears, once when it has gone, and again when it comes back."""

    def __init__(
        self,
        settings: CollapseSettings,
        *,
        prototypes: int | None,
        images: int,
        dim: int,
        features: int,
    ) -> None:
        self._settings = settings
        self._signs = partial(
            signs, prototypes=prototypes, images=images, dim=dim, features=features
        )
        self._said: set[str] = set()

    def look(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Return the names of the signs at this step, for the metrics, and say what is new."""
        if step < self._settings.grace:
            return []
        found = self._signs(metrics, self._settings)
        for sign in found:
            figure = sign.figure.format(value=sign.value, threshold=sign.threshold)
            if sign.shows and sign.name not in self._said:
                self._said.add(sign.name)
                warn(
                    f"step {step:,}: collapse? {sign.words.meaning}: {figure}; try: {sign.words.remedy}"
                )
            elif sign.value >= RECOVERED * sign.threshold and sign.name in self._said:
                self._said.remove(sign.name)
                say(
                    f"step {step:,}: no longer: {sign.words.meaning} ({sign.name} {sign.value:.3g})"
                )
        return [sign.name for sign in found if sign.shows]
