"""Measures both stages on one card: `benchmarks/gpu.sh --out DIR`; see benchmarks/README.md."""
