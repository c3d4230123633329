"""A second look at pairs of a sample: by thumbnails, finer where these may be wrong, and by a third image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float32

from curate.calibration.same_picture import Thumbnail, judge_thumbnails
from curate.pixels.same import Verdict

THIRDS = 4
"""So many third images are tried."""

Thumbnails = Callable[[int], Thumbnail | None]
"""Gives `thumbnail` of the image in a row of the vectors; None when unreadable."""
FinerLook = Callable[[int, int], Verdict]
"""Tells whether the images in two rows show one picture, where their thumbnails may not tell."""


class SecondLook:
    """Looks at pairs of rows, and knows what follows from what it has seen.

    Thumbnails miss two edits of one picture more often than one (a caption here, a border there): 28 of
    1,612 such pairs of a crawl in which a third of the images were copies, where one false copy in a
    hundred is too many. So where it matters, those that they call different are looked at firmly: finer, and
    beside a third image. Images that are joined by others, all seen to be the same, are the same. None
    of it is for drawn pictures, as pages of one template pass for copies.
    """

    def __init__(
        self,
        vectors: Float32[np.ndarray, "m d"],
        drawn: Bool[np.ndarray, " m"],
        thumbnail_of: Thumbnails,
        look_finer: FinerLook,
    ) -> None:
        self._vectors = vectors
        self._thumbnail_of = thumbnail_of
        self._look_finer = look_finer
        self._drawn = drawn
        self._thumbnails: dict[int, Thumbnail | None] = {}
        from scipy.cluster.hierarchy import DisjointSet  # slow to import

        self._joined = DisjointSet(range(len(vectors)))

    def knows(self, one: int, other: int) -> bool:
        """Tell whether pairs that were seen to be the same join both."""
        return bool(self._joined.connected(one, other))

    def at(self, one: int, other: int, firmly: bool) -> Verdict | None:
        """Look at two images; None where one cannot be read."""
        first, second = self._thumbnail(one), self._thumbnail(other)
        if first is None or second is None:
            return None
        if self._drawn[one] and self._drawn[other]:
            return judge_thumbnails(first, second, are_drawn=True)
        verdict = judge_thumbnails(first, second)
        if verdict == "unsure" or (verdict == "other" and firmly):
            finer = self._look_finer(one, other)
            verdict = finer if verdict == "unsure" or finer == "same" else verdict
        if verdict == "same":
            self._joined.merge(one, other)
        elif firmly and self._beside_a_third(one, other):
            return "same"
        return verdict

    def _beside_a_third(self, one: int, other: int) -> bool:
        """Tell whether both show what one of the images shows that are the most similar to both."""
        both = np.minimum(self._vectors @ self._vectors[one], self._vectors @ self._vectors[other])
        both[[one, other]] = -2
        for third in np.argsort(-both, kind="stable")[:THIRDS].tolist():
            if all(self._is_same(row, third) for row in (one, other)):
                return True
        return False

    def _is_same(self, one: int, other: int) -> bool:
        if self.knows(one, other):
            return True
        first, second = self._thumbnail(one), self._thumbnail(other)
        if first is None or second is None or (self._drawn[one] and self._drawn[other]):
            return False
        if judge_thumbnails(first, second) != "same":
            return False
        self._joined.merge(one, other)
        return True

    def _thumbnail(self, row: int) -> Thumbnail | None:
        if row not in self._thumbnails:
            self._thumbnails[row] = self._thumbnail_of(row)
        return self._thumbnails[row]
