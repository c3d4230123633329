#!/usr/bin/env bash
# Curates on the machines of a Slurm job. From the repository's root, after `make setup`:
#
#   sbatch curate/cluster/slurm.sh --crawl CRAWL --seed SEED --out OUT --work WORK
#   sbatch --nodes=16 --partition=NAME curate/cluster/slurm.sh ...
#
# Arguments are those of `lvd-curate run`; options of sbatch go before the script and override what
# stands below. The repository and what is not a URL must be on storage that all machines share; OUT
# and WORK are both URLs or neither. What sbatch is called with (AWS_ACCESS_KEY_ID and the like) is in
# the environment of all machines.
#
#SBATCH --job-name=lvd-curate
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
# All memory of each machine. Decoding wants processors: ask for a GPU (--gpus-per-node=1) only
# where the embedder is larger than a ViT-S.
#SBATCH --mem=0
#SBATCH --time=24:00:00
# Five minutes before that time is up, the script is asked to stop and puts the job in the queue
# again. It then goes on where it stopped.
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
# One log for all the times that the job runs.
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#
# Variables: PATIENCE, LVD_BIN and RAY_OPTIONS as in ray.sh, and
#   LVD_ROOT  the repository's root; by default the folder where sbatch was called
#   PORT      a free port of the first machine; by default one that follows from the job's number
set -euo pipefail

root=${LVD_ROOT:-$SLURM_SUBMIT_DIR}
if [[ ! -x $root/curate/cluster/ray.sh ]]; then
  echo "slurm.sh: no curate/cluster/ray.sh in $root: call sbatch in the repository's root" >&2
  exit 2
fi

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
# Ray wants an address, and the same one on all machines.
HEAD=$(getent hosts "$first" | sed -n '1s/ .*//p')
export HEAD=${HEAD:-$first}
export NODES=$SLURM_JOB_NUM_NODES
export PORT=${PORT:-$((20000 + SLURM_JOB_ID % 10000))}
TOKEN=${TOKEN:-$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')}
export TOKEN

# One node's number is known there alone.
srun --kill-on-bad-exit=1 bash -c 'NODE=$SLURM_NODEID exec "$@"' _ "$root/curate/cluster/ray.sh" "$@" &
step=$!

asked=no
trap 'asked=yes interrupted=yes; kill -USR1 "$step"' USR1 # srun passes it on to ray.sh
while true; do
  interrupted=no status=0
  wait "$step" || status=$?
  # A signal, too, ends `wait`.
  [[ $interrupted == yes ]] || break
done
if [[ $asked == yes && $status != 0 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
