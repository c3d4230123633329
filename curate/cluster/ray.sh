#!/usr/bin/env bash
# Curates on several machines: start it on each, with the same arguments and variables.
#
#   HEAD=ADDRESS NODES=4 NODE=0 TOKEN=SECRET curate/cluster/ray.sh --crawl CRAWL --seed SEED --out OUT --work WORK
#
# Arguments are those of `lvd-curate run`. With OUT and WORK on a store (s3://...), the machines share
# nothing else: each needs the store's credentials in its environment, and room below TMPDIR. Else OUT
# and WORK must be the same folders on all machines, as whatever else is named and is no URL. The machine of NODE 0 is the head: it starts
# Ray, waits for the others, runs the command and ends with its exit status; the others give it
# their processors and end with it. Started again with the same arguments, a run goes on where it
# stopped.
#
# Variables, each with its default:
#   HEAD                 the machine of NODE 0, by a name or address that all reach
#   NODES        1       machines
#   NODE         0       which of them this one is
#   TOKEN                a secret that all are given: without it nobody joins, or sends work
#   PORT         6379    a free port of the head
#   PATIENCE     300     seconds that machines wait for each other
#   LVD_BIN      .venv/bin  the folder with `ray` and `lvd-curate`
#   RAY_OPTIONS          more options of `ray start`, as --num-cpus=16 or --temp-dir=/scratch/ray
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
bin=${LVD_BIN:-$root/.venv/bin}
nodes=${NODES:-1} node=${NODE:-0} patience=${PATIENCE:-300}

if [[ ! -x $bin/ray || ! -x $bin/lvd-curate ]]; then
  echo "ray.sh: no ray and lvd-curate in $bin: run 'make setup' in $root, or set LVD_BIN" >&2
  exit 2
fi
if [[ -z ${HEAD:-} ]]; then
  if ((nodes > 1)); then
    echo "ray.sh: NODES is $nodes but HEAD is not set: name the machine of NODE 0" >&2
    exit 2
  fi
  HEAD=127.0.0.1
fi
if [[ -z ${TOKEN:-} ]] && ((nodes > 1)); then
  echo "ray.sh: TOKEN is not set: give all machines one, such as \$(openssl rand -hex 32)" >&2
  exit 2
fi
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=${TOKEN:-$RANDOM$RANDOM$RANDOM$RANDOM}
export RAY_ADDRESS=$HEAD:${PORT:-6379} RAY_USAGE_STATS_ENABLED=0
read -ra options <<<"${RAY_OPTIONS:-}"

# Its processes end with it; `ray stop` would end those of other jobs too.
serve() {
  "$bin/ray" start --block --disable-usage-stats "$@" "${options[@]}" &
  ray=$!
}
trap '[[ -z ${ray:-} ]] || kill "$ray" 2>/dev/null || true' EXIT

# Waits until a command succeeds, or says what is missing.
await() {
  local missing=$1 end=$((SECONDS + patience))
  shift
  until "$@"; do
    if [[ -n ${ray:-} ]] && ! kill -0 "$ray" 2>/dev/null; then
      echo "ray.sh: 'ray start' failed: what it said is above" >&2
      exit 1
    elif ((SECONDS >= end)); then
      echo "ray.sh: $missing at $RAY_ADDRESS after $patience s" >&2
      exit 1
    fi
    sleep 1
  done
}
is_up() { "$bin/ray" health-check --address "$RAY_ADDRESS" >/dev/null 2>&1; }
are_there() {
  local ask='import ray; ray.init(log_to_driver=False); print(sum(n["Alive"] for n in ray.nodes()))'
  local count
  count=$("$bin/python" -c "$ask" 2>/dev/null) && ((count >= nodes))
}

if ((node > 0)); then
  trap '' USR1 # the head's, which ends this machine's work
  await "no head answers" is_up
  serve --address "$RAY_ADDRESS"
  # When the head is gone, so is this machine's work.
  wait "$ray" || true
  exit 0
fi
serve --head --port "${PORT:-6379}" --node-ip-address "$HEAD" --include-dashboard=false
await "there are not $nodes machines" are_there
"$bin/lvd-curate" run --executor ray "$@" &
command=$!
# What is done stays, and the same command goes on. A command in the background ignores Ctrl-C.
trap 'interrupted=yes; kill -TERM "$command" 2>/dev/null || true' INT TERM USR1
while true; do
  interrupted=no status=0
  wait "$command" || status=$?
  # A signal, too, ends `wait`.
  [[ $interrupted == yes ]] || exit "$status"
done
