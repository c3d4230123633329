"""Applies parallelism, activation checkpointing, compilation and precision to plain networks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from shared.errors import LvdError
from train.distributed.ranks import Ranks
from train.distributed.settings import ParallelSettings
from train.model.blocks import Shapes
from train.model.network import Network

GRAPHS = 128
"""Versions that torch.compile may make of a block: one for each shape, mode and drop path."""

KEPT_BY_SELECTIVE = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
)
"""What selective checkpointing does not compute again. Attention's explicit form is no part of it:
its weights, a square of the tokens, are what most is saved by."""


def parallelise(
    student: Network, teacher: Network, settings: ParallelSettings, ranks: Ranks
) -> tuple[nn.Module, nn.Module]:
    """Return what to call in place of `student` and `teacher`, which are changed in place.

    Both are on the device of `ranks` or, to be sharded, on `meta`. Blocks and heads are sharded as
    units of their own, the teacher on the student's mesh, so that its average runs on matching
    shares. Parameters keep their names and places. Without a process group
    nothing is spread. Make the optimiser afterwards.
    """
    # `forward` is replaced, not the module wrapped: names stay, and what FSDP does around a block
    # stays outside of what is recomputed and compiled.
    if settings.activation_checkpointing:
        again = partial(checkpoint, use_reentrant=False)
        if settings.activation_checkpointing == "selective":
            kept = partial(create_selective_checkpoint_contexts, list(KEPT_BY_SELECTIVE))
            again = partial(again, context_fn=kept)
        for block in _blocks(student):
            block.forward = partial(again, block.forward)
    if settings.compile:
        _compile([*_blocks(student), *_blocks(teacher)])
        for network in (student, teacher):
            last = _blocks(network)[-1]
            last.forward = partial(_of_any_number, last.forward)
    if not dist.is_initialized():
        return student, teacher
    if settings.sharded:
        # Nothing here changes a network's outputs in place, which is what FSDP warns of.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        mesh = _mesh(settings, ranks)
        precision = resolve_precision(settings, ranks.device)
        for network in (student, teacher):
            _shard(network, mesh, precision)
        return student, teacher
    # Networks have no buffers; with the default, processes were seen to abort at their end.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    return DistributedDataParallel(
        student,
        device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
    ), teacher


def resolve_precision(settings: ParallelSettings, device: torch.device) -> torch.dtype:
    """Return the type of matrix products on `device`, with `auto` decided.

    bfloat16 on CUDA and on CPUs with instructions for it: with AVX-512 BF16 on one thread a step
    of student and teacher (4 blocks, head, AdamW) is 1.7 times faster than in float32 at widths of
    128 and 192, and 2 times at 384, with 64 and 196 patches alike, each with the faster of explicit
    and fused attention; 1.2 to 1.6 times with fused attention in both.
    """
    if settings.precision != "auto":
        return getattr(torch, settings.precision)
    on_cpu = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if device.type == "cuda" or on_cpu else torch.float32


def autocast(precision: torch.dtype, device: torch.device) -> torch.autocast:
    """Return the context of one forward pass in `precision`.

    One for each micro-batch: what it has cast it keeps until it ends, the optimiser's step or not.
    """
    return torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32)


def sync_gradients(student: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Return the context of forward and backward of a micro-batch, the `last` of its step or not.

    DDP averages gradients over the processes with the last one only. FSDP does with each: the sum
    of whole gradients is what it is there to avoid. HSDP does so in each copy, and averages over
    the copies with the last one.
    """
    if isinstance(student, FSDPModule):
        student.set_requires_all_reduce(last)
    if isinstance(student, DistributedDataParallel) and not last:
        return student.no_sync()
    return nullcontext()


def prepare_frozen(
    teacher: nn.Module, encoder: nn.Module, settings: ParallelSettings, precision: torch.dtype
) -> None:
    """Keep a frozen `teacher`, never sharded, in as few bytes as autocast to `precision` needs.

    Weights of linear layers and convolutions are rounded once, to what autocast would round them to
    at each pass, so the outputs are the same. With `compile`, the blocks of `encoder`, its longest
    row of modules, are compiled.
    """
    if precision != torch.float32:
        for module in roundable(teacher):
            module.to(precision)
    if settings.compile:
        rows = [m for m in encoder.modules() if isinstance(m, nn.ModuleList | nn.Sequential)]
        _compile(list(max(rows, key=len, default=())))


