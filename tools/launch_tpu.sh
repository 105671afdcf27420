#!/usr/bin/env bash
# Trains on a Cloud TPU: asks for it, installs this checkout, runs one command on all workers,
# goes on after preemptions, and gives the TPU back.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: tools/launch_tpu.sh --name=NAME --zone=ZONE --type=TYPE --version=VERSION [option ...] -- ARGUMENT ...

Trains with `python -m kosmos2_jax.train --distributed ARGUMENT ...` on every worker of a Cloud TPU.
Needs gcloud, logged in. --workdir must be a folder that all workers share, or in a bucket.

  --name=NAME        of the TPU and of its queued resource
  --zone=ZONE        as us-west4-a
  --type=TYPE        accelerator type, as v5litepod-16
  --version=VERSION  runtime version, as v2-alpha-tpuv5-lite
  --project=PROJECT  default: gcloud's own
  --spot             may be preempted: a new one is asked for, and the run goes on
  --retries=N        starts after failures that are no preemption (default 3); see below
  --setup=COMMAND    runs on every worker before the installation, as to mount the data
  --python=COMMAND   of the workers, 3.11 or newer (default python3; that of images with Ubuntu
                     22.04 is older: let --setup install another)
  --keep             do not delete the TPU at the end
  --dry-run          print the commands and run none

Status 75 of a worker ("saved, start me again") starts the run again at once, any other but 0 up to
--retries times. The run always goes on from its last whole checkpoint.
TEXT
}

fail() {
  echo "launch_tpu.sh: error: $1; see --help" >&2
  exit 2
}

# Prints the command, and runs it unless this is a dry run.
run() {
  printf '+' >&2
  printf ' %q' "$@" >&2
  printf '\n' >&2
  if [[ $dry_run == no ]]; then
    "$@"
  fi
}

on_all_workers() {
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"
}

state() {
  gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
    --format='value(state.state)' 2>/dev/null || echo MISSING
}

is_ready() {
  [[ $dry_run == yes || $(state) == ACTIVE ]]
}

create() {
  run gcloud compute tpus queued-resources create "$name" "${where[@]}" --node-id="$name" \
    --accelerator-type="$type" --runtime-version="$version" "${spot[@]}"
  until is_ready; do
    case $(state) in
      FAILED | SUSPENDED | MISSING) return 1 ;;
    esac
    sleep 30
  done
}

delete() {
  run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
}

install() {
  local archive
  archive=$(mktemp --suffix=.tar.gz)
  run git -C "$root" archive --format=tar.gz --output="$archive" HEAD
  run gcloud compute tpus tpu-vm scp "$archive" "$name:kosmos2_jax.tar.gz" "${where[@]}" \
    --worker=all
  rm -f "$archive"
  on_all_workers "set -e; $setup
mkdir -p kosmos2_jax; tar -xzf kosmos2_jax.tar.gz -C kosmos2_jax; cd kosmos2_jax
test -d .venv || $python -m venv .venv
.venv/bin/pip install --quiet --constraint constraints.txt '.[train,tpu,gcs]'"
}

# Leaves the training's own status in `status`: what ssh to many workers gives is not that.
train() {
  status=0
  on_all_workers "cd kosmos2_jax; .venv/bin/python -m kosmos2_jax.train --distributed$arguments
status=\$?; echo \$status > ../kosmos2_status; exit \$status" || status=$?
  if ((status)); then
    status=$(gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=0 \
      --command='cat kosmos2_status' 2>/dev/null) || status=1
  fi
}

name='' zone='' type='' version='' setup=':' python=python3 dry_run=no keep=no retries=3
spot=() project=()
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --project=*) project=("$1") ;;
    --spot) spot=(--spot) ;;
    --retries=*) retries=${1#*=} ;;
    --setup=*) setup=${1#*=} ;;
    --python=*) python=${1#*=} ;;
    --keep) keep=yes ;;
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
for needed in name zone type version; do
  [[ -n ${!needed} ]] || fail "--$needed is missing"
done
[[ $retries =~ ^[0-9]+$ ]] || fail "--retries must be a number"
(($#)) || fail "arguments of the training are missing after --"
arguments=$(printf ' %q' "$@")
where=(--zone="$zone" "${project[@]}")
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

is_installed=no
while true; do
  if [[ $is_installed == no ]] || ! is_ready; then
    if [[ $dry_run == no && $(state) != MISSING && $(state) != ACTIVE ]]; then
      delete # what a preemption has left
    fi
    if ! is_ready || [[ $dry_run == yes ]]; then
      create || fail "there is no TPU to be had: $(state)"
    fi
    install
    is_installed=yes
  fi
  train
  if ((status == 0)); then
    break
  elif ((status != 75)) && is_ready; then
    ((retries-- > 0)) || break
  fi
  echo "launch_tpu.sh: the training ended with status $status; starting it again" >&2
done
if [[ $keep == no ]]; then
  delete
fi
exit "$status"
