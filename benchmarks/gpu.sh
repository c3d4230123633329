#!/usr/bin/env bash
# Measures both stages on one card: benchmarks/gpu.sh --out DIR [--minutes 6] [--device cpu --quick].
# Runs on any Python with torch, torchvision and timm, and says what else that one lacks.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$(command -v python3 || true)}
[ -n "$python" ] || { echo "gpu.sh: no python3 on PATH: install Python 3.11 or 3.12, or say PYTHON=..."; exit 2; }
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
export PYTHONSAFEPATH=1 # a folder `train` where the user happens to be is not this one's
# As lvd-train starts itself (train/launch.py).
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
export MALLOC_MMAP_MAX_=${MALLOC_MMAP_MAX_:-0} MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-17179869184}
exec "$python" -m benchmarks.gpu "$@"
