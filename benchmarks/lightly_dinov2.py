"""Measure lightly-train's dinov2 method inside lightly-train's own environment (no import of ours).

Trains `--steps` steps on a folder of images, or with `--bare` on tensors in memory (its training
step, backward, clipping, optimiser and teacher update, nothing else), and prints one JSON line.
Offline: its usage events are off. It is not called lightly.py because that would hide `lightly`.

    /path/to/lightly/env/bin/python benchmarks/lightly_dinov2.py --images FOLDER --steps 20
"""

from __future__ import annotations

import os

os.environ |= {"LIGHTLY_TRAIN_EVENTS_DISABLED": "1", "LIGHTLY_TRAIN_POSTHOG_KEY": ""}

import contextlib
import json
import re
import resource
import statistics
import sys
import tempfile
import time
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import click
import lightly_train
import torch
from lightly_train._methods.dinov2 import dinov2
from lightly_train._models.dinov2_vit.dinov2_vit import DINOv2ViTModelWrapper
from lightly_train._models.dinov2_vit.dinov2_vit_src.layers.attention import MemEffAttention
from lightly_train._models.dinov2_vit.dinov2_vit_src.layers.block import Block
from lightly_train._models.dinov2_vit.dinov2_vit_src.models.vision_transformer import (
    DinoVisionTransformer,
)
from lightly_train._models.embedding_model import EmbeddingModel
from lightly_train._torch_helpers import update_momentum


class Watch:
    """Times every training step of a lightly-train run and counts its masked tokens."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.starts: list[float] = []
        self.ends: list[float] = []
        self.cpu: list[float] = []
        self.masked: list[int] = []
        self.workers_mib: list[float] = []
        self.parameters: dict[str, int] = {}

    def begin(self) -> None:
        """A step begins: its batch is here."""
        self.starts.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def end(self) -> None:
        """A step ends; the next begins when its batch is here."""
        self.ends.append(time.perf_counter())

    def install(self) -> None:
        """Wrap the method's hooks: a step ends with its teacher update, which is in a hook."""
        start, end, masks = (
            dinov2.DINOv2.on_train_batch_start,
            dinov2.DINOv2.on_train_batch_end,
            dinov2.create_collated_masks,
        )

        def timed_start(method, *args, **kwargs):
            self.begin()
            return start(method, *args, **kwargs)

        def timed_end(method, *args, **kwargs):
            result = end(method, *args, **kwargs)
            self.end()
            if len(self.ends) == self.steps:
                self.workers_mib = workers_memory()
                self.parameters = parameters(method)
            return result

        def counted_masks(*args, **kwargs):
            result = masks(*args, **kwargs)
            self.masked.append(len(result["mask_indices_list"]))
            return result

        dinov2.DINOv2.on_train_batch_start = timed_start
        dinov2.DINOv2.on_train_batch_end = timed_end
        dinov2.create_collated_masks = counted_masks


def workers_memory() -> list[float]:
    """Return the peak resident MiB of every child process: the loader's workers."""
    peaks = []
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            status = Path(f"/proc/{child}/status").read_text()
            peaks += [int(kib) / 1024 for kib in re.findall(r"VmHWM:\s+(\d+) kB", status)]
    return peaks


def parameters(method) -> dict[str, int]:
    """Return the parameters of the student's backbone and of its heads."""

    def count(module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    return {
        "backbone": count(method.student_embedding_model),
        "heads": count(method.student_head),
    }


def build_model(width, depth, heads, patch, registers, layer_scale, drop_path, size):
    """Return lightly-train's own ViT with the stated shape."""
    return DinoVisionTransformer(
        img_size=size,
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        num_register_tokens=registers,
        init_values=layer_scale,
        drop_path_rate=drop_path,
        drop_path_uniform=True,
        block_fn=partial(Block, attn_class=MemEffAttention),
        block_chunks=0,
    )


def train(model, options: SimpleNamespace, method_args: dict, watch: Watch) -> None:
    """Run lightly-train as its users do, less the checkpoints, which are no part of a step."""
    watch.install()
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(sys.stderr):
        os.environ["LIGHTLY_TRAIN_CACHE_DIR"] = out
        lightly_train.pretrain(
            out=Path(out) / "run",
            data=options.images,
            model=model,
            method="dinov2",
            method_args=method_args,
            batch_size=options.batch,
            num_workers=options.workers,
            accelerator="cpu",
            devices=1,
            precision="bf16-mixed" if options.precision == "bfloat16" else "32-true",
            epochs=100_000,
            trainer_args={"max_steps": options.steps},
            callbacks={"model_checkpoint": None, "model_export": None},
            transform_args={
                "image_size": (options.global_size, options.global_size),
                "local_view": {
                    "num_views": options.local_views,
                    "view_size": (options.local_size, options.local_size),
                },
            },
        )


def bare(model, options: SimpleNamespace, method_args: dict, watch: Watch) -> None:
    """Run only the method's own step on the same tensors again and again."""
    watch.install()
    optimiser_args = dinov2.DINOv2AdamWViTArgs()
    method = dinov2.DINOv2(
        dinov2.DINOv2Args(**method_args, weight_decay_start=optimiser_args.weight_decay),
        optimiser_args,
        EmbeddingModel(wrapped_model=DINOv2ViTModelWrapper(model)),
        global_batch_size=options.batch,
        num_input_channels=3,
    )
    trainer = SimpleNamespace(
        global_step=0, max_epochs=1, estimated_stepping_batches=options.steps, loggers=[]
    )
    method._trainer = trainer
    (optimiser,), _ = method.configure_optimizers()
    trained = [p for group in optimiser.param_groups for p in group["params"]]
    sizes = [options.global_size] * 2 + [options.local_size] * options.local_views
    batch = {"views": [torch.randn(options.batch, 3, size, size) for size in sizes]}
    for step in range(options.steps):
        trainer.global_step = step
        watch.begin()
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bfloat16"):
            loss = method.training_step_impl(batch, step).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, method.method_args.gradient_clip_val)
        method.on_before_optimizer_step(optimiser)
        optimiser.step()
        update_momentum(method.student_embedding_model, method.teacher_embedding_model, m=0.99)
        update_momentum(method.student_head, method.teacher_head, m=0.99)
        watch.end()
    watch.parameters = parameters(method)


