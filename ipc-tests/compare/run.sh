#!/usr/bin/env bash
# The same load on lmcached and on the real `lmcache server` 0.5.6, alternating in one run. Prints the tables that
# docs/benchmarks.md keeps, and writes them there with --write.
#
# CONFORMANCE_VENV  use this Python environment instead of the conformance run's
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
if [ -n "${CONFORMANCE_VENV:-}" ]; then
  venv=$(realpath "$CONFORMANCE_VENV")
else
  venv="$root/target/conformance/venv"
  bash "$here/../conformance/venv.sh" "$venv"
fi
cd "$root"
cargo build --release --workspace --bin lmcached --bin compare
target="${CARGO_TARGET_DIR:-$root/target}/release"
export LMCACHE_TRACK_USAGE=false LMCACHE_DISABLE_BANNER=1 HF_HUB_OFFLINE=1
exec "$target/compare" run --daemon "$target/lmcached" --peer "$venv/bin/lmcache" --docs "$root/docs/benchmarks.md" "$@"
