"""Estimates what a recipe costs before it is run: parameters, tokens, FLOPs and memory.

Nothing is allocated: the network is called on tensors that have shapes and no content.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from train.data.crops import GLOBAL_VIEWS
from train.distillation.frozen_teacher import FrozenTeacher
from train.distributed.parallelise import KEPT_BY_SELECTIVE, autocast, roundable
from train.model.heads import ProjectionHead
from train.model.network import Network, Outputs, make_teacher
from train.objectives.tiles import step_bytes

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Load:
    """What one process trains on in one forward pass, and how."""

    images: int
    """Of a micro-batch."""
    global_size: int
    local_size: int
    local_views: int
    masked: int = 0
    """Patches of all global views of the micro-batch at which iBOT's loss is taken."""
    accumulate: int = 1
    """Micro-batches of a step, whose teacher outputs are held together."""
    precision: torch.dtype = torch.float32
    """Of matrix products."""
    checkpointing: bool | Literal["selective"] = False
    """Whether blocks are computed again in the backward pass, or all but their products."""
    shards: int = 1
    """Processes that the networks' tensors are divided among."""
    device: torch.device = CPU
    """Decides how many logits are kept, and how many are looked at together."""

    @property
    def views(self) -> int:
        """Views of the student for an image."""
        return GLOBAL_VIEWS + self.local_views


@dataclass(frozen=True)
class Estimate:
    """What a step costs; see `estimate` for what is counted and how well it agrees."""

    parameters: dict[str, int]
    """Of the student, by module."""
    view_tokens: dict[str, int]
    """CLS, registers and patches of one view of each kind."""
    image_tokens: dict[str, int]
    """Of all views of an image that the student and the teacher see."""
    flops: dict[str, float]
    """For one image, a multiplication with its addition being two."""
    memory: dict[str, int]
    """Bytes on one process."""

    def table(self) -> str:
        """Return the figures as lines of text."""
        rows = [
            ("parameters", _line(self.parameters, _short)),
            ("tokens of a view", _line(self.view_tokens, "{:,}".format)),
            ("tokens of an image", _line(self.image_tokens, "{:,}".format)),
            ("FLOPs of an image", _line(self.flops, _short)),
            ("memory, about", _line(self.memory, _gib)),
        ]
        return "\n".join(f"{name:<20}{text}" for name, text in rows)


def estimate(network: Network, load: Load, frozen: FrozenTeacher | None = None) -> Estimate:
    """Return what one step of a student like `network` costs, which should be on the device `meta`.

    A `frozen` teacher is one of a distillation, with its weights: one image is run through it. Its
    matrices count in the precision in which `prepare_frozen` keeps them.

    FLOPs are those of matrix products and convolutions (torch's FlopCounterMode) in the forward
    passes of teacher and student and in the backward pass. Attention counts in its explicit form,
    and what activation checkpointing computes twice counts once.

    Memory is that of one process, by what it is for. Activations are what autograd saves, bytes for
    bytes, copies of weights in lower precision included, with the form of attention that a CPU
    would take: set `model.attention` for another device. Blocks that are computed again keep their
    inputs, and under selective checkpointing their products; one of them at a time is whole.
    Gradients grow while activations go, and so the sum of all is mostly more than a step holds at
    once: from 2% less to 11% more than the peak measured with ten small models on a CPU, in float32
    and in bfloat16. Gathered weights of sharded blocks, and what an allocator, a compiler or CUDA
    itself keeps come on top.
    """
    modules = {name: module for name, module in network.named_children() if module is not None}
    parameters = {name: sum(p.numel() for p in m.parameters()) for name, m in modules.items()}
    tokens, seen, flops = cost_of_image(network, load, frozen)
    return Estimate(parameters, tokens, seen, flops, memory_of_step(network, load, frozen))


def cost_of_image(
    network: Network, load: Load, frozen: FrozenTeacher | None = None
) -> tuple[dict[str, int], dict[str, int], dict[str, float]]:
    """Return the `view_tokens`, `image_tokens` and `flops` of an `Estimate`, which see."""
    student, teacher = copy.deepcopy(network).train(), make_teacher(network)
    sizes = {"global": load.global_size, "local": load.local_size}
    tokens = {
        name: network.backbone.prefix_tokens + math.prod(network.backbone.grid(size, size))
        for name, size in sizes.items()
        if name == "global" or load.local_views
    }
    seen = {"student": GLOBAL_VIEWS * tokens["global"]}
    seen["student"] += load.local_views * tokens.get("local", 0)
    if frozen is None and network.dino_head is not None:
        seen["teacher"] = GLOBAL_VIEWS * tokens["global"]
    flops = _flops(_products_only(student), _products_only(teacher), load)
    return tokens, seen, flops if frozen is None else _with_frozen(frozen, load, flops)


