"""Inductor on the CPU: blocks compiled in bfloat16 with stochastic depth compute what eager ones do."""

from __future__ import annotations

import torch
from compiled_blocks import forward_and_backward, relative_error
from torch._dynamo.utils import counters
from torch._inductor import config

QUICKLY = {
    "compile_threads": 1,
    "cpp.vec_isa_ok": False,
    "cpp_wrapper": True,
    "cpp_cache_precompile_headers": False,
    "aot_inductor.enable_line_tables": False,
    "aot_inductor.debug_compile": True,
}
"""The same kernels, not optimised, without the processor's vectors, those of a pass in one library.

Two libraries are compiled sooner than the headers that they would share.
"""


def test_compiled_blocks_with_stochastic_depth_are_the_eager_ones() -> None:
    cpu = torch.device("cpu")
    counters.clear()
    with config.patch(QUICKLY):
        found = forward_and_backward(cpu, compiled=True, drop_path=0.5)
    # Forward and backward of the one block, in a graph without breaks.
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert counters["inductor"]
    # Both draw the samples that keep a branch from torch's generator, in the same order.
    expected = forward_and_backward(cpu, compiled=False, drop_path=0.5)
    for name, tensor in expected.items():
        assert found[name].isfinite().all()
        assert relative_error(found[name], tensor) < 2e-2, name
    other = forward_and_backward(cpu, compiled=False, drop_path=0.5, seed=1)
    assert relative_error(other["cls"], expected["cls"]) > 1e-2
