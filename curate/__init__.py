"""Stage one, curate: from a crawl and a seed dataset to shards and reports.

`from curate import embed, dedup, retrieve, balance, top_up` gives the stages as functions on arrays and
folders, without Ray (`curate.api`, a file for each). They are imported when they are asked for. `curate.dedup` names the function: what is in the package of that name is imported as
`from curate.dedup import ...`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curate.api.deduplication import dedup
    from curate.api.embedding import embed
    from curate.api.retrieval import retrieve
    from curate.api.sampling import balance, top_up

__all__ = ["balance", "dedup", "embed", "retrieve", "top_up"]
_MODULES = {
    "embed": "curate.api.embedding",
    "retrieve": "curate.api.retrieval",
    "dedup": "curate.api.deduplication",
    "balance": "curate.api.sampling",
    "top_up": "curate.api.sampling",
}


class _Package(ModuleType):
    """This package, whose functions count more than a package of the same name inside it."""

    @property
    def dedup(self) -> Any:
        return import_module(_MODULES["dedup"]).dedup

    @dedup.setter
    def dedup(self, module: ModuleType) -> None:
        """Python names each package inside another where it imports it."""

    def __getattr__(self, name: str) -> Any:
        if name in _MODULES:
            return getattr(import_module(_MODULES[name]), name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


sys.modules[__name__].__class__ = _Package