def report(options: SimpleNamespace, method_args: dict, watch: Watch) -> dict:
    """Return the figures of the steady steps, which are all but the first `--warmup`."""
    starts, ends = watch.starts[options.warmup :], watch.ends[options.warmup :]
    waits = [start - end for start, end in zip(starts[1:], ends[:-1], strict=True)]
    steps = [later - earlier for earlier, later in pairwise(starts)]
    cpu = [later - earlier for earlier, later in pairwise(watch.cpu[options.warmup :])]
    patches = [(size // options.patch) ** 2 for size in (options.global_size, options.local_size)]
    prefix = 1 + options.registers
    teacher = 2 * (patches[0] + prefix)
    return {
        "what": "lightly-train bare step" if options.bare else "lightly-train",
        "images_per_second": options.batch / statistics.median(steps),
        "images_per_second_whole": options.batch * len(steps) / (starts[-1] - starts[0]),
        "step_seconds": statistics.median(steps),
        "wait_seconds": statistics.median(waits),
        "cpu_seconds": statistics.median(cpu),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "workers_peak_mib": watch.workers_mib,
        "parameters": watch.parameters,
        "tokens_per_image": {
            "teacher": teacher,
            "student": teacher + options.local_views * (patches[1] + prefix),
        },
        "masked_tokens_per_step": statistics.mean(watch.masked[options.warmup :]),
        "settings": vars(options) | {"method_args": method_args},
        "allocator": {
            name: value
            for name, value in os.environ.items()
            if name.startswith("MALLOC_") or name in ("LD_PRELOAD", "GLIBC_TUNABLES")
        },
        "versions": {name: version(name) for name in ("lightly-train", "torch")},
    }


@click.command()
@click.option("--images", type=click.Path(exists=True, file_okay=False))
@click.option("--bare", is_flag=True, help="The step alone, on tensors in memory.")
@click.option("--steps", default=20)
@click.option("--warmup", default=3, help="First steps that are not counted.")
@click.option("--width", default=192)
@click.option("--depth", default=12)
@click.option("--heads", default=3)
@click.option("--patch", default=16)
@click.option("--registers", default=0)
@click.option("--layer-scale", default=1e-5)
@click.option("--drop-path", default=0.0)
@click.option("--global-size", default=224)
@click.option("--local-size", default=96)
@click.option("--local-views", default=8)
@click.option("--batch", default=16)
@click.option("--prototypes", default=65_536)
@click.option("--hidden", default=2048)
@click.option("--bottleneck", default=256)
@click.option("--shared-head/--separate-heads", default=False)
@click.option("--centering", type=click.Choice(["sinkhorn", "ema"]), default="sinkhorn")
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default="float32")
@click.option("--threads", default=2)
@click.option("--workers", default=2)
def main(**chosen) -> None:
    """Train, and print one JSON line."""
    options = SimpleNamespace(**chosen)
    if not options.bare and options.images is None:
        raise click.UsageError("give --images FOLDER, or --bare")
    if options.steps < options.warmup + 3:
        raise click.UsageError("--steps must be at least --warmup + 3")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    # One bottleneck: lightly-train gives its iBOT head the DINO head's, whatever is asked.
    method_args = {
        "output_dim": options.prototypes,
        "hidden_dim": options.hidden,
        "dino_bottleneck_dim": options.bottleneck,
        "ibot_bottleneck_dim": options.bottleneck,
        "ibot_separate_head": not options.shared_head,
        "center_method": "sinkhorn_knopp" if options.centering == "sinkhorn" else "softmax",
    }
    model = build_model(
        options.width,
        options.depth,
        options.heads,
        options.patch,
        options.registers,
        options.layer_scale or None,
        options.drop_path,
        options.global_size,
    )
    watch = Watch(options.steps)
    (bare if options.bare else train)(model, options, method_args, watch)
    click.echo(json.dumps(report(options, method_args, watch)))


if __name__ == "__main__":
    main()
