#!/usr/bin/env bash
# Trains on one machine, or on several: start it on each, with the same arguments and variables.
#
#   train/cluster/torchrun.sh --recipe vits16 --shards SHARDS --out OUT
#   HEAD=ADDRESS NODES=2 train/cluster/torchrun.sh --recipe vitl14 --shards SHARDS --out OUT
#
# Arguments are those of `lvd-train run`. OUT, and SHARDS unless it is a URL, must be the same
# folders on all machines. Started again with the same arguments, a run goes on from its newest
# checkpoint.
#
# Variables, each with its default:
#   NODES            1         machines
#   HEAD                       the one of them where they meet, by a name or address that all reach
#   PORT             29400     a free port there
#   RUN_ID           lvd       tells runs that meet at the same place from each other
#   NPROC            its GPUs  processes on this machine; 1 where there is none
#   MAX_RESTARTS     0         how often all processes start again, from the newest checkpoint,
#                              after one has failed or a machine was lost
#   OMP_NUM_THREADS  1         threads of a process; on CPUs, 1 becomes cores / NPROC
#   GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME
#                              torch's own: the network interface to use where there are several
#   TORCHRUN                   the torchrun of another environment than .venv
#
# SIGUSR1, SIGTERM and Ctrl-C ask for a checkpoint and a clean end. They are passed on to the
# training processes as SIGUSR1, because torchrun kills them 30 seconds after a SIGTERM.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
torchrun=${TORCHRUN:-$root/.venv/bin/torchrun}
nodes=${NODES:-1}
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l) || gpus=0
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

if [[ ! -x $torchrun ]]; then
  echo "torchrun.sh: no $torchrun: run 'make setup' in $root, or set TORCHRUN" >&2
  exit 2
fi
if ((nodes > 1)); then
  if [[ -z ${HEAD:-} ]]; then
    echo "torchrun.sh: NODES is $nodes but HEAD is not set: name the machine where they meet" >&2
    exit 2
  fi
  meeting=(
    --rdzv-backend c10d
    --rdzv-endpoint "$HEAD:${PORT:-29400}"
    --rdzv-id "${RUN_ID:-lvd}"
  )
else
  meeting=(--standalone)
fi

# Ignored by torchrun, which would die of it; its training processes install their own handler.
trap '' USR1
"$torchrun" \
  --nnodes "$nodes" \
  --nproc-per-node "${NPROC:-$((gpus > 0 ? gpus : 1))}" \
  --max-restarts "${MAX_RESTARTS:-0}" \
  "${meeting[@]}" \
  -m train.launch run "$@" &
child=$!

# The children of torchrun are the training processes.
trap 'interrupted=yes; pkill -USR1 --parent "$child" || true' USR1 TERM INT
while true; do
  interrupted=no status=0
  wait "$child" || status=$?
  # A signal, too, ends `wait`.
  [[ $interrupted == yes ]] || exit "$status"
done