def memory_of_step(
    network: Network, load: Load, frozen: FrozenTeacher | None = None
) -> dict[str, int]:
    """Return the `memory` of an `Estimate`, which see."""
    student = copy.deepcopy(network).train()
    weights = 4 * sum(p.numel() for p in student.parameters()) // load.shards
    memory = {} if frozen is None else {"frozen teacher": _kept_of(frozen, load)}
    memory |= {
        "weights": weights,
        "teacher": weights,
        "optimiser": 2 * weights,
        "gradients": weights,
        "activations": _activations(student, load),
        "logits": _logits(student, load),
    }
    return memory | {"in all": sum(memory.values())}


def _products_only(network: Network) -> Network:
    """Replace norms and activations, which have no products, and take as long to count as those."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.LayerNorm | nn.GELU):
                setattr(module, name, nn.Identity())
    return network


def _with_frozen(frozen: FrozenTeacher, load: Load, flops: dict[str, float]) -> dict[str, float]:
    """Return the FLOPs with the frozen teacher's in place of the passes that the average is spared."""
    device = next(iter(frozen.state_dict().values())).device
    views = torch.zeros(GLOBAL_VIEWS, *_shape(load.global_size), device=device)
    rounded = autocast(load.precision, device)  # as its weights may be
    with FlopCounterMode(display=False) as counter, torch.no_grad(), rounded:
        frozen.tokens(views)
    taught = float(counter.get_total_flops())
    return flops | {"teacher": taught, "in all": flops["in all"] - flops["teacher"] + taught}


def _kept_of(frozen: FrozenTeacher, load: Load) -> int:
    """Return the bytes of a frozen teacher, whose matrices are held in the precision of products."""
    kept = sum(tensor.nbytes for tensor in frozen.state_dict().values())
    for module in roundable(frozen):
        for weight in module.parameters(recurse=False):
            kept -= weight.numel() * max(0, weight.itemsize - load.precision.itemsize)
    return kept


def _flops(student: Network, teacher: Network, load: Load) -> dict[str, float]:
    """Return the FLOPs of an image: the backbone's by pass, and those of the heads together.

    Equal blocks are counted as two and as three, each further one as the third: the counts are the
    same, and a deep network takes no longer. The networks keep two or three of theirs.
    """
    blocks = student.backbone.vit.blocks
    depth = len(blocks)
    if depth <= 6 or len({_kind(block) for block in blocks}) > 1:
        counts = _counts(student, teacher, load)
    else:
        three, two = (_counts_of_depth(student, teacher, load, some) for some in (3, 2))
        counts = {name: of + (depth - 3) * (of - two[name]) for name, of in three.items()}
    return {name: count / load.images for name, count in counts.items()}


def _kind(block: nn.Module) -> tuple[Any, ...]:
    """Return what the FLOPs of a block depend on."""
    return block.drop_path, *(tuple(weight.shape) for weight in block.parameters())


def _counts_of_depth(student: Network, teacher: Network, load: Load, depth: int) -> dict[str, int]:
    for network in (student, teacher):
        network.backbone.vit.blocks = network.backbone.vit.blocks[:depth]
    return _counts(student, teacher, load)


def _counts(student: Network, teacher: Network, load: Load) -> dict[str, int]:
    """Return the FLOPs of a micro-batch."""
    with FlopCounterMode(display=False) as counter:
        if student.dino_head is not None:  # without heads nothing asks the teacher
            _call(teacher, _empty(teacher, "meta"), load, student=False).whole()
        taught = _of_backbone(counter)
        outputs = _call(student, _empty(student, "meta"), load, student=True)
        products = outputs.whole()
        forward = _of_backbone(counter) - taught
        reduce(torch.add, [some.sum() for some in (outputs.cls, *products)]).backward()
    both = _of_backbone(counter)
    return {
        "teacher": taught,
        "student forward": forward,
        "student backward": both - taught - forward,
        "heads": counter.get_total_flops() - both,
        "in all": counter.get_total_flops(),
    }


def _of_backbone(counter: FlopCounterMode) -> int:
    """Return what has been counted in backbones until now."""
    return sum(counter.get_flop_counts().get("Network.backbone", {}).values())


