"""A CUDA device of fake tensors beside a real CPU, on which mixed devices fail as they do on a card."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import GraphExecGroup

CUDA = torch.device("cuda", 0)
PROJECT = Path(__file__).parents[1]

_aten = torch.ops.aten
_INDEXED = (
    *(_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default),
    _aten._index_put_impl_.default,
)
_JOINED = (_aten.cat.default, _aten.stack.default)


class FakeCard(TorchDispatchMode):
    """While entered, tensors on `cuda` have shape, type and device but no values.

    Tensors on the CPU stay real. torch's FakeTensorMode refuses operations on both, other than
    copies and scalars, as a card does; this also refuses scalars that are joined with others, as a
    card does too, and indices on the CPU for tensors on the card, which torch permits and for which
    each call waits.

    Every value that the host reads is 1 or True, and every place of a device's mask is set. `reads`
    counts what a card would have to finish for, by the project's function that asked, and `pageable`
    what is sent there from memory that is not page-locked.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()
        self.pageable: Counter[str] = Counter()
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __enter__(self) -> FakeCard:
        self._fake.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._fake.__exit__(*error)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        composite = function.namespace == "aten" and function._can_decompose()
        if composite and torch.is_inference_mode_enabled():
            with self:  # else operations made of others come as a whole, `to` as one
                return function.decompose(*args, **kwargs)
        target = kwargs.get("device")
        target = None if target is None else torch.device(target)
        if not _any_fake((args, kwargs)) and (target is None or target.type != "cuda"):
            with unset_fake_temporarily():
                return function(*args, **kwargs)
        if function is _aten._to_copy.default and target is not None:
            source, dtype = args[0], kwargs.get("dtype") or args[0].dtype
            if target.type == "cpu":
                return self._read(source, dtype)
            if not (isinstance(source, FakeTensor) or hasattr(source, "is_page_locked")):
                self._note(self.pageable)
            if not isinstance(source, FakeTensor):
                shape = source.shape, source.stride()
                return self._faked(_aten.empty_strided.default, *shape, dtype=dtype, device=CUDA)
        if function in (_aten._local_scalar_dense.default, _aten.item.default):
            self._note()
            return (
                True if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 1
            )
        if function is _aten.copy_.default and not isinstance(args[0], FakeTensor):
            return args[0].copy_(self._read(args[1], args[0].dtype))
        if function is _aten.nonzero.default:
            return self._places(args[0])
        if function is _aten.bincount.default:
            self._note()
            return self._places_of(args[2])
        if function in _INDEXED:
            _refuse_mixture(args[0], [index for index in args[1] if index is not None])
            args = (args[0], self._indices(args[1]), *args[2:])
        if function in _JOINED or function.name().startswith(("aten::_foreach", "aten::_fused")):
            _refuse_mixture(args)
        return self._faked(function, *args, **kwargs)

    def _faked(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        made = self._fake.dispatch(function, (), args, kwargs)
        # It holds weak references, which forbid nn.Module.to() to replace a parameter.
        self._fake.fake_tensor_converter.tensor_memo.clear()
        return made

    def _read(self, source: Tensor, dtype: torch.dtype) -> Tensor:
        self._note()
        with unset_fake_temporarily():
            return torch.ones(source.shape, dtype=dtype)

    def _places(self, mask: Tensor) -> Tensor:
        self._note()
        return self._places_of(mask.numel(), mask.dim())

    def _places_of(self, *shape: int) -> Tensor:
        return self._faked(_aten.empty.memory_format, shape, dtype=torch.int64, device=CUDA)

    def _indices(self, indices: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return the indices of a device's tensor with masks as places, all of which are set."""
        found: list[Tensor | None] = []
        for index in indices:
            if index is not None and index.dtype == torch.bool:
                found += self._places(index).unbind(1)
            else:
                found.append(index)
        return found

    def _note(self, counts: Counter[str] | None = None) -> None:
        counts = self.reads if counts is None else counts
        frame = sys._getframe(1)
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(PROJECT) and not {".venv", "tests"} & set(path.parts):
                counts[frame.f_code.co_name] += 1
                return
            frame = frame.f_back
        counts["a test"] += 1


@contextmanager
def fake_card() -> Iterator[FakeCard]:
    """Enter a `FakeCard` with autocast for it, and with backward passes that need no card."""
    with pytest.MonkeyPatch.context() as patch:
        # torch.autocast asks for these before it believes in a device.
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
        patch.setattr(Tensor, "backward", _backward)
        patch.setattr(Tensor, "pin_memory", _page_locked)
        with FakeCard() as card:
            yield card


def _page_locked(values: Tensor) -> Tensor:
    values = values.clone()
    values.is_page_locked = True
    return values


def on_card(module: torch.nn.Module) -> bool:
    """Return whether all parameters and buffers of a module lie on the card."""
    return all(tensor.device == CUDA for tensor in module.state_dict().values())


def _refuse_mixture(*tree: Any) -> None:
    """Raise RuntimeError where tensors lie on several devices and FakeTensorMode would not mind."""
    devices = {leaf.device for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}
    if len(devices) > 1:
        raise RuntimeError(f"tensors, or a tensor and its index, on devices {devices}")


def _any_fake(tree: Any) -> bool:
    if isinstance(tree, (tuple, list)):
        return any(map(_any_fake, tree))
    if isinstance(tree, dict):
        return any(map(_any_fake, tree.values()))
    return isinstance(tree, FakeTensor)


def _backward(loss: Tensor) -> None:
    """Do what torch's engine does for `loss.backward()`, without its streams, which need a card."""
    order = _topological(loss.grad_fn)
    waiting: dict[Any, list[Tensor | None]] = {
        node: [None] * len(node._input_metadata) for node in order
    }
    waiting[loss.grad_fn][0] = torch.ones_like(loss)
    # Outside of the engine, each tensor that checkpointing asks for would recompute its whole block.
    with torch.no_grad(), GraphExecGroup():
        for node in order:
            given = waiting.pop(node)
            if all(gradient is None for gradient in given):
                continue
            if hasattr(node, "variable"):
                leaf, (gradient,) = node.variable, given
                leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
                continue
            call = (
                node.apply if isinstance(node, torch.autograd.function.BackwardCFunction) else node
            )
            made = call(*given)
            made = made if isinstance(made, tuple) else (made,)
            for gradient, (following, place) in zip(made, node.next_functions, strict=False):
                if following is None or gradient is None:
                    continue
                gradient = _fitting(gradient, following._input_metadata[place])
                before = waiting[following][place]
                waiting[following][place] = gradient if before is None else before + gradient


def _fitting(gradient: Tensor, wanted: Any) -> Tensor:
    """Return a gradient with the shape and type of what it belongs to, as the engine does."""
    assert gradient.device == wanted.device, f"{gradient.device} for {wanted.device}"
    if gradient.shape != tuple(wanted.shape):
        gradient = gradient.sum_to_size(tuple(wanted.shape))
    return gradient.to(wanted.dtype)


def _topological(root: Any) -> list[Any]:
    """Return the nodes of a graph, each before those that it hands gradients to."""
    order: list[Any] = []
    seen = set()
    stack = [(root, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(following, False) for following, _ in node.next_functions if following]
    return order[::-1]
