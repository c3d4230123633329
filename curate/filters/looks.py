"""All that can be taken of pictures beside their vectors."""

from __future__ import annotations

from curate.filters import grey, luminance, pdq, phash, picture
from curate.filters.look import Look

LOOKS: dict[str, Look] = {
    look.name: look for look in (picture.LOOK, pdq.LOOK, grey.LOOK, phash.LOOK, luminance.LOOK)
}