def _logits(student: Network, load: Load) -> int:
    """Return the bytes between the heads' last layers and their gradients, one loss after another."""
    lasting, passing = 0, 0
    for head, taught, learned, views in (
        (student.dino_head, GLOBAL_VIEWS * load.images, load.views * load.images, load.views),
        (_patch_head(student), load.masked, load.masked, 1),
    ):
        if head is not None and learned:
            prototypes, width = head.prototypes.shape
            lasts, passes = step_bytes(
                prototypes,
                width,
                taught=load.accumulate * taught,
                learned=learned,
                views=views,
                itemsize=load.precision.itemsize,
                device=load.device,
            )
            lasting, passing = lasting + lasts, max(passing, passes)
    return lasting + passing


def _activations(student: Network, load: Load) -> int:
    """Return the bytes that the student's forward pass saves for its backward pass."""
    kept: list[torch.UntypedStorage] = []
    seen: set[int] = set()
    outside, inputs = 0, 0
    calls: list[int] = []
    products: list[int] = []
    inside = False

    def pack(tensor: Tensor) -> Tensor:
        nonlocal outside
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            kept.append(storage)  # another storage could take the place of one that is gone
            if inside:
                calls[-1] += storage.nbytes()
            else:
                outside += storage.nbytes()
        return tensor

    class Products(TorchDispatchMode):
        """Counts what selective checkpointing keeps of a block."""

        def __torch_dispatch__(
            self, function: Any, types: Any, arguments: Any = (), options: Any = None
        ) -> Any:
            result = function(*arguments, **(options or {}))
            if inside and function in KEPT_BY_SELECTIVE:
                outputs = result if isinstance(result, tuple) else (result,)
                products[-1] += sum(out.nbytes for out in outputs if isinstance(out, Tensor))
            return result

    def enter(_: object, arguments: tuple[Tensor, ...]) -> None:
        nonlocal inside, inputs
        inside = True
        inputs += arguments[0].nbytes
        calls.append(0)
        products.append(0)

    def leave(*_: object) -> None:
        nonlocal inside
        inside = False

    with ExitStack() as stack:
        for block in student.backbone.vit.blocks:
            stack.callback(block.register_forward_pre_hook(enter).remove)
            stack.callback(block.register_forward_hook(leave).remove)
        # Its tensors have no content either, but say that they are on the CPU.
        stack.enter_context(FakeTensorMode())
        tensors = _empty(student, "cpu")
        seen.update(tensor.untyped_storage()._cdata for tensor in tensors.values())
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor))
        stack.enter_context(autocast(load.precision, torch.device("cpu")))
        if load.checkpointing == "selective":
            stack.enter_context(Products())
        _call(student, tensors, load, student=True)
    if load.checkpointing == "selective":
        again = max(call - product for call, product in zip(calls, products, strict=True))
        return outside + inputs + sum(products) + max(0, again)
    if load.checkpointing:
        return outside + inputs + max(calls)
    return outside + sum(calls)


def _call(network: Network, tensors: dict[str, Tensor], load: Load, *, student: bool) -> Outputs:
    """Return the outputs of a network with other tensors, on views on the device of these."""
    device = next(iter(tensors.values())).device
    count = GLOBAL_VIEWS * load.images
    patches = math.prod(network.backbone.grid(load.global_size, load.global_size))
    arguments = {"global_views": torch.zeros(count, *_shape(load.global_size), device=device)}
    if load.masked:
        arguments["masked_index"] = torch.zeros(load.masked, dtype=torch.int64, device=device)
    if student and network.backbone.mask_token is not None:
        arguments["masks"] = torch.zeros(count, patches, dtype=torch.bool, device=device)
    if student and load.local_views:
        arguments["local_views"] = torch.zeros(
            load.local_views * load.images, *_shape(load.local_size), device=device
        )
    return functional_call(network, tensors, kwargs=arguments)


def _shape(size: int) -> tuple[int, int, int]:
    return 3, size, size


def _empty(module: nn.Module, device: str) -> dict[str, Tensor]:
    """Return tensors like the parameters and buffers of a module, by name, for another device."""
    return {
        name: torch.empty(
            tensor.shape, dtype=tensor.dtype, device=device, requires_grad=tensor.requires_grad
        )
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }


def _patch_head(network: Network) -> ProjectionHead | None:
    return network.ibot_head if network.ibot_head is not None else network.dino_head


def _line(figures: Mapping[str, float], words: Callable[[float], str]) -> str:
    return ", ".join(f"{name} {words(figure)}" for name, figure in figures.items())


def _short(count: float) -> str:
    """Return 22.1 M, 4.61 G and so on, in powers of a thousand."""
    power = min(5, int(math.log10(max(1.0, count * 1.0005)) / 3))
    return f"{count / 1000**power:.3g}{['', ' k', ' M', ' G', ' T', ' P'][power]}"


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"
