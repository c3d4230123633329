"""Stage one, curate: from a crawl and a seed dataset to shards and reports.

`from curate import embed, dedup, retrieve, balance, top_up` gives the stages as functions on arrays and
folders (`curate.api`, `curate.api_dedup`, `curate.api_sampling`), without Ray. They are imported when
they are asked for. `curate.dedup` names the function: what is in the package of that name is imported as
`from curate.dedup import ...`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curate.api import embed, retrieve
    from curate.api_dedup import dedup
    from curate.api_sampling import balance, top_up

__all__ = ["balance", "dedup", "embed", "retrieve", "top_up"]
_MODULES = {
    "dedup": "curate.api_dedup",
    "balance": "curate.api_sampling",
    "top_up": "curate.api_sampling",
}


class _Package(ModuleType):
    """This package, whose functions count more than a package of the same name inside it."""

    @property
    def dedup(self) -> Any:
        return import_module("curate.api_dedup").dedup

    @dedup.setter
    def dedup(self, module: ModuleType) -> None:
        """Python names each package inside another where it imports it."""

    def __getattr__(self, name: str) -> Any:
        if name in __all__:
            return getattr(import_module(_MODULES.get(name, "curate.api")), name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


sys.modules[__name__].__class__ = _Package
