"""Builds a network without content and remembers how each of its tensors came to its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

CREATING = (
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.zeros.default,
    torch.ops.aten.ones.default,
)
"""What parameters are made with; timm makes numbers for its own use with others."""

Values = dict[str, Callable[[], Tensor]]
"""For each tensor of a network, by name, what computes it: whole and on the CPU."""


@dataclass(frozen=True)
class Part:
    """A tensor that an operation was called with, as a part of one of the deferred tensors."""

    storage: int
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Call:
    """An operation, to be computed when its tensor is asked for."""

    operation: torch._ops.OpOverload
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    makes: int
    """The storage of what it returns."""
    generator: Tensor | None
    """State of torch's generator before it, where it draws."""


class DeferredInit(TorchDispatchMode):
    """While it is entered, parameters made for the CPU have no content: they are on `meta`.

    torch's generator advances as if they had, one tensor being drawn, and dropped, at a time; so
    the values are those of a network that is built whole, for twice the draws. Initialisation that
    asks for content meanwhile, as `nn.init.trunc_normal_` of the heads, cannot be deferred: torch
    passes over it without a word, and `build_network` builds heads outside of this.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: dict[int, list[Call]] = {}
        self._alive: list[torch.UntypedStorage] = []  # so that no other gets the same number

    def values(self, network: nn.Module) -> Values:
        """Return what computes the parameters of a network, some of them made meanwhile."""

        def value(parameter: Tensor) -> Callable[[], Tensor]:
            if parameter.is_meta:
                return partial(self._replay, _part(parameter))
            return parameter.detach

        return {name: value(parameter) for name, parameter in network.named_parameters()}

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        options = options or {}
        tensors = [x for x in tree_leaves((arguments, options)) if isinstance(x, Tensor)]
        creates = (
            operation in CREATING and torch.device(options.get("device") or "cpu").type == "cpu"
        )
        ours = {_key(tensor) for tensor in tensors} & self._calls.keys()
        if not creates and not ours:
            return operation(*arguments, **options)
        generator = None
        if torch.Tag.nondeterministic_seeded in operation.tags:
            generator = torch.get_rng_state()
            operation(*tree_map_only(Tensor, _blank, arguments), **options)
        result = operation(*arguments, **(options | {"device": "meta"} if creates else options))
        makes = _key(result)
        if makes in ours and not operation._schema.is_mutable:
            return result  # a view
        call = Call(operation, tree_map_only(Tensor, _part, arguments), options, makes, generator)
        self._note(call, ours)
        self._alive.append(result.untyped_storage())
        return result

    def _note(self, call: Call, used: set[int]) -> None:
        """Append a call to what its tensors have in common."""
        before = {id(calls): calls for calls in (self._calls[key] for key in sorted(used))}
        if len(before) == 1:
            (together,) = before.values()
        else:
            together = [earlier for calls in before.values() for earlier in calls]
        together.append(call)
        for key in (*used, call.makes):
            self._calls[key] = together

    def _replay(self, part: Part) -> Tensor:
        """Return a deferred tensor, computed now."""
        made: dict[int, Tensor] = {}

        def real(of: Part) -> Tensor:
            return made[of.storage].as_strided(of.size, of.stride, of.offset)

        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for call in self._calls[part.storage]:
                if call.generator is not None:
                    torch.set_rng_state(call.generator)
                result = call.operation(*tree_map_only(Part, real, call.arguments), **call.options)
                made.setdefault(call.makes, result)
        return real(part)


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _part(tensor: Tensor) -> Part:
    return Part(_key(tensor), tensor.size(), tensor.stride(), int(tensor.storage_offset()))


def _blank(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cpu")
