"""Says out loud when a run collapses, which otherwise only a curve would show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shared.progress import say, warn
from train.monitoring.settings import CollapseSettings

RECOVERED = 1.2
"""A figure this many times above its threshold is well again; in between, nothing new is said."""


@dataclass(frozen=True)
class Sign:
    """A figure beside its threshold, and what both mean in plain words."""

    name: str
    value: float
    threshold: float
    meaning: str
    figure: str
    remedy: str

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
            "the features of all images lie in a few directions",
            f"an effective rank of {{value:.1f}} in {dim:,} dimensions, under {{threshold:.1f}}",
            "raise objectives.koleo or batch_size, or lower optimiser.base_lr",
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
            "the teacher's targets are almost one prototype each",
            "an entropy of {value:.3f} nats, under {threshold:.3f}",
            "raise teacher.temperature, or set objectives.centering.kind=sinkhorn",
        ),
        Sign(
            "uniform",
            metrics["kl_to_uniform"],
            settings.divergence,
            "the teacher's targets say almost nothing of the images",
            "KL(teacher || uniform) of {value:.3f} nats, under {threshold:.3f}",
            "lower teacher.temperature or optimiser.base_lr",
        ),
        Sign(
            "few_prototypes",
            metrics["prototypes_won"],
            settings.prototypes * min(prototypes, images),
            "almost all images have the same few prototypes",
            f"{{value:.0f}} of {prototypes:,} come first for {images:,} images, under "
            "{threshold:.1f}",
            "set objectives.centering.kind=sinkhorn, raise objectives.koleo or lower "
            "optimiser.base_lr",
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
        self._sizes = {
            "prototypes": prototypes,
            "images": images,
            "dim": dim,
            "features": features,
        }
        self._said: set[str] = set()

    def look(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Return the names of the signs at this step, for the metrics, and say what is new."""
        if step < self._settings.grace:
            return []
        found = signs(metrics, self._settings, **self._sizes)
        for sign in found:
            figure = sign.figure.format(value=sign.value, threshold=sign.threshold)
            if sign.shows and sign.name not in self._said:
                self._said.add(sign.name)
                warn(f"step {step:,}: collapse? {sign.meaning}: {figure}; try: {sign.remedy}")
            elif sign.value >= RECOVERED * sign.threshold and sign.name in self._said:
                self._said.remove(sign.name)
                say(f"step {step:,}: no longer: {sign.meaning} ({sign.name} {sign.value:.3g})")
        return [sign.name for sign in found if sign.shows]