def roundable(network: nn.Module) -> list[nn.Module]:
    """Return the modules whose weights autocast rounds before it uses them, whatever they meet."""
    return [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def _compile(blocks: list[nn.Module]) -> None:
    limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    torch._dynamo.config.recompile_limit = limit
    for block in blocks:
        block.forward = torch.compile(block.forward, dynamic=False)


def _of_any_number(
    forward: Callable[..., Tensor],
    x: Tensor,
    shapes: Shapes | None = None,
    read: Tensor | None = None,
) -> Tensor:
    """Call a compiled block that is asked for another number of tokens at each step: by one graph."""
    if read is not None:
        torch._dynamo.maybe_mark_dynamic(read, 0)
    return forward(x, shapes, read)


def shares(settings: ParallelSettings, world: int, local_world: int) -> int:
    """Return how many of `world` processes, `local_world` a machine, hold one copy of a network.

    Raises LvdError where they cannot be cut in groups of so many.
    """
    if not settings.sharded or world == 1:
        return 1
    group = world
    if settings.strategy == "hsdp":
        group = settings.shard_group or local_world
    if world % group:
        raise LvdError(
            f"parallel.shard_group: {world} processes cannot be cut in groups of {group}: name a "
            "number that divides them"
        )
    return group


def _mesh(settings: ParallelSettings, ranks: Ranks) -> DeviceMesh:
    """Return the processes that shards are spread over: in a row, or copies by shares of a copy."""
    group = shares(settings, ranks.world, ranks.local_world)
    if settings.strategy == "fsdp":
        return init_device_mesh(ranks.device.type, (group,))
    shape = (ranks.world // group, group)
    return init_device_mesh(ranks.device.type, shape, mesh_dim_names=("copy", "share"))


def _blocks(network: Network) -> nn.Sequential:
    return network.backbone.vit.blocks


def _shard(network: Network, mesh: DeviceMesh, precision: torch.dtype) -> None:
    """Shard a network: each block and each head by itself, and what is left as one unit.

    On CUDA the blocks' weights travel in `precision`, which saves half of the traffic and the copies
    that autocast would keep for the backward pass; the CPU's layer norm cannot take them so. Heads
    and tokens travel in float32, as do all gradients (DINOv2, arXiv 2304.07193, section 5, keeps the
    heads' in float32 too). Everything is given back after each forward pass: the parameters are the
    shares also where no backward pass follows, as for the teacher and in a skipped step.
    """
    in_blocks = MixedPrecisionPolicy(
        param_dtype=precision if mesh.device_type == "cuda" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for block in _blocks(network):
        fully_shard(block, mesh=mesh, mp_policy=in_blocks, reshard_after_forward=True)
    heads: list[nn.Module] = [
        head
        for head in (network.projector, network.dino_head, network.ibot_head)
        if head is not None and list(head.parameters())
    ]
    for head in heads:
        fully_shard(head, mesh=mesh, reshard_after_forward=True)
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
    _prefetch(network, heads)


def _prefetch(network: Network, heads: list[nn.Module]) -> None:
    """Let each unit gather the next one's weights while it computes, in both directions.

    Only what is called in each pass: what was gathered and not used would be there, and old, in the
    next one. A pass for CLS tokens alone skips the iBOT head, and a frozen head has no backward.
    The network itself begins its backward pass with each of its outputs, so it names nothing there.
    """
    always = [head for head in heads if head is not network.ibot_head]
    forward = [network, *_blocks(network), *always]
    for unit, following in pairwise(forward):
        unit.set_modules_to_forward_prefetch([following])
    learning = [head for head in heads if any(p.requires_grad for p in head.parameters())]
    for unit, following in pairwise(reversed([*_blocks(network), *learning])):
        unit.set_modules_to_backward_prefetch([following])
