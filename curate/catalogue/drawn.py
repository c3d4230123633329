"""Which images are drawn: charts, icons, screens, pages. Those of one template look alike and are no copies."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

from curate.catalogue.collection import Collection, Numbers
from curate.filters.luminance import BITS

LEAST = 5.2
"""Bits of luminance below which a picture counts as drawn. Of crawl-small's parts 0 to 3 that is 0.97 of
the charts, 0.91 of the icons, 0.77 of the documents, all placeholders, 0.59 of the screens, 0.21 of the
memes, and 0.02 of the photographs; of Tiny-ImageNet's photographs 0.01, of bordered ones 0.03."""


def are_drawn(collection: Collection, numbers: Numbers) -> Bool[np.ndarray, " n"]:
    """Tell of each of some images whether it is drawn; not where nothing is known of its picture."""
    bits = collection.facts(numbers, [BITS])[BITS].fill_null(8.0).to_numpy()
    drawn: Bool[np.ndarray, " n"] = bits < LEAST
    return drawn
