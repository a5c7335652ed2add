#!/usr/bin/env bash
# The long run of ipc-tests/tests/soak.rs: soak.sh [SECONDS], an hour unless told otherwise. Prints what was done and what the
# daemon's memory did; fails if it grew by more than 2 % after the first twelfth of the time.
set -euo pipefail
cd "$(dirname "$0")/.."
LMCACHED_SOAK_SECONDS=${1:-3600} exec cargo test --workspace --test soak -- --nocapture
