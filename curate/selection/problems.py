"""What is odd about what is dropped and what a seed retrieves, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

FEW = 20
"""Images of fewer than which no share is odd."""
NEARLY_ALL, NEARLY_NONE = 0.95, 0.01
LEAST_LIFT = 1.25
"""How much more often the seed's own images reach a measured threshold than crawled ones, from which
that threshold chooses."""
REMEDIES_FOR_NONE = {
    "knn": "--set {0}.threshold=null, as no image reaches that floor",
    "cluster": "--set {0}.cluster.clusters=... with fewer of them, or a lower "
    "{0}.cluster.more_than or {0}.threshold",
}
REMEDIES_FOR_ALL = {
    "knn": "--set {0}.knn.neighbours=... with something lower",
    "cluster": "--set {0}.cluster.images=... or {0}.cluster.cap=... with something lower",
}
SETTINGS_OF = {"unsafe": "filters and lists", "low_quality": "quality and filters"}
"""The settings that drop an image with that decision."""


def dropped_problems(decisions: Mapping[str, int]) -> list[str]:
    """Return a line where filters or lists drop nearly all images, by the counts of all decisions."""
    images = sum(decisions.values())
    return [
        f"{decisions[name]:,} of {images:,} images are {name}: `lvd-curate query OUT --named reasons` "
        f"counts the reasons; look at what the pipeline says under {settings}"
        for name, settings in SETTINGS_OF.items()
        if images >= FEW and decisions[name] > NEARLY_ALL * images
    ]


def selection_problems(
    relevant: int,
    judged: int,
    threshold: float,
    target: int | None,
    strategy: str = "threshold",
    section: str = "retrieve",
) -> list[str]:
    """Return a line where a target was not met, or nearly all or none of the images are relevant.

    `relevant` of the `judged` images that nothing else dropped are what the strategy of a seed finds.
    A threshold of -1 asks for all of them. `section` is where the seed's settings stand.
    """
    if strategy == "none":
        return []
    if target is not None:
        if relevant == target:
            return []
        return [
            f"{section}.target asks for {target:,} images, and {judged:,} could be relevant: all of "
            "them are; lower the target, or crawl more"
        ]
    if strategy != "threshold":
        return _of_strategy(strategy, relevant, judged, section)
    if judged < FEW or threshold <= -1:
        return []
    if relevant > NEARLY_ALL * judged:
        word, way = "nearly all", "higher"
    elif relevant < NEARLY_NONE * judged:
        word, way = "nearly no", "lower"
    else:
        return []
    return [
        f"{section} finds {word} images relevant ({relevant:,} of {judged:,} that could be): say "
        f"--set {section}.threshold=... with something {way} than {threshold:.4g}, "
        f"--set {section}.target=... for so many images, or another retrieve.embedder"
    ]


def lift_problems(
    seed_share: float, crawl_share: float, threshold: float, section: str = "retrieve"
) -> list[str]:
    """Return a line where a measured threshold is reached by the crawl about as often as by the seed.

    `seed_share` of left-out seed images and `crawl_share` of the crawled ones reach it. That of a crawl
    which reaches it nearly as a whole is told by `selection_problems`.
    """
    if crawl_share > NEARLY_ALL or seed_share >= LEAST_LIFT * crawl_share:
        return []
    return [
        f"{section}.threshold {threshold:.4g} was measured, and {seed_share:.0%} of left-out seed images "
        f"reach it and {crawl_share:.0%} of the crawl: unless most of the crawl is of the seed's kind, the "
        f"embedder hardly tells it apart: say --set {section}.target=... for the most similar images, or "
        "another retrieve.embedder"
    ]


def barred_problems(found: int, left: int, negative: Sequence[str]) -> list[str]:
    """Return a line where negative seeds bar nearly all that another seed finds.

    Of the `found` images of that seed, and what others find, `left` are barred by none of `negative`.
    """
    if not negative or not found or left > NEARLY_NONE * found:
        return []
    return [
        f"negative seed {' and '.join(negative)}: {left:,} images are left of {found:,} that a seed "
        f"finds: say --set seeds.{negative[0]}.threshold=... with something higher, or leave it out"
    ]


def _of_strategy(strategy: str, relevant: int, judged: int, section: str) -> list[str]:
    """Return a line where a strategy that takes what is nearest finds all, or nothing."""
    if judged and not relevant:
        word, remedies = "none", REMEDIES_FOR_NONE
    elif judged >= FEW and relevant > NEARLY_ALL * judged:
        word, remedies = "nearly all", REMEDIES_FOR_ALL
    else:
        return []
    return [
        f"{section}.strategy {strategy} finds {word} of the images relevant ({relevant:,} of "
        f"{judged:,} that could be): say {remedies[strategy].format(section)}"
    ]
