"""How fast the exact search of stage retrieve is, against the bare matrix product it stands on.

Run `.venv/bin/python benchmarks/retrieve.py [--images N] [--seeds N] ...`. The two sides alternate,
chunk by chunk, so that whatever else the machine does weighs on both. The bare side is float32
blocks of queries times seeds into a buffer that is there already, and nothing after it, by the
faster of numpy and torch; the other sides are `curate.neighbours.search.top_k` from the stored float16
vectors, as it is and by float32 products alone, as on a CPU that does not multiply bfloat16. Times are
the process's CPU seconds.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable
from typing import Any


def main() -> None:
    """Print images a CPU second of all sides and their ratios, after a check against float64."""
    options = _options()
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(options.threads)
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    import numpy as np
    import torch

    from curate.forecast.clumps import clumps
    from curate.neighbours import search

    torch.set_num_threads(options.threads)
    search.use_threads(options.threads)
    vectors, _ = clumps(options.images + options.seeds, options.dim, planted=0)
    stored = vectors.astype(np.float16)
    del vectors
    seeds, images = stored[: options.seeds], stored[options.seeds :]
    _check(images, seeds, options.k)

    seeds32 = seeds.astype(np.float32)
    chunk, block = min(options.chunk, len(images)), options.block
    images32 = np.empty((chunk, options.dim), np.float32)
    product = np.empty(block * block, np.float32)
    multiply = {
        "numpy": lambda a, b, out: np.matmul(a, b.T, out=out),
        "torch": lambda a, b, out: torch.mm(
            torch.from_numpy(a), torch.from_numpy(b).T, out=torch.from_numpy(out)
        ),
    }
    for warm_up in multiply.values():
        _product(warm_up, images32[:block], seeds32, product, block)

    sides = {"top_k": search.pays, "top_k, float32": lambda *_: False}
    seconds = {name: np.zeros(options.repetitions) for name in (*multiply, *sides)}
    for repetition in range(options.repetitions):
        for first in range(0, len(images), chunk):
            asked = images[first : first + chunk]
            asked32 = images32[: len(asked)]
            asked32[:] = asked
            for name, by in multiply.items():
                seconds[name][repetition] += _timed(_product, by, asked32, seeds32, product, block)
            for name, pays in sides.items():
                search.pays = pays
                seconds[name][repetition] += _timed(search.top_k, asked, seeds, options.k)

    print(
        f"retrieve: top {options.k} of {options.seeds:,} seeds for {options.images:,} vectors of "
        f"{options.dim} dimensions, {options.threads} threads, median of {options.repetitions}"
    )
    work = 2 * options.images * options.seeds * options.dim
    for name, taken in seconds.items():
        label = f"curate.neighbours.search.{name}" if name in sides else f"bare product, {name}"
        middle = np.median(taken)
        print(
            f"  {label:40s} {middle:8.2f} CPU s {options.images / middle:10,.0f} images/CPU s "
            f"{work / middle / 1e9:8.1f} GFLOP/s"
        )
    bare = np.min([seconds[name] for name in multiply], axis=0)
    for name in sides:
        ratios = bare / seconds[name]
        print(
            f"  ratio {np.median(ratios):.3f} of the bare float32 product "
            f"({ratios.min():.3f} to {ratios.max():.3f} over the repetitions), {name}"
        )
    print(f"  peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--seeds", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--block", type=int, default=4_096, help="side of a block of the product")
    parser.add_argument("--chunk", type=int, default=32_768, help="images between alternations")
    return parser.parse_args()


def _product(by: Callable, queries: Any, base: Any, buffer: Any, block: int) -> None:
    """Multiply every block of queries by every block of the base, and drop what comes out."""
    for first in range(0, len(queries), block):
        asked = queries[first : first + block]
        for start in range(0, len(base), block):
            against = base[start : start + block]
            out = buffer[: len(asked) * len(against)].reshape(len(asked), len(against))
            by(asked, against, out)


def _timed(function: Callable, *arguments: Any) -> float:
    start = time.process_time()
    function(*arguments)
    return time.process_time() - start


def _check(images: Any, seeds: Any, k: int, sampled: int = 256) -> None:
    """Raise RuntimeError unless `top_k` finds the nearest seeds that float64 finds."""
    import numpy as np

    from curate.neighbours import search

    found, rows = search.top_k(images[:sampled], seeds, k)
    exact = [x.astype(np.float64) for x in (images[:sampled], seeds)]
    exact = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in exact]
    similarity = exact[0] @ exact[1].T
    best = -np.sort(-similarity, axis=1)[:, :k]
    there = np.take_along_axis(similarity, rows, axis=1)
    if not (np.allclose(there, best, atol=1e-6) and np.allclose(found, best, atol=1e-6)):
        raise RuntimeError("curate.neighbours.search.top_k does not find the nearest seeds")


if __name__ == "__main__":
    main()
