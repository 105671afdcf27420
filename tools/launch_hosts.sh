#!/usr/bin/env bash
# Trains on hosts that ssh reaches, one process a host, and starts all again when they ended.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: tools/launch_hosts.sh --hosts=HOST,HOST,... [option ...] -- ARGUMENT ...

Runs `python -m kosmos2_jax.train ARGUMENT ...` on every host, with all GPUs of each. This checkout
and --workdir must have the same path on all of them.

  --hosts=HOST,...  reached by ssh without a password; the first one coordinates
  --port=PORT       where it does so (default 12321)
  --retries=N       starts after failures (default 3); see below
  --python=FILE     default: .venv/bin/python of this checkout
  --dry-run         print the commands and run none

When all hosts end with status 75 ("saved, start me again") they are started again, after any other
status but 0 up to --retries times. The run always goes on from its last whole checkpoint.
TEXT
}

fail() {
  echo "launch_hosts.sh: error: $1; see --help" >&2
  exit 2
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
hosts=() port=12321 retries=3 python=$root/.venv/bin/python dry_run=no
while (($#)); do
  case $1 in
    --hosts=*) IFS=, read -r -a hosts <<<"${1#*=}" ;;
    --port=*) port=${1#*=} ;;
    --retries=*) retries=${1#*=} ;;
    --python=*) python=${1#*=} ;;
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
((${#hosts[@]})) || fail "--hosts is missing"
for needed in port retries; do
  [[ ${!needed} =~ ^[0-9]+$ ]] || fail "--$needed must be a number"
done
(($#)) || fail "arguments of the training are missing after --"

# Starts all hosts; leaves the status of the whole in `status`.
start_all() {
  local -a started=()
  local number process found
  for number in "${!hosts[@]}"; do
    # With a terminal (-tt), so that what is started there ends when ssh does.
    local -a command=(ssh -tt "${hosts[number]}" "cd $(printf %q "$root") && $(printf '%q ' \
      "$python" -m kosmos2_jax.train "--coordinator=${hosts[0]}:$port" \
      "--num_processes=${#hosts[@]}" "--process_id=$number" "$@")")
    printf '+' >&2
    printf ' %q' "${command[@]}" >&2
    printf '\n' >&2
    if [[ $dry_run == no ]]; then
      "${command[@]}" </dev/null &
      started+=($!)
    fi
  done
  status=0
  for process in "${started[@]}"; do
    found=0
    wait "$process" || found=$?
    # One that failed outright tells more than those that were told to stop.
    if ((found != 0 && (status == 0 || status == 75))); then
      status=$found
    fi
  done
}

trap 'jobs -p | xargs -r kill' EXIT
while true; do
  start_all "$@"
  if ((status == 0)); then
    break
  elif ((status != 75)); then
    ((retries-- > 0)) || break
  fi
  echo "launch_hosts.sh: the training ended with status $status; starting it again" >&2
done
exit "$status"
