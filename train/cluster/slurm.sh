#!/usr/bin/env bash
# Trains on the machines of a Slurm job. From the repository's root, after `make setup`:
#
#   sbatch train/cluster/slurm.sh --recipe vitl14 --shards SHARDS --out OUT
#   sbatch --nodes=4 --gpus-per-node=4 --partition=NAME train/cluster/slurm.sh ...
#
# Arguments are those of `lvd-train run`; options of sbatch go before the script and override what
# stands below. The repository, OUT and SHARDS (unless it is a URL) must be on storage that all
# machines share.
#
#SBATCH --job-name=lvd-train
#SBATCH --nodes=2
# One torchrun on each machine, which starts a process for each of its GPUs.
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
# For the loaders' workers: data.workers, and one more, for each GPU.
#SBATCH --cpus-per-task=64
# All memory of each machine.
#SBATCH --mem=0
#SBATCH --time=24:00:00
# Ten minutes before that time is up, the script is asked to stop: it lets the training processes
# save, and puts the job in the queue again. It then goes on from that checkpoint.
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
# One log for all the times that the job runs.
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#
# Variables: MAX_RESTARTS, OMP_NUM_THREADS and TORCHRUN as in torchrun.sh, and
#   LVD_ROOT  the repository's root; by default the folder where sbatch was called
#   PORT      a free port of the first machine; by default one that follows from the job's number
set -euo pipefail

root=${LVD_ROOT:-$SLURM_SUBMIT_DIR}
if [[ ! -x $root/train/cluster/torchrun.sh ]]; then
  echo "slurm.sh: no train/cluster/torchrun.sh in $root: call sbatch in the repository's root" >&2
  exit 2
fi

HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
export HEAD
export NODES=$SLURM_JOB_NUM_NODES
export RUN_ID=$SLURM_JOB_ID
export PORT=${PORT:-$((29400 + SLURM_JOB_ID % 1000))}
if [[ -n ${SLURM_GPUS_ON_NODE:-} ]]; then
  export NPROC=$SLURM_GPUS_ON_NODE
fi

# Newer versions of srun do not take this from sbatch.
options=()
if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
  options+=(--cpus-per-task "$SLURM_CPUS_PER_TASK")
fi
srun --kill-on-bad-exit=1 "${options[@]}" "$root/train/cluster/torchrun.sh" "$@" &
step=$!

asked=no
trap 'asked=yes interrupted=yes; kill -USR1 "$step"' USR1 # srun passes it on to torchrun.sh
while true; do
  interrupted=no status=0
  wait "$step" || status=$?
  # A signal, too, ends `wait`.
  [[ $interrupted == yes ]] || break
done
if [[ $asked == yes && $status == 0 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
