"""What is asked of each part of a dataset, and where what is made of it lies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from curate.filters.looks import LOOKS
from shared.datasets.dataset import Part
from shared.embedders.embedder import identity
from shared.embedders.settings import EmbedderSettings
from shared.storage.commits import committed
from shared.storage.files import fingerprint

VERSION = 4
LENT = "lent-"
"""What the folders of a request that lends begin with."""


def _true_is_bytes(value: object) -> object:
    return "bytes" if value is True else value


class EmbedSettings(BaseModel):
    """How images are read."""

    model_config = ConfigDict(extra="forbid")

    max_pixels: int = Field(178_956_970, ge=1)
    """Images of more pixels by their header are `corrupt`, undecoded."""
    decode_seconds: float = Field(60.0, gt=0)
    """Images that take longer to decode are `corrupt`."""
    decode_threads: int | None = Field(None, ge=1)
    """Threads that decode ahead of the forward pass; by default the task's threads."""

    once: Annotated[Literal[False, "bytes", "hash"], BeforeValidator(_true_is_bytes)] = False
    """Which images are embedded once. `bytes` (or `true`): those of the same bytes in several parts of a
    dataset, after a pass that reads and hashes the bytes of all new parts. `hash`: those of the crawl
    that share a picture hash, by `dedup.hash`, after a pass that decodes all new parts: only the best
    of a hash is embedded, and the others are lent its vector. `false`: all images, part by part."""

    @property
    def limits(self) -> list[float]:
        """What decides which images are `corrupt`."""
        return [self.max_pixels, self.decode_seconds]


@dataclass(frozen=True)
class EmbedRequest:
    """What is asked of each part of a dataset. Travels to the workers."""

    work: Path
    settings: EmbedSettings
    embedders: tuple[EmbedderSettings, ...]
    """Distinct ones."""
    columns: tuple[str, ...]
    """Columns of the crawl's own tables that are kept as scores."""
    threads: int
    looks: tuple[str, ...] = ()
    """What is taken of the pictures for filters and lists: names of `LOOKS`."""
    repeats: str = ""
    """The address of the `repeats.find_repeats` that says what several parts hold, if anything does."""
    lends: tuple[EmbedderSettings, ...] | None = None
    """By which embedders a part embeds only what it lends to others, into units of their own."""
    by: tuple[EmbedderSettings, ...] | None = None
    """By which embedders parts are embedded; None: by all."""
    lenders: str = ""
    """What stands for who lends a vector to whom, which `dedup.hash_first` says."""
    lenders_at: str = ""
    """The address of the stage that says it."""
    own: bool = False
    """Whether a part embeds only what no unit holds of its images that lend, into units of their own."""
    earlier: tuple[str, ...] = ()
    """Earlier `lenders`, by which some images may be embedded already."""

    @cached_property
    def facts(self) -> Path:
        """The folder of the facts' units: contrast is measured at the first embedder's scale."""
        return self._folder("facts", self.settings.limits, identity(self.embedders[0]))

    @cached_property
    def scores(self) -> Path:
        """The folder of the scores' units."""
        return self._folder("scores", self.columns)

    def lending(self, repeats: str, lends: Iterable[EmbedderSettings] = ()) -> EmbedRequest:
        """Return the request by which parts embed, by some embedders, what they lend to others."""
        return replace(self, repeats=repeats, lends=tuple(lends), columns=())

    def without_vectors(self) -> EmbedRequest:
        """Return the request for all but vectors."""
        return replace(self, by=())

    def lent(self, lenders: str, at: str = "", earlier: Iterable[str] = ()) -> EmbedRequest:
        """Return the request for the vectors that images have, or are lent by others of their hash."""
        known = tuple(earlier)
        return replace(self, by=None, own=False, lenders=lenders, lenders_at=at, earlier=known)

    def owning(self, by: Iterable[EmbedderSettings]) -> EmbedRequest:
        """Return the request by which parts embed, by some embedders, what lends and is in no unit."""
        return replace(self, by=tuple(by), own=True)

    def look(self, name: str) -> Path:
        """Return the folder of a look's units: no embedder has a say in them."""
        return self._folder(name, self.settings.limits, LOOKS[name].version)

    def vectors(self, embedder: EmbedderSettings) -> Path:
        """Return the folder of an embedder's units."""
        for known, folder in self._vectors:
            if known == embedder:
                return folder
        return self._vectors_of(embedder)

    def vectors_by(self, embedder: EmbedderSettings, lenders: str, own: bool = False) -> Path:
        """Return the folder of an embedder's units by other lenders; "": of those where none is lent."""
        known = next((told for each, told in self._identities if each == embedder), None)
        told = identity(embedder) if known is None else known
        lent = ["own" if own else "lent", lenders] if lenders else []
        return self._folder("vectors", self.settings.limits, told, *lent)

    def holders(self, embedder: EmbedderSettings) -> list[tuple[Path, bool]]:
        """Return the folders of units that may hold own vectors of images, and whether some are lent."""
        known = [each for each in (self.lenders, *self.earlier) if each]
        lent = [self.vectors_by(embedder, x, own) for x in known for own in (False, True)]
        return [(self.vectors_by(embedder, ""), False), *((folder, True) for folder in lent)]

    @cached_property
    def _vectors(self) -> list[tuple[EmbedderSettings, Path]]:
        return [(each, self._vectors_of(each)) for each in self.embedders]

    @cached_property
    def _identities(self) -> list[tuple[EmbedderSettings, dict[str, Any]]]:
        # An identity asks for files and hub revisions: once for a request, not for each part.
        return [(each, identity(each)) for each in self.embedders]

    def _vectors_of(self, embedder: EmbedderSettings) -> Path:
        return self.vectors_by(embedder, self.lenders, self.own)

    def lacking(self, content: str | None) -> list[EmbedderSettings]:
        """Return by which embedders a content is not embedded; all where it is not known."""
        if content is None or committed(self.facts / content) is None:
            return list(self.embedders)
        return [x for x in self.embedders if committed(self.vectors(x) / content) is None]

    def units(self, content: str) -> list[Path]:
        """Return the units of a content: facts, scores and looks where asked for, and vectors."""
        folders = [self.facts, *([self.scores] if self.columns else [])]
        folders += map(self.look, self.looks)
        asked = self.embedders if self.by is None else self.by
        asked = asked if self.lends is None else self.lends
        folders += [self.vectors(embedder) for embedder in asked]
        return [folder / content for folder in folders]

    def _folder(self, kind: str, *about: Any) -> Path:
        if self.lends is not None:
            kind, about = f"{LENT}{kind}", (*about, self.repeats)
        return self.work / kind / fingerprint([kind, VERSION, *about])


def unit_name(part: Part) -> str:
    """Return a name of a part that is fit for a file, readable and its own."""
    readable = "".join(c if c.isalnum() or c in "-_." else "_" for c in part.name)[-48:]
    return f"{readable}-{fingerprint([part.root, part.name])}"
