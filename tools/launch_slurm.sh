#!/usr/bin/env bash
# Trains on GPU hosts under Slurm: submits a job of one process a GPU that is started again when it
# was told to stop.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: tools/launch_slurm.sh --nodes=N --gpus=N [option ...] -- ARGUMENT ...

Submits `python -m kosmos2_jax.train --distributed ARGUMENT ...` to Slurm, one process a GPU.
--workdir must be a folder that all nodes share.

  --nodes=N        hosts
  --gpus=N         GPUs of each host
  --cpus=N         CPU cores of each process (default 8)
  --time=TIME      longest time of one start, as Slurm has it (default 24:00:00)
  --retries=N      starts after failures (default 3); see below
  --python=FILE    default: .venv/bin/python of this checkout
  --option=OPTION  any other option of sbatch, as --option=--partition=gpu; may be repeated
  --dry-run        print the command and submit nothing

Two minutes before its time is over, or when it is preempted, the job is sent SIGTERM: it saves and
ends with status 75, for which it is queued again. Any other status but 0 queues it again up to
--retries times. The run always goes on from its last whole checkpoint.
TEXT
}

fail() {
  echo "launch_slurm.sh: error: $1; see --help" >&2
  exit 2
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
nodes='' gpus='' cpus=8 limit=24:00:00 retries=3 python=$root/.venv/bin/python dry_run=no
options=()
while (($#)); do
  case $1 in
    --nodes=*) nodes=${1#*=} ;;
    --gpus=*) gpus=${1#*=} ;;
    --cpus=*) cpus=${1#*=} ;;
    --time=*) limit=${1#*=} ;;
    --retries=*) retries=${1#*=} ;;
    --python=*) python=${1#*=} ;;
    --option=*) options+=("${1#*=}") ;;
    --dry-run) dry_run=yes ;;
    --help | -h)
      usage
      exit 0
      ;;
    --)
      shift
      break
      ;;
    *) fail "unknown option $1" ;;
  esac
  shift
done
for needed in nodes gpus cpus retries; do
  [[ ${!needed} =~ ^[0-9]+$ ]] || fail "--$needed must be a number"
done
(($#)) || fail "arguments of the training are missing after --"

command=$(printf ' %q' "$python" -m kosmos2_jax.train --distributed "$@")
# One start of the job, for sh. A process that dies takes the others with it at once.
job="srun --kill-on-bad-exit=1$command
status=\$?
if [ \$status -eq 75 ] || { [ \$status -ne 0 ] && [ \${SLURM_RESTART_COUNT:-0} -lt $retries ]; }
then
  scontrol requeue \"\$SLURM_JOB_ID\"
fi
exit \$status"
submit=(sbatch --job-name=kosmos2 --nodes="$nodes" --ntasks-per-node="$gpus"
  --gpus-per-node="$gpus" --cpus-per-task="$cpus" --time="$limit" --signal=TERM@120 --requeue
  --open-mode=append --chdir="$root" "${options[@]}" --wrap="$job")
printf '+' >&2
printf ' %q' "${submit[@]}" >&2
printf '\n' >&2
if [[ $dry_run == no ]]; then
  "${submit[@]}"
fi
