#!/usr/bin/env bash
# Runs the real LMCache 0.5.6 client and a real vLLM against lmcached. See README.md beside this file.
#
#   run.sh [--only bench|l2|vllm|restart|survive] [--server lmcached|peer]
#
# CONFORMANCE_VENV  use this Python environment instead of making one
# LMCACHED_BIN      use this daemon instead of building it
set -euo pipefail

usage() {
  echo "usage: run.sh [--only bench|l2|vllm|restart|survive] [--server lmcached|peer]" >&2
  exit 2
}

only=all server=lmcached
while [ $# -gt 0 ]; do
  case "$1" in
    --only) only=${2:-} && shift 2 || usage ;;
    --server) server=${2:-} && shift 2 || usage ;;
    *) usage ;;
  esac
done
case "$only" in all|bench|l2|vllm|restart|survive) ;; *) usage ;; esac
case "$server" in lmcached|peer) ;; *) usage ;; esac

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
work="$root/target/conformance"
mkdir -p "$work/logs"

# A daemon given by a relative path must still be found: nothing below depends on the directory we were called from.
if [ -n "${LMCACHED_BIN:-}" ]; then
  LMCACHED_BIN=$(realpath "$LMCACHED_BIN")
fi

if [ -n "${CONFORMANCE_VENV:-}" ]; then
  venv=$(realpath "$CONFORMANCE_VENV")
else
  venv="$work/venv"
  bash "$here/venv.sh" "$venv"
fi

if [ "$server" = lmcached ] && [ -z "${LMCACHED_BIN:-}" ]; then
  (cd "$root" && cargo build --release --workspace --bin lmcached --bin lmcached-keeper --bin lmcache-ctl)
  LMCACHED_BIN="${CARGO_TARGET_DIR:-$root/target}/release/lmcached"
fi

# The Python side ends what it started (also on a signal); the trap passes an early end on to it and waits,
# so that no server or engine outlives this script.
pid=
trap 'if [ -n "$pid" ]; then kill -TERM "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; fi' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

"$venv/bin/python" -B "$here/main.py" \
  --only "$only" --server "$server" --venv "$venv" --work "$work" --lmcached "${LMCACHED_BIN:-}" &
pid=$!
status=0
wait "$pid" || status=$?
pid=
exit "$status"
